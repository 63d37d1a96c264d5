"""Threads: each may train models of its own; one model is trained in one at a time.

A step takes over the arrays of the step before, so what another thread reads meanwhile may be half of one
and half of the other, or gone.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

_claims = threading.Lock()


def expect_alone(model) -> None:
    """Raise a RuntimeError if the model is being trained in another thread."""
    if model.trained_in not in (None, threading.get_ident()):
        raise RuntimeError(
            "this model is being trained in another thread: wait for that, stop it by model.stop_training = True, or "
            "use another model, such as copy.deepcopy(model) made before"
        )


def alone(method: Method) -> Method:
    """Let a method of a model train it in this thread only."""

    @functools.wraps(method)
    def call(model, *arguments, **settings):
        with _claims:
            expect_alone(model)
            is_inside, model.trained_in = model.trained_in is not None, threading.get_ident()
        try:
            return method(model, *arguments, **settings)
        finally:
            if not is_inside:
                model.trained_in = None

    return call  # pyright: ignore[reportReturnType]
