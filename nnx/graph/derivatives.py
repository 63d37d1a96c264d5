"""Derivatives of functions of arrays, on every backend.

>>> import nnx
>>> nnx.grad(lambda x: (x**2).sum())([1.0, 2.0])
array([2., 4.])

A library that differentiates by itself (JAX) does so. On all others the function runs once on Symbols, and the
chain rule is applied to the graph of its operations.
"""

import functools
from collections.abc import Callable
from typing import Any

from nnx.backend import Backend, get_backend, use_backend
from nnx.graph.gradients import is_floating, pull
from nnx.graph.graph import Graph, GraphBackend, GraphError, leaves, mapped, rebuilt


def derive(backend: Backend, function: Callable, *arguments) -> tuple[Any, Callable]:
    """Return `function(backend, *arguments)` and its pullback.

    Arguments and results are trees of arrays on `backend`. The function computes on the backend that it is given.
    `pullback(cotangents)` takes dL/d(result) and returns a tuple of dL/d(argument); of arrays that hold no floats
    it is None.
    """
    arrays = leaves(arguments)
    floating = [i for i, array in enumerate(arrays) if is_floating(array)]

    def of_floats(backend, *floats):
        given = [*arrays]
        for i, value in zip(floating, floats, strict=True):
            given[i] = value
        with use_backend(backend):
            return function(backend, *rebuilt(arguments, given))

    floats = [arrays[i] for i in floating]
    result, pull_floats = backend.vjp(of_floats, *floats) or derive_by_graph(backend, of_floats, *floats)

    def pullback(cotangents):
        gradients: list[Any] = [None] * len(arrays)
        for i, gradient in zip(floating, pull_floats(cotangents), strict=True):
            gradients[i] = gradient
        return rebuilt(arguments, gradients)

    return result, pullback


def derive_by_graph(backend: Backend, function, *arrays):
    """Return `function(backend, *arrays)` and its pullback to the arrays, a function that returns a list."""
    graph = Graph(backend)
    inputs = [graph.input(array) for array in arrays]
    outputs = function(GraphBackend(graph), *inputs)

    def pullback(cotangents):
        gradients = pull(graph, leaves(outputs), leaves(cotangents))
        zeros = backend.xp.zeros_like
        return [gradients[x] if x in gradients else zeros(x.value) for x in inputs]

    return mapped(graph.plain, outputs), pullback


def vjp(function: Callable, *arguments) -> tuple[Any, Callable]:
    """Return the value of a function at `arguments`, and its pullback.

    Parameters
    ----------
    function : callable
        `function(*arguments)`: arrays and trees of arrays (nested dicts, lists and tuples) to arrays and trees. It uses
        operators, the functions of `nnx.get_backend().xp`, and what nnx is made of, such as layers.
    *arguments : arrays or trees of arrays
        On the current backend, or lists of numbers.

    Returns
    -------
    value
        What the function returns.
    pullback : callable
        `pullback(cotangents)` takes dL/d(value), a tree like the value, and returns a tuple of dL/d(argument), one
        for each argument.

    Raises
    ------
    GraphError, a TypeError
        If the function does what has no derivative, such as turning an array into a number of Python.

    Examples
    --------
    >>> import nnx, numpy as np
    >>> value, pullback = nnx.vjp(lambda x, y: x * y, np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    >>> value
    array([3., 8.])
    >>> pullback(np.array([1.0, 10.0]))
    (array([ 3., 40.]), array([ 1., 20.]))
    """
    backend = get_backend()
    arguments = [_as_floats(backend, argument) for argument in arguments]
    return derive(backend, lambda _, *given: function(*given), *arguments)


def _as_floats(backend, value: Any) -> Any:
    """Return a tree of arrays on the device; nested lists of numbers are arrays."""
    if isinstance(value, (list, tuple)) and any(not isinstance(leaf, (int, float)) for leaf in leaves(value)):
        return type(value)([_as_floats(backend, item) for item in value])
    if isinstance(value, dict):
        return {key: _as_floats(backend, item) for key, item in value.items()}
    value = value if hasattr(value, "shape") else backend.asarray(value)
    if not is_floating(value):
        raise GraphError(f"a derivative is taken by arrays of floats, got {value.dtype}: write 1.0 for 1")
    return backend.asarray(value)


def value_and_grad(function: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """Return a function that gives the value of `function` and its gradient.

    Parameters
    ----------
    function : callable
        It returns a scalar, such as a loss; see `vjp` for what it may use.
    argnums : int or tuple of int
        The arguments by which to differentiate, counted from 0. Their arrays must hold floats.
    has_aux : bool
        Whether the function returns `(scalar, others)`; then the value is `(scalar, others)` too.

    Examples
    --------
    >>> import nnx
    >>> value, gradient = nnx.value_and_grad(lambda w, x: (w * x).sum())([2.0, 3.0], [4.0, 5.0])
    >>> float(value), gradient
    (23.0, array([4., 5.]))
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)

    @functools.wraps(function)
    def differentiated(*arguments, **settings):
        if not all(-len(arguments) <= i < len(arguments) for i in numbers):
            raise IndexError(
                f"argnums={argnums} names an argument that is not among the {len(arguments)} given"
            )
        backend, given = get_backend(), list(arguments)
        places = [i % len(arguments) for i in numbers]
        chosen = [_as_floats(backend, given[i]) for i in places]

        def of_chosen(_, *chosen):
            for i, value in zip(places, chosen, strict=True):
                given[i] = value
            result = function(*given, **settings)
            return result if has_aux else (result, ())

        (value, others), pullback = derive(backend, of_chosen, *chosen)
        if getattr(value, "shape", None) != ():
            raise GraphError(
                f"a gradient is that of a scalar, and the function returns "
                f"{f'an array of shape {tuple(value.shape)}' if hasattr(value, 'shape') else repr(value)}: return its "
                f"sum or mean, or use nnx.vjp"
            )
        gradients = pullback((backend.xp.ones_like(value), mapped(lambda _: None, others)))
        return ((value, others) if has_aux else value), gradients if isinstance(
            argnums, tuple
        ) else gradients[0]

    return differentiated


def grad(function: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False) -> Callable:
    """Return a function that gives the gradient of `function`; see `value_and_grad`.

    It may be differentiated again. With `has_aux` it gives `(gradient, others)`.

    Examples
    --------
    >>> import nnx
    >>> slope = nnx.grad(lambda x: x**3)
    >>> float(slope(2.0)), float(nnx.grad(slope)(2.0))
    (12.0, 12.0)
    """
    both = value_and_grad(function, argnums, has_aux)

    @functools.wraps(function)
    def gradient(*arguments, **settings):
        value, found = both(*arguments, **settings)
        return (found, value[1]) if has_aux else found

    return gradient


def stop_gradient(values) -> Any:
    """Return a tree of arrays as constants: no gradient flows through them.

    Examples
    --------
    >>> import nnx
    >>> float(nnx.grad(lambda x: x * nnx.stop_gradient(x))(3.0))
    3.0
    """
    return mapped(get_backend().stop_gradient, values)
