"""A process forked from one in which JAX runs says that JAX would hang there, instead of hanging."""

import math
import os
import subprocess
import sys

import pytest
from every_backend import usable_or_skip
from paths import TESTS

PROGRAM = TESTS / "helpers" / "forked.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_after_jax_has_started():
    usable_or_skip("jax")
    output = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    ended = {tuple(line.split(" ")[:2]): " ".join(line.split(" ")[2:]) for line in output.splitlines()}
    for how in ("train", "build", "pool"):
        said = ended[how, "jax"]
        assert said.startswith("BackendError: JAX runs in the process that this one was forked from"), how
        assert "get_context('spawn')" in said
        assert said.endswith("or choose the numpy backend for what they do")
    assert ended["describe", "jax"].startswith("JAX runs in the process that this one was forked from")
    numbers = [ended[how, "numpy"] for how in ("train", "build", "pool", "spawn")]
    numbers += [ended["spawn", "jax"], ended["parent", "jax"]]
    assert all(math.isfinite(float(number)) for number in numbers)
    assert ended["describe", "numpy"] == "True"
    assert ended["warnings", "from"] == "['os.fork() was called']"  # JAX says so, and nnx not once more
