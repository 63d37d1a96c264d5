"""Half precision: layers compute in 16 bits, weights stay in 32.

`Sequential(..., dtype="float16")` or `"bfloat16"`: each step converts the weights and the input, runs the
layers in 16 bits, and computes the loss in float32. Gradients too small for float16 would be lost, so the
loss is scaled up before the backward pass and the gradients are scaled down after it. If they overflow, the
step is skipped and the scale halved; after 2000 finite steps in a row it is doubled. The host reads none of
this. bfloat16 has the range of float32 and needs no scale.

Source: Micikevicius et al., "Mixed precision training" (2018).
"""

import functools

from nnx import tree
from nnx.backend_loading import BackendError
from nnx.layers.base import HALF, run

FIRST_SCALE = 2.0**15
GROW_AFTER = 2000


def weight_dtype(dtype: str) -> str:
    """Return the dtype of the weights.

    >>> weight_dtype("bfloat16"), weight_dtype("float64")
    ('float32', 'float64')
    """
    return "float32" if dtype in HALF else dtype


def check_dtype(backend, dtype: str) -> None:
    """Raise a BackendError if models cannot compute in this precision on a backend."""
    if dtype not in backend.dtypes:
        raise BackendError(
            f"dtype {dtype!r} is not to be had on {backend.name}, which has {', '.join(backend.dtypes)}: choose one of "
            f"these, or another backend, such as nnx.set_backend('jax')"
        )


def cast(xp, x, *, dtype):
    """An array in another precision."""
    return xp.astype(x, dtype)


def unscale(xp, grad, factor):
    """A gradient of a scaled loss in float32, without the scale."""
    return xp.astype(grad, xp.float32) * factor


def run_half(dtype: str, network, ctx, params, x):
    """Return output and pullback of a network that computes in half precision.

    `x`, the output and its gradient are float32; the gradients of the weights are of `dtype`.
    """
    xp, half = ctx.xp, getattr(ctx.xp, dtype)
    params = ctx.backend.map(functools.partial(cast, dtype=half), params)
    # Category indices stay integers.
    x = tree.map(lambda array: xp.astype(array, half) if "float" in str(array.dtype) else array, x)
    output, pullback = run(network, ctx, params, x)

    def pullback_in_half(dy):
        return pullback(tree.map(lambda array: xp.astype(array, half), dy))

    return tree.map(lambda array: xp.astype(array, xp.float32), output), pullback_in_half


def run_network(dtype: str, network, ctx, params, x):
    """Return output and pullback of a network that computes in `dtype`, half precision or not."""
    return run_half(dtype, network, ctx, params, x) if dtype in HALF else run(network, ctx, params, x)


def first_scale(backend) -> dict:
    """Return the starting scale of the loss, and the number of finite steps since it changed."""
    one = backend.asarray(0.0, "float32") + 1.0  # a scalar of the type that a step returns
    return {"factor": one * FIRST_SCALE, "good_steps": one * 0.0}


def next_scale(xp, scale: dict, finite) -> dict:
    """Return the scale after a step whose gradients were finite or not."""
    steps = (scale["good_steps"] + 1.0) * xp.astype(finite, xp.float32)
    grown = xp.where(steps >= GROW_AFTER, scale["factor"] * 2.0, scale["factor"])
    factor = xp.where(finite, grown, xp.maximum(scale["factor"] * 0.5, xp.ones_like(grown)))
    return {"factor": factor, "good_steps": xp.where(steps >= GROW_AFTER, steps * 0.0, steps)}


def all_finite(xp, arrays):
    """Return whether all elements of some arrays are finite, as an array on the device."""
    # Zero times nan or infinity is nan, and so is a sum with it.
    return sum(xp.sum(array * 0.0) for array in arrays) == 0.0


def keep_if(xp, finite, new, old):
    """Return the tree `new` where `finite` holds, else `old`."""
    return tree.map(lambda a, b: xp.where(finite, a, b), new, old)
