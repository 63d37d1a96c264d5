"""What goes wrong on a device, told in one line: memory that runs out, arrays of the wrong library.

The backend knows how its library says so; here is what a user can do about it.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from nnx import interrupt, threads
from nnx.backend import Backend, BackendError
from nnx.interrupt import waiting

# The modules that check the data given to nnx.
CHECKS = "nnx.data."

# Files of what stands around a method.
WRAPPERS = (__file__, interrupt.__file__, threads.__file__)

Function = TypeVar("Function", bound=Callable[..., Any])


class OutOfMemoryError(BackendError, MemoryError):
    """Memory ran out, on the device or on the host; says what to try. The model stays usable."""


class NonFiniteError(FloatingPointError):
    """The loss or the weights became infinite or not a number in `fit`; says where, and what to try.

    The model has the weights, optimizer and step from before: it stays usable.
    """


def raised_by(error: Exception, kind: str, who: Any, where: str = "") -> None:
    """Note who raised an error, by class or function, unless one of its kind inside it is noted already.

    >>> error = ValueError("too large")
    >>> raised_by(error, "callback", error, ".on_epoch_end in epoch 3")
    >>> error.__notes__
    ['raised by callback ValueError.on_epoch_end in epoch 3']
    """
    start, notes = f"raised by {kind} ", getattr(error, "__notes__", [])
    if not any(note.startswith(start) for note in notes):
        error.add_note(f"{start}{getattr(who, '__name__', type(who).__name__)}{where}")


def explained(method: Function, name: str | None = None) -> Function:
    """Let a method of a model tell in one line what went wrong on its device, under its own name or another."""

    @functools.wraps(method)
    def call(model, *arguments, **settings):
        try:
            return method(model, *arguments, **settings)
        except KeyboardInterrupt as error:
            raise error.with_traceback(None) from None
        except Exception as error:
            told = _explanation(method, name or method.__name__, model, arguments, settings, error)
            if told is None:
                raise _short(error)  # noqa: B904 - it is the error itself
            notes = getattr(error, "__notes__", [])
        for note in notes:
            told.add_note(note)
        # Outside of the handler, so that it does not keep the arrays of the failed step alive.
        raise told

    return call  # pyright: ignore[reportReturnType]


def _short(error: Exception) -> Exception:
    """Return an error without the part of its traceback that tells nothing to whoever reads it."""
    rest = error.__traceback__
    while rest is not None and rest.tb_frame.f_code.co_filename in WRAPPERS:
        rest = rest.tb_next
    frames = [frame for frame, _ in _walk(rest)]
    # A mistake of whoever called, or numbers of whose steps none is on the stack.
    if isinstance(error, NonFiniteError) or (
        frames and frames[-1].f_globals.get("__name__", "").startswith(CHECKS)
    ):
        rest = None
    return error.with_traceback(rest)


def _walk(traceback):
    """Yield each frame and line, from the outermost; the module `traceback` would make `import nnx` longer."""
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


@waiting
def own_exceptions(iterable):
    """Yield from an iterable of the user; what it raises passes as it is."""
    yield from iterable


def _explanation(method, name: str, model, arguments, settings, error) -> BackendError | None:
    backend: Backend | None = model._backend
    frames = [frame for frame, _ in _walk(error.__traceback__)]
    if (
        backend is None
        or isinstance(error, OutOfMemoryError)
        or any(frame.f_code is own_exceptions.__code__ for frame in frames)
    ):
        return None
    cause = backend.translate(error)
    if isinstance(cause, MemoryError):
        given = inspect.signature(method).bind(model, *arguments, **settings)
        given.apply_defaults()
        free = backend.free_memory()
        room = "" if free is None else f"; {free / 2**20:,.0f} MiB are free on the device"
        advice = _advice(name, given.arguments)
        return OutOfMemoryError(
            f"{name} on the {backend.name} backend ran out of memory: {str(cause).rstrip('.')}{room}. {advice}"
        )
    if isinstance(cause, TypeError):
        return BackendError(
            f"{_place(error, backend)}a layer, loss or metric on the {backend.name} backend mixes in an array that is "
            f"none of its own: {cause}. Make constants with ctx.xp.asarray(...), and compute with functions of ctx.xp"
        )
    return None


def _advice(name: str, given: dict) -> str:
    x, batch_size = given.get("x"), given.get("batch_size")
    if name in ("fit", "evaluate") and given.get("y") is None:
        return "Give smaller batches"
    if batch_size is not None and hasattr(x, "__len__"):
        batch_size = min(batch_size, len(x))  # type: ignore[arg-type]
    elif name in ("train_on_batch", "test_on_batch", "__call__") and hasattr(x, "__len__"):
        batch_size = len(x)  # type: ignore[arg-type]
    if batch_size is None or batch_size < 2:
        return "The model takes more than there is: make it smaller, or run it elsewhere with model.to(...)"
    if name in ("fit", "evaluate", "predict"):
        return f"Try batch_size={batch_size // 2}, half of the present {batch_size}"
    return f"Try {batch_size // 2} samples at a time, half of the present {batch_size}"


def _place(error: Exception, backend: Backend) -> str:
    """Return `file, line 3: ` of what was running outside of nnx and the array library."""
    libraries = {"nnx", "numpy", getattr(backend.xp, "__name__", "").split(".")[0], backend.name}
    for frame, line in reversed(list(_walk(error.__traceback__))):
        module, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if module.split(".")[0] not in libraries and file.endswith((".py", ">")):
            return f"{file}, line {line}: "
    return ""
