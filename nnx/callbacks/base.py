"""What a callback is: Keras's hooks, called around training."""

import contextlib
from typing import Any

from nnx import log
from nnx.errors import raised_by
from nnx.interrupt import undivided
from nnx.registry import Strict


class Callback(Strict):
    """Base of all callbacks: override the hooks you want.

    `logs` holds the numbers of the epoch so far, such as `logs["val_loss"]`. A callback that
    overrides `on_train_batch_begin` or `on_train_batch_end` makes training stop after each step
    to read the loss; without one, many steps run at a time.

    Examples
    --------
    >>> class Printer(Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         print(epoch, round(logs["loss"], 2))
    """

    model: Any = None
    params: dict[str, Any]
    first_rank_only = False
    """Where several processes train together, whether it is called in that of rank 0 alone: if it
    writes files, say. All others are called in each, with the same numbers, and decide alike."""

    keeps_weights = True
    """Whether it may keep or save the model's weights: `fit` then looks after each epoch whether they are
    finite, before it is called."""

    keeps: tuple[str, ...] = ()
    """Attributes that a training which is cut off and goes on gets back: numbers, text, lists and
    dicts of them, or a `model.snapshot()`. See `fit(resume=)`."""

    def __init__(self):
        self.params = {}

    def get_state(self) -> dict[str, Any]:
        """Return what `keeps` names; called after each epoch whose state is saved."""
        return {name: getattr(self, name) for name in self.keeps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what `get_state` returned; called after `on_train_begin` of a training that goes on."""
        for name in self.keeps:
            setattr(self, name, state[name])

    def set_model(self, model):
        """Receive the model; called before training."""
        self.model = model

    def set_params(self, params):
        """Receive `epochs`, `steps` (None if unknown), `do_validation` and others; called before training."""
        self.params = params

    def on_train_begin(self, logs=None):
        """Before the first epoch."""

    def on_train_end(self, logs=None):
        """After the last epoch, also if training was interrupted."""

    def on_epoch_begin(self, epoch, logs=None):
        """Before each epoch; epochs count from 0."""

    def on_epoch_end(self, epoch, logs=None):
        """After each epoch and its validation. What is put into `logs` is kept in the history."""

    def on_train_batch_begin(self, batch, logs=None):
        """Before each step."""

    def on_train_batch_end(self, batch, logs=None):
        """After each step; logs["loss"] is the mean of the epoch so far."""

    def on_progress(self, done, total):
        """Called a few times a second with the number of steps done and due (None if unknown)."""


BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end")


class CallbackList(Callback):
    """Several callbacks as one; those for the first rank only if this is it."""

    each_batch: bool
    begun: list[Callback]
    epoch: int | None

    def __init__(self, callbacks, rank: int = 0):
        super().__init__()
        self.callbacks = list(callbacks)
        self.begun = []
        self.epoch = None
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be nnx.callbacks.Callback objects, got {callback!r}")
            if idle := {name for name in dir(callback) if name.startswith("on_")} - set(dir(Callback)):
                known = ", ".join(sorted(name for name in dir(Callback) if name.startswith("on_")))
                log.warn(f"{type(callback).__name__}.{min(idle)} is never called. Hooks that are: {known}")
        self.each_batch = any(
            getattr(type(c), hook, None) is not getattr(Callback, hook) or hook in vars(c)
            for c in self.callbacks
            for hook in BATCH_HOOKS
        )
        if rank > 0:  # after `each_batch`, so that all ranks read the loss equally often
            self.callbacks = [c for c in self.callbacks if not c.first_rank_only]

    def _call(self, hook: str, *arguments) -> None:
        for callback in self.callbacks:
            self._call_one(callback, hook, *arguments)

    def _call_one(self, callback, hook: str, *arguments) -> None:
        try:
            getattr(callback, hook)(*arguments)
        except Exception as error:
            where = "" if self.epoch is None else f" in epoch {self.epoch + 1}"
            raised_by(error, "callback", callback, f".{hook}{where}")
            raise

    def set_model(self, model):
        self._call("set_model", model)

    def set_params(self, params):
        self._call("set_params", params)

    def on_train_begin(self, logs=None):
        for callback in self.callbacks:
            self._call_one(callback, "on_train_begin", logs)
            self.begun.append(callback)

    @undivided
    def on_train_end(self, logs=None):
        """Call all that have begun, also if one raises."""
        with contextlib.ExitStack() as stack:
            for callback in reversed(self.begun):
                stack.callback(self._call_one, callback, "on_train_end", logs)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._call("on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._call("on_epoch_end", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._call("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._call("on_train_batch_end", batch, logs)

    def on_progress(self, done, total):
        self._call("on_progress", done, total)


class LambdaCallback(Callback):
    """A callback made of functions: `LambdaCallback(on_epoch_end=lambda epoch, logs: ...)`."""

    other_arguments = tuple(hook for hook in vars(Callback) if hook.startswith("on_"))

    def __init__(self, **hooks):
        super().__init__()
        for name, function in hooks.items():
            if function is not None:
                setattr(self, name, function)
