"""Who raised an error: a note on it names the callback, layer, loss, metric or schedule.

The error stays what it is; Python shows its notes below its message.
"""

from typing import Any


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
