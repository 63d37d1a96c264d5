"""A clone works where people put it: installed in place, installed as a wheel, and not installed at all."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from paths import ROOT

PROGRAM = (
    "import nnx; print(nnx.Sequential([nnx.layers.Dense(2, input_shape=(3,))]).predict([[1, 2, 3]]).shape)"
)
WITHOUT_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in a folder called nnx, as `git clone` makes it."""
    folder = tmp_path_factory.mktemp("projects") / "nnx"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("nnx", "backends"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with the packages that nnx needs, and without nnx."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("numpy", "numpy.libs", "safetensors", "tqdm"):
        installed = [path for path in map(type(folder), sys.path) if (path / name).is_dir()]
        if installed:
            (folder / name).symlink_to(installed[0] / name)
    return folder


def environment(folder, packages) -> str:
    """Make a virtual environment with these packages; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    return str(folder / "bin" / "python")


def pip(python, *arguments):
    """Run pip, which takes setuptools from the package index."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", *arguments, "--quiet", "--no-deps"], check=True, env=environment)


def run(python, folder, *arguments, **environment) -> str:
    return subprocess.run(
        [python, *arguments], cwd=folder, check=True, capture_output=True, text=True,
        env={**WITHOUT_ENVIRONMENT, **environment},
    ).stdout.strip()  # fmt: skip


@pytest.mark.slow
def test_installed_in_place(clone, packages, tmp_path):
    python = environment(tmp_path / "env", packages)
    pip(python, "install", "-e", str(clone))
    for folder in (clone, clone.parent, tmp_path):
        assert run(python, folder, "-c", PROGRAM) == "(1, 2)"


@pytest.mark.slow
def test_installed_as_a_wheel(clone, packages, tmp_path):
    python = environment(tmp_path / "env", packages)
    pip(python, "wheel", "-w", str(tmp_path), str(clone))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = [path.relative_to(clone).as_posix() for path in (clone / "nnx").rglob("*.py")]
    sources += [f"nnx/{path.relative_to(clone).as_posix()}" for path in (clone / "backends").rglob("*.py")]
    assert {name for name in names if name.endswith(".py")} == set(sources)
    pip(python, "install", str(wheel))
    for folder in (tmp_path, clone.parent):
        assert run(python, folder, "-c", PROGRAM) == "(1, 2)"
    assert run(python, clone, "-c", PROGRAM) == "(1, 2)"
    assert "usage" in run(python, clone, "train.py", "--help")


@pytest.mark.slow
def test_not_installed(clone, packages):
    where = f"{clone}:{packages}"
    assert run(sys.executable, clone, "-S", "-c", PROGRAM, PYTHONPATH=where) == "(1, 2)"
    backends = run(
        sys.executable, clone, "-S", "-c", "import nnx; print(*nnx.available_backends())", PYTHONPATH=where
    )
    assert backends == "cupy jax numpy"
