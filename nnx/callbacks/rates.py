"""Callbacks that set the learning rate."""

import inspect
from collections.abc import Callable

from nnx.arguments import expect_range
from nnx.callbacks.base import Callback
from nnx.callbacks.monitors import Monitor
from nnx.schedules import is_rate


class ReduceLROnPlateau(Monitor):
    """Multiply the learning rate by `factor` when a metric has not improved for `patience` epochs."""

    keeps_weights = False
    keeps = ("best", "wait", "cooldown_left")
    best: float | None
    wait: int
    cooldown_left: int

    def __init__(self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, verbose: int = 0,
                 mode: str = "auto", min_delta: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0):  # fmt: skip
        super().__init__(monitor, mode, min_delta)
        expect_range(self, at_least=0, below=1, factor=factor)
        expect_range(self, at_least=0, patience=patience, cooldown=cooldown, min_lr=min_lr)
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.best, self.wait, self.cooldown_left = None, 0, 0

    def on_train_begin(self, logs=None):
        self.best, self.wait, self.cooldown_left = None, 0, 0
        _require_plain_rate(self)

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        if logs is not None:
            logs["learning_rate"] = rate
        value = self.value(epoch, logs)
        if value is None:
            return
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.wait = 0
        if self.is_better(value, self.best):
            self.best, self.wait = value, 0
        elif self.cooldown_left <= 0:
            self.wait += 1
            if self.wait >= self.patience and rate > self.min_lr:
                new = max(rate * self.factor, self.min_lr)
                self.model.optimizer.learning_rate = new
                self.cooldown_left, self.wait = self.cooldown, 0
                if self.verbose:
                    print(f"epoch {epoch + 1}: learning rate reduced to {new:g}")


class LearningRateScheduler(Callback):
    """Set the learning rate before each epoch to `schedule(epoch, learning_rate)` or `schedule(epoch)`.

    Raises
    ------
    ValueError
        In `fit`, if the schedule does not return a finite number of 0 or more.
    """

    keeps_weights = False

    def __init__(self, schedule: Callable, verbose: int = 0):
        super().__init__()
        if not callable(schedule):
            raise TypeError(
                f"LearningRateScheduler: schedule must be a function of the epoch and the learning rate, "
                f"got {schedule!r}"
            )
        self.schedule = schedule
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        _require_plain_rate(self)

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        takes_rate = len(inspect.signature(self.schedule).parameters) > 1
        new = self.schedule(epoch, rate) if takes_rate else self.schedule(epoch)
        if not is_rate(new):
            name = getattr(self.schedule, "__name__", type(self.schedule).__name__)
            raise ValueError(
                f"LearningRateScheduler: {name}({epoch}) must return a learning rate, a finite number of 0 or more, "
                f"got {new!r}" + (": does it lack a return?" if new is None else "")
            )
        self.model.optimizer.learning_rate = float(new)
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate set to {new:g}")

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def _require_plain_rate(callback):
    rate = callback.model.optimizer.learning_rate
    if callable(rate):
        raise ValueError(
            f"{type(callback).__name__} sets the learning rate, but the optimizer's is a schedule, {rate!r}: "
            f"use one or the other"
        )
