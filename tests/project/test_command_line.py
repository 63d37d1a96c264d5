"""`python -m nnx info`."""

import subprocess
import sys

import pytest

import nnx
from nnx.__main__ import main


@pytest.fixture
def backends(monkeypatch):
    """A machine with one backend that can run and one that cannot."""
    found = {
        "fast": nnx.BackendInfo("fast", False, reason="it needs a device that is not here: " + "install it " * 20),
        "numpy": nnx.BackendInfo("numpy", True, "2.0", "cpu (2 cores)", "8 GiB"),
    }  # fmt: skip
    monkeypatch.setattr(nnx, "available_backends", lambda: found)


def test_info_as_a_command():
    result = subprocess.run([sys.executable, "-m", "nnx", "info"], capture_output=True, text=True, check=True)
    assert f"nnx {nnx.__version__}, Python 3." in result.stdout
    for name in ("cupy", "jax", "numpy"):
        assert f"\n{name} " in result.stdout
    assert result.stderr == ""


def test_info_is_a_table_with_reasons_below(backends, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "backend  usable  version  device         memory",
        "fast     no      -        -              -",
        "numpy    yes     2.0      cpu (2 cores)  8 GiB",
    ]
    assert "fast cannot run here:" in lines
    assert "  it needs a device that is not here: install it install it" in lines
    assert max(map(len, lines[1:])) <= 60


def test_info_says_which_backend_is_chosen(capsys):
    main(["info"])
    assert "chosen: numpy (NNX_BACKEND is not set)" in capsys.readouterr().out


def test_info_says_that_the_choice_is_unusable():
    result = subprocess.run(
        [sys.executable, "-m", "nnx", "info"],
        capture_output=True,
        text=True,
        check=True,
        env={"NNX_BACKEND": "numpi", "PATH": "/usr/bin:/bin"},
    )
    assert "chosen: none, NNX_BACKEND=numpi cannot be used" in result.stdout
    assert "did you mean 'numpy'?" in result.stdout


def test_without_a_command_help_is_shown(capsys):
    assert main([]) == 0
    assert "list the backends" in capsys.readouterr().out


def test_an_unknown_command_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inf"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m nnx: error: argument COMMAND: invalid choice: 'inf' (choose from")
    assert error.count("\n") == 1
