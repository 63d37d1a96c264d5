"""Ctrl-C during training: raised between two runs of steps; pressed repeatedly, at once."""

import functools
import math
import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, ClassVar, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_held: dict[CodeType, float] = {}
"""How many presses are held back while a function is at work; in all that is not named here, one."""


def undivided(function: Function) -> Function:
    """Hold back a second Ctrl-C too while a function changes what a model holds. It costs no time.

    A third one is not held back, and says what it cut.
    """
    _held[function.__code__] = 2
    return function


def waiting(function: Function) -> Function:
    """Let Ctrl-C be heard at once while a function waits for something of the user's, such as data."""
    _held[function.__code__] = 0
    return function


class Interrupt:
    """Ctrl-C inside a `with` block: noted, and heard between two runs of steps, by `check`.

    So it never leaves half-updated weights. Pressed again it is heard at once, for what does not come to
    an end, but for steps and other changes of a model (`undivided`). One inside another is the same one.
    In another thread than the main one, which gets no signals, and where the program has a handler of its
    own, nothing is done.
    """

    active: ClassVar["Interrupt | None"] = None

    def __init__(self):
        self.presses = 0
        self.cut = 0
        """The press that cut a step, if one has."""
        self.listens = False

    @classmethod
    def current(cls) -> "Interrupt":
        """Return the one whose `with` block this thread is in, or one that is never pressed."""
        is_main = threading.current_thread() is threading.main_thread()
        return cls.active if is_main and cls.active is not None else cls()

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread() or Interrupt.active is not None:
            return self.current()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)  # before it Ctrl-C may be raised here, after it not
            self.listens, Interrupt.active = True, self
        return self

    def __exit__(self, kind, error, traceback):
        if not self.listens:
            return
        Interrupt.active = None
        signal.signal(signal.SIGINT, signal.default_int_handler)  # after it Ctrl-C may be raised here
        if not isinstance(error, KeyboardInterrupt):
            self.check()  # it came too late for all other checks

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.presses += 1
        while frame is not None and frame.f_code not in _held:
            frame = frame.f_back
        held = 1 if frame is None else _held[frame.f_code]
        # After what cut a step only many more are heard: one of them would take the place of what it says.
        if self.presses <= (self.cut + 5 if self.cut else held):
            return
        if frame is None or held == 0:
            raise KeyboardInterrupt
        self.cut = self.presses
        raise KeyboardInterrupt(
            f"in the middle of {frame.f_code.co_qualname}: the weights may be those of half a step, so build the model "
            f"anew or load a saved one"
        )

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.presses:
            raise KeyboardInterrupt


_held[Interrupt.__enter__.__code__] = _held[Interrupt.__exit__.__code__] = math.inf


def interruptible(method: Function) -> Function:
    """Let Ctrl-C in a method be heard where the method checks for it, or when it is done."""

    @functools.wraps(method)
    def call(*arguments, **settings):
        with Interrupt():
            return method(*arguments, **settings)

    return call  # pyright: ignore[reportReturnType]
