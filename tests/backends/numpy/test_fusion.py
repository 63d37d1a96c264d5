"""Kernels recorded and run in blocks give the same bits as the plain expression."""

import sys

import numpy as np
import pytest
from nnx.backends.numpy import fusion as fusion_module
from nnx.backends.numpy.fusion import Fusion
from nnx.backends.shared.eager import positional

import nnx
from nnx import activations, kernels

backend = nnx.as_backend("numpy")
FUSIONS = {name: Fusion(use_numba=name == "numba") for name in ("blocks", "numba")}


@pytest.fixture(params=FUSIONS, autouse=True)
def _fusion(request, monkeypatch):
    """Each way to run a record: in blocks, and as a loop compiled by Numba."""
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(backend, "fusion", FUSIONS[request.param])


RNG = np.random.default_rng(0)
SHAPES = [(40_000,), (300, 200), (1, 70_000), (5, 7, 999), (17_000, 3), (50_001, 1)]

OPTIMIZERS = [
    nnx.optimizers.SGD(0.1),
    nnx.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    nnx.optimizers.RMSprop(0.1, momentum=0.5, centered=True),
    nnx.optimizers.Adagrad(0.1),
    nnx.optimizers.Adadelta(0.1),
    nnx.optimizers.Adam(0.1),
    nnx.optimizers.Adam(0.1, amsgrad=True, clipvalue=0.5),
    nnx.optimizers.AdamW(0.1),
    nnx.optimizers.Adamax(0.1),
    nnx.optimizers.Nadam(0.1),
    nnx.optimizers.Lion(0.1),
]


def planned(function, *arrays, into):
    """Return the results of a run in blocks, and make sure that it was one."""
    found = backend.fusion.run(function, arrays, into)
    assert found is not None, f"{function} was not recorded"
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in activations.names() if activations.get(n).elementwise])
def test_activations(name, dtype):
    """In all shapes with one another, as Numba compiles a loop for flat arrays and one for rows."""
    for shape in SHAPES:
        check_activation(activations.get(name), shape, dtype)


