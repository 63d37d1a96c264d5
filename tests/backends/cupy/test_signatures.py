"""Whatever the engine calls through `xp` exists in the CuPy it is tested with; needs no device."""

import importlib.util

import pytest
from cupy_signatures import cupy_signatures, engine_uses, stored, uses

SIGNATURES = stored()["signatures"]


def problems(source):
    return [problem for use in uses(source, "layer.py") if (problem := use.problem(SIGNATURES))]


def test_cupy_has_all_that_the_engine_uses():
    assert [problem for use in engine_uses() if (problem := use.problem(SIGNATURES))] == []


def test_the_engine_has_been_read():
    found = engine_uses()
    assert {"sum", "matmul", "exp", "where", "take", "concat", "float32"} <= {use.name for use in found}
    assert {use.place.split(":")[0] for use in found} >= {
        "nnx/activations/__init__.py", "nnx/layers/dense.py", "nnx/layers/batch_normalization.py", "nnx/losses/base.py",
        "nnx/losses/regression.py", "nnx/losses/classification.py", "nnx/metrics/base.py", "nnx/metrics/regression.py",
        "nnx/metrics/classification.py", "nnx/optimizers.py", "nnx/kernels.py", "nnx/context.py",
        "nnx/training/step.py",
        "backends/shared/flat.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("xp.summ(x)", "layer.py:1: CuPy has no summ"),
        ("ctx.xp.vecdot2(x, y)", "layer.py:1: CuPy has no vecdot2"),
        ("f = self.backend.xp.nothing", "layer.py:1: CuPy has no nothing"),
        ("xp.linalg.normal(x)", "layer.py:1: CuPy has no linalg.normal"),
        ("xp.sum(x, axes=0)", "got an unexpected keyword argument 'axes'"),
        ("xp.var(x, ddof=1)", "got an unexpected keyword argument 'ddof'"),
        ("xp.exp(x, y, z)", "too many positional arguments"),
        ("xp.reshape(x)", "missing a required argument: 'shape'"),
        ("y = xp.exp(xp.summ(x))", "layer.py:1: CuPy has no summ"),
    ],
)
def test_a_planted_error_is_found(source, problem):
    [found] = problems(source)
    assert problem in found


def test_what_is_right_is_let_pass():
    assert (
        problems("xp.sum(x, axis=-1, keepdims=True) + ctx.xp.exp(x).sum() * xp.concat(list(a), axis=0)") == []
    )
    assert problems("y = np.summ(x); xp.maximum(*pair); z = xp.float32; w.xp = 3") == []


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed: make test-cupy")
def test_the_stored_signatures_are_those_of_cupy():
    """Else run `python tests/helpers/cupy_signatures.py`, and look at what has changed."""
    assert stored() == cupy_signatures()
