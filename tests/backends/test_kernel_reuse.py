"""A kernel that is written anew at each call, as a lambda in a layer is, is recorded and compiled once."""

import functools

import numpy as np
import pytest
from nnx.backends.numpy import fusion, numba_kernels
from nnx.backends.numpy.fusion import Fusion

import nnx

LARGE = np.ones(100_000, np.float32)


@pytest.fixture
def counts(monkeypatch):
    """How often kernels have been recorded, and compiled by Numba."""
    found = {"recorded": 0, "compiled": 0}

    def counted(module, name, what):
        original = getattr(module, name)

        def call(*arguments, **settings):
            found[what] += 1
            return original(*arguments, **settings)

        monkeypatch.setattr(module, name, call)

    counted(fusion, "record", "recorded")
    counted(numba_kernels, "compile_loop", "compiled")
    return found


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def apply(self, xp, x):
        return x * self.factor


def times(xp, x, factor):
    return x * factor


def local(factor):
    def scaled(xp, x):
        return x * factor

    return scaled


MADE = {
    "a lambda": lambda factor: lambda xp, x: x * factor,
    "a local function": local,
    "a lambda with a default": lambda factor: lambda xp, x, factor=factor: x * factor,
    "a bound method": lambda factor: Scale(factor).apply,
    "a partial": lambda factor: functools.partial(times, factor=factor),
}


@pytest.mark.parametrize("use_numba", [False, True])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_kernel_made_anew_at_each_call_is_made_once_for_each_value(make, use_numba, counts):
    fusion = Fusion(use_numba)
    for _ in range(5):
        for factor in (2.0, 3.0):
            (y,) = fusion.run(make(factor), [LARGE], (None,))
            assert y[0] == factor
    assert counts == {"recorded": 2, "compiled": 2 * use_numba}


def test_a_layer_that_writes_a_lambda(counts, monkeypatch):
    """Also where its steps are not compiled, and batches differ in length."""
    monkeypatch.setenv("NNX_REPLAY", "0")

    class Doubled(nnx.layers.Layer):
        def forward(self, ctx, params, x):
            return ctx.kernel(lambda xp, x: x * 2.0, x), lambda dy: (dy * 2.0, {})

    model = nnx.Sequential([Doubled(input_shape=(1000,)), nnx.layers.Dense(1)], seed=0)
    model.predict(np.ones((100, 1000)))
    before = dict(counts)
    for rows in (100, 101, 102):
        model.predict(np.ones((rows, 1000)))
    assert counts == before
