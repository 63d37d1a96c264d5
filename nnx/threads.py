"""Threads: each may train models of its own; one model is trained in one at a time.

A step takes over the arrays of the step before, so what another thread reads meanwhile may be half of one
and half of the other, or gone. So a model is changed in one thread alone (`alone`), and read in any number
while none changes it (`reads`). The thread that trains may do all of this, as callbacks do.
"""

import collections
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

_changes = threading.Condition()
_readers: collections.Counter[tuple[int, int]] = collections.Counter()
"""How often each thread is reading each model now, by the numbers of both."""


def expect_alone(model) -> None:
    """Raise a RuntimeError if the model is being trained in another thread."""
    if model.trained_in not in (None, threading.get_ident()):
        time.sleep(0.001)  # else one who asks again and again would keep the interpreter from the training
        raise RuntimeError(
            "this model is being trained in another thread: wait for that, stop it by model.stop_training = True, or "
            "use another model, such as copy.deepcopy(model) made before"
        )


def alone(method: Method) -> Method:
    """Let a method of a model change it in this thread only, once other threads have read what they are reading."""

    @functools.wraps(method)
    def call(model, *arguments, **settings):
        me = threading.get_ident()
        is_inside = model.trained_in == me
        try:
            with _changes:
                expect_alone(model)
                model.trained_in = me
                _changes.wait_for(lambda: all(m != id(model) or t == me for m, t in _readers))
            return method(model, *arguments, **settings)
        finally:
            if not is_inside and model.trained_in == me:
                model.trained_in = None

    return call  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def reading(model) -> Iterator[None]:
    """Let no other thread change the model inside a `with` block."""
    key = id(model), threading.get_ident()
    expect_readable(model)  # without the lock, for which one who waits would have to queue
    with _changes:
        if key not in _readers:  # else it has begun before the one who waits
            expect_alone(model)
        _readers[key] += 1
    try:
        yield
    finally:
        with _changes:
            _readers[key] -= 1
            if not _readers[key]:
                del _readers[key]
                _changes.notify_all()


def reads(method: Method) -> Method:
    """Let no other thread change a model while this method of it reads its arrays."""

    @functools.wraps(method)
    def call(model, *arguments, **settings):
        with reading(model):
            return method(model, *arguments, **settings)

    return call  # pyright: ignore[reportReturnType]


def expect_readable(model) -> None:
    """Raise a RuntimeError if another thread changes the model, unless this one had begun to read it before."""
    if model.trained_in is not None and (id(model), threading.get_ident()) not in _readers:
        expect_alone(model)


def _forget_after_fork() -> None:
    """Forget the threads of the parent, which a forked process does not have."""
    global _changes
    _changes = threading.Condition()
    _readers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
