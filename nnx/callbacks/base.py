"""The base class of callbacks: Keras's hooks, called during training."""

import contextlib
from typing import Any

from nnx import log
from nnx.errors import raised_by
from nnx.interrupt import undivided
from nnx.registry import Strict


class Callback(Strict):
    """Base of all callbacks: override the hooks you want.

    `logs` has the loss and metrics of the epoch so far, such as `logs["val_loss"]`. A callback that
    overrides `on_train_batch_begin` or `on_train_batch_end` makes training read the loss after each
    step; without one, many steps run in one call.

    Examples
    --------
    >>> class Printer(Callback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         print(epoch, round(logs["loss"], 2))
    """

    model: Any = None
    params: dict[str, Any]
    first_rank_only = False
    """Whether only the process of rank 0 calls it when several train together, because it writes files,
    for example. All processes call other callbacks, with the same values."""

    keeps_weights = True
    """Whether it may keep or save the model's weights: `fit` then checks after each epoch that they are
    finite, before it calls the callback."""

    keeps: tuple[str, ...] = ()
    """Attributes that are saved and restored by `fit(resume=)`: numbers, text, lists and dicts of them, or
    a `model.snapshot()`."""

    def __init__(self):
        self.params = {}

    def get_state(self) -> dict[str, Any]:
        """Return the attributes in `keeps`; called after each epoch whose state is saved."""
        return {name: getattr(self, name) for name in self.keeps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_state`; called after `on_train_begin` of a resumed training."""
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
        """After each epoch and its validation. Values that are added to `logs` appear in the history."""

    def on_train_batch_begin(self, batch, logs=None):
        """Before each step."""

    def on_train_batch_end(self, batch, logs=None):
        """After each step; logs["loss"] is the mean of the epoch so far."""

    def on_progress(self, done, total):
        """Called a few times a second with the number of steps done, and of all steps (None if unknown)."""


BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end")


class CallbackList(Callback):
    """Several callbacks as one; ranks above 0 leave out those with `first_rank_only`."""

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
        """Call all callbacks whose `on_train_begin` has returned, even if one raises."""
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
    """A callback that calls functions: `LambdaCallback(on_epoch_end=lambda epoch, logs: ...)`."""

    other_arguments = tuple(hook for hook in vars(Callback) if hook.startswith("on_"))

    def __init__(self, **hooks):
        super().__init__()
        for name, function in hooks.items():
            if function is not None:
                setattr(self, name, function)