def check_activation(activation, shape, dtype):
    x, dy, bias = (RNG.standard_normal(s).astype(dtype) for s in (shape, shape, shape[-1:]))
    y = activation.forward(np, x)
    if activation != activations.get("linear"):
        np.testing.assert_array_equal(planned(activation.forward, x, into=(None,))[0], y)
        saved = x if activation.needs_input else y
        expected = activation.gradient(np, dy, saved)
        np.testing.assert_array_equal(planned(activation.gradient, dy, saved, into=(None,))[0], expected)
    with_bias = activation.forward_with_bias(np, x, bias)
    before = x.copy()
    np.testing.assert_array_equal(planned(activation.forward_with_bias, x, bias, into=(None,))[0], with_bias)
    np.testing.assert_array_equal(x, before)
    (again,) = planned(activation.forward_with_bias, x, bias, into=(0,))
    assert again is x
    np.testing.assert_array_equal(x, with_bias)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizers(optimizer, dtype):
    size = 3 * 32_768 + 17
    count = 2 + len(optimizer.slots)
    start = [RNG.standard_normal(size), RNG.standard_normal(size)] + [np.full(size, optimizer.slot_start)] * (
        count - 2
    )
    mine = [np.array(a, dtype) for a in start]
    plain = [a.copy() for a in mine]
    for step in range(3):
        scalars = optimizer.scalars(step)
        plain[0], *slots = optimizer._whole_rule(np, *plain, **scalars)
        plain[2:] = slots
        backend.update_in_place(optimizer._whole_rule, mine, scalars, (0, *range(2, count)))
    for a, b in zip(mine, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == dtype


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_optimizers_with_a_gradient_of_higher_precision(optimizer):
    """As a layer gives it that multiplies by a number of NumPy. Results then wait in buffers to the end."""
    mine = [RNG.standard_normal(50_000).astype(dtype) for dtype in ("float32", "float64")]
    mine += [np.full(50_000, optimizer.slot_start, "float32") for _ in optimizer.slots]
    plain = [a.copy() for a in mine]
    for step in range(3):
        scalars = optimizer.scalars(step)
        after = [a.astype("float32") for a in optimizer._whole_rule(np, *plain, **scalars)]
        plain[0], plain[2:] = after[0], after[1:]
        backend.update_in_place(optimizer._whole_rule, mine, scalars, (0, *range(2, len(mine))))
    for a, b in zip(mine, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_every_rule_is_recorded():
    for optimizer in OPTIMIZERS:
        arguments = [np.zeros(50_000, np.float32) for _ in range(2 + len(optimizer.slots))]
        names = tuple(optimizer.scalars(0))
        rule = positional(optimizer._whole_rule, names)
        into = (0, *range(2, len(arguments)))
        assert backend.fusion.run(rule, (*arguments, *optimizer.scalars(0).values()), into) is not None


def test_hash_and_dropout():
    counter = np.arange(100_000, dtype=np.uint32)
    expected = kernels.hash_bits(np, counter, 4_000_000_000, 7)
    bits = planned(kernels.hash_bits, counter.copy(), 4_000_000_000, 7, into=(0,))[0]
    assert bits.dtype == np.uint32
    np.testing.assert_array_equal(bits, expected)
    x = RNG.standard_normal(100_000).astype(np.float32)
    arguments = (x, bits >> 1, 2**30, 2.0)
    np.testing.assert_array_equal(
        planned(kernels.dropout, *arguments, into=(None,))[0], kernels.dropout(np, *arguments)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_maxima_beside_a_number(dtype):
    def between(xp, x):
        return xp.maximum(-1, xp.minimum(x, 2)) + xp.maximum(x, 0)

    x = np.arange(-40_000, 40_003).astype(dtype)
    if dtype != "int64":
        x /= 10_000
        x[::7], x[1::7], x[2::7] = np.nan, np.inf, -np.inf
    (found,) = planned(between, x, into=(None,))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, between(np, x))


def test_erf():
    x = np.linspace(-7, 7, 50_000)
    np.testing.assert_array_equal(planned(kernels.erf, x, into=(None,))[0], kernels.erf(np, x))


def test_whole_arguments_beside_rows():
    x = RNG.standard_normal((500, 100))
    mean, scale = x.mean(axis=0, keepdims=True), 1 / x.std(axis=0, keepdims=True)
    arguments = (x, mean, scale, 0.0)
    np.testing.assert_array_equal(
        planned(kernels.centre_and_scale, *arguments, into=(None,))[0],
        kernels.centre_and_scale(np, *arguments),
    )


def test_where_may_write_over_its_arguments():
    def choose(xp, x, y):
        return xp.where(x > y, x, y * 2.0)

    for into in (0, 1):
        x, y = RNG.standard_normal((2, 60_000))
        expected = choose(np, x, y)
        np.testing.assert_array_equal(planned(choose, x, y, into=(into,))[0], expected)


def test_an_argument_still_to_be_read_is_not_written_over():
    def swap_and_add(xp, x, y):
        return y + 0.0, x + y

    x, y = RNG.standard_normal((2, 60_000))
    expected = swap_and_add(np, x, y)
    for a, b in zip(planned(swap_and_add, x, y, into=(0, 1)), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("transposed", [False, True])
def test_arrays_that_are_not_contiguous(transposed):
    x = RNG.standard_normal((300, 200))
    x = x.T if transposed else x[:, ::2]
    np.testing.assert_array_equal(backend.kernel(lambda xp, x: xp.tanh(x) * 2.0, x), np.tanh(x) * 2)


def test_what_is_not_elementwise_is_run_as_it_stands():
    x = RNG.standard_normal((300, 200))
    y = backend.kernel(lambda xp, x: x - xp.mean(x, axis=0), x)
    np.testing.assert_array_equal(y, x - backend.xp.mean(x, axis=0))
    assert backend.fusion.run(lambda xp, x: xp.sum(x), (x,), (None,)) is None


def test_arithmetic_is_compiled_where_numba_is():
    plan = FUSIONS["numba"].plan(kernels.add, (np.zeros(3), np.zeros(3)), (True, True), (None,))
    assert FUSIONS["numba"].compiled(plan, False) is not None
    assert FUSIONS["blocks"].compiled(plan, False) is None


def test_no_array_larger_than_a_block_is_made_by_the_optimizer(monkeypatch):
    sizes = []
    empty = np.empty

    def counted(shape, *args):
        sizes.append(int(np.prod(shape)))
        return empty(shape, *args)

    adam = nnx.optimizers.Adam()
    buffers = [np.zeros(200_000, np.float32) for _ in range(4)]
    backend.update_in_place(adam._whole_rule, buffers, adam.scalars(0), (0, 2, 3))
    monkeypatch.setattr(np, "empty", counted)
    backend.update_in_place(adam._whole_rule, buffers, adam.scalars(1), (0, 2, 3))
    assert max(sizes, default=0) <= 32_768


def test_a_kernel_that_looks_at_values_or_shapes_is_run_as_it_stands():
    x = RNG.standard_normal(100_000)
    for kernel in (
        lambda xp, x, flag: xp.sign(x) if flag else x * 1.0,
        lambda xp, x, flag: abs(x) % 1,
        lambda xp, x, flag: x * len(x.shape),
        lambda xp, x, flag: 2.0**x,
    ):
        np.testing.assert_array_equal(backend.kernel(kernel, x, 0.0), kernel(np, x, 0.0))


def test_arguments_that_widen_the_result_are_run_as_they_stand():
    x, y = RNG.standard_normal((50_000, 1)), RNG.standard_normal(3)
    np.testing.assert_array_equal(backend.kernel(kernels.multiply, x, y), x * y)


def test_kernels_made_anew_at_each_call_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(fusion_module, "MOST_PLANS", 8)
    monkeypatch.setattr(backend, "fusion", Fusion(backend.fusion.use_numba))
    x = np.zeros(50_000)
    for i in range(10):
        backend.kernel(lambda xp, x, i=i: x + i, x)
    assert len(backend.fusion._plans.values) == 8


def test_a_numba_that_cannot_be_imported_is_done_without(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    fusion = Fusion(use_numba=True)
    monkeypatch.setattr(backend, "fusion", fusion)
    x = RNG.standard_normal(100_000)
    np.testing.assert_array_equal(backend.kernel(kernels.add, x, 1.0), x + 1.0)


def test_one_element_for_all_columns_is_broadcast():
    x, slope = np.random.default_rng(0).normal(size=(400, 6)), np.array([0.25])
    (found,) = Fusion().run(
        lambda xp, x, slope: (xp.maximum(x, 0.0) + slope * xp.minimum(x, 0.0),), (x, slope), (None,)
    )
    np.testing.assert_array_equal(found, np.where(x > 0, x, 0.25 * x))
