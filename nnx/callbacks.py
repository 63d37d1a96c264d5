"""Callbacks: what happens around training, under Keras's names and hooks."""

import contextlib
import csv
import inspect
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Callback:
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

    def __init__(self):
        self.params = {}

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
    """Several callbacks as one."""

    def __init__(self, callbacks):
        super().__init__()
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be nnx.callbacks.Callback objects, got {callback!r}")
            if idle := {name for name in dir(callback) if name.startswith("on_")} - set(dir(Callback)):
                known = ", ".join(sorted(name for name in dir(Callback) if name.startswith("on_")))
                warnings.warn(
                    f"{type(callback).__name__}.{min(idle)} is never called. Hooks that are: {known}",
                    stacklevel=3,
                )
        self.each_batch = any(
            getattr(type(c), hook, None) is not getattr(Callback, hook) or hook in vars(c)
            for c in self.callbacks
            for hook in BATCH_HOOKS
        )

    def set_model(self, model):
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params):
        for callback in self.callbacks:
            callback.set_params(params)

    def on_train_begin(self, logs=None):
        for callback in self.callbacks:
            callback.on_train_begin(logs)

    def on_train_end(self, logs=None):
        with contextlib.ExitStack() as stack:  # all of them, also if one raises
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_train_end, logs)

    def on_epoch_begin(self, epoch, logs=None):
        for callback in self.callbacks:
            callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        for callback in self.callbacks:
            callback.on_epoch_end(epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)

    def on_progress(self, done, total):
        for callback in self.callbacks:
            callback.on_progress(done, total)


class _Monitor(Callback):
    """A callback that watches one number for getting better."""

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0):
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{type(self).__name__}: mode must be 'auto', 'min' or 'max', got {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)

    @property
    def rises(self) -> bool:
        """Whether larger is better: as said by `mode`, or for names of scores."""
        if self.mode != "auto":
            return self.mode == "max"
        return self.monitor.removeprefix("val_").startswith(
            ("acc", "auc", "precision", "recall", "f1", "r2")
        ) or ("accuracy" in self.monitor)

    @property
    def worst(self) -> float:
        return -math.inf if self.rises else math.inf

    def value(self, logs) -> float | None:
        """Return the number watched, or None, with a warning, if this epoch has none."""
        if self.monitor in (logs or {}):
            return logs[self.monitor]
        warnings.warn(
            f"{type(self).__name__} watches {self.monitor!r}, which this training does not report. It reports: "
            f"{', '.join(logs or {})}",
            stacklevel=2,
        )
        return None

    def is_better(self, value: float, best: float) -> bool:
        return value > best + self.min_delta if self.rises else value < best - self.min_delta


class EarlyStopping(_Monitor):
    """Stop when a number has not got better for some epochs.

    Parameters
    ----------
    monitor : str
        The number to watch, a key of the history.
    min_delta : float
        How much counts as better.
    patience : int
        Epochs without getting better after which training stops.
    verbose : int
        1 prints when it stops.
    mode : {"auto", "min", "max"}
        Whether smaller or larger is better; "auto" knows the usual names.
    baseline : float, optional
        Training stops if it is not better than this within `patience` epochs.
    restore_best_weights : bool
        Whether the weights of the best epoch are put back at the end.
    start_from_epoch : int
        Epochs to wait before watching.
    """

    def __init__(self, monitor: str = "val_loss", min_delta: float = 0.0, patience: int = 0, verbose: int = 0,
                 mode: str = "auto", baseline: float | None = None, restore_best_weights: bool = False,
                 start_from_epoch: int = 0):  # fmt: skip
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch

    def on_train_begin(self, logs=None):
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best = self.worst
        self.best_weights = None

    def on_epoch_end(self, epoch, logs=None):
        value = self.value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self._keep(epoch)
        self.wait += 1
        if self.is_better(value, self.best):
            self.best = value
            self._keep(epoch)
            if self.baseline is None or self.is_better(value, self.baseline):
                self.wait = 0
                return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def _keep(self, epoch):
        self.best_epoch = epoch
        if self.restore_best_weights:
            self.best_weights = self.model.snapshot()

    def on_train_end(self, logs=None):
        if self.stopped_epoch and self.verbose:
            print(f"epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                print(f"restoring the weights of the best epoch, {self.best_epoch + 1}")
            self.model.restore(self.best_weights)


class ModelCheckpoint(_Monitor):
    """Save the model after each epoch, or after each epoch that is the best so far.

    Parameters
    ----------
    filepath : str or Path
        May contain `{epoch}` (counted from 1) and names of the logs: `"net-{epoch:02d}-{val_loss:.3f}.nnx"`.
    save_best_only : bool
        Whether an epoch that is not better than all before is left out.
    save_weights_only : bool
        Whether architecture and optimizer are left out.
    """

    def __init__(self, filepath, monitor: str = "val_loss", verbose: int = 0, save_best_only: bool = False,
                 save_weights_only: bool = False, mode: str = "auto"):  # fmt: skip
        super().__init__(monitor, mode)
        self.filepath = filepath
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only

    def on_train_begin(self, logs=None):
        self.best = self.worst

    def on_epoch_end(self, epoch, logs=None):
        if self.save_best_only:
            value = self.value(logs)
            if value is None or not self.is_better(value, self.best):
                return
            self.best = value
        path = Path(os.fspath(self.filepath).format(epoch=epoch + 1, **(logs or {})))
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        if self.verbose:
            print(f"epoch {epoch + 1}: saved {path}")


class ReduceLROnPlateau(_Monitor):
    """Multiply the learning rate by `factor` when a number has not got better for `patience` epochs."""

    def __init__(self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, verbose: int = 0,
                 mode: str = "auto", min_delta: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0):  # fmt: skip
        super().__init__(monitor, mode, min_delta)
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be below 1, got {factor}")
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr

    def on_train_begin(self, logs=None):
        self.best, self.wait, self.cooldown_left = self.worst, 0, 0
        _require_plain_rate(self)

    def on_epoch_end(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        if logs is not None:
            logs["learning_rate"] = rate
        value = self.value(logs)
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
    """Set the learning rate before each epoch to `schedule(epoch, learning_rate)` or `schedule(epoch)`."""

    def __init__(self, schedule: Callable, verbose: int = 0):
        super().__init__()
        self.schedule = schedule
        self.verbose = verbose

    def on_train_begin(self, logs=None):
        _require_plain_rate(self)

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(self.model.optimizer.learning_rate)
        takes_rate = len(inspect.signature(self.schedule).parameters) > 1
        new = self.schedule(epoch, rate) if takes_rate else self.schedule(epoch)
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


class TerminateOnNaN(Callback):
    """Stop training when the loss is no longer finite; looked at once an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            print(f"epoch {epoch + 1}: the loss is {loss}, training stops; try a smaller learning rate")
            self.model.stop_training = True


class CSVLogger(Callback):
    """Write the numbers of each epoch to a CSV file, a line an epoch, as they come."""

    def __init__(self, filename, separator: str = ",", append: bool = False):
        super().__init__()
        self.filename = filename
        self.separator = separator
        self.append = append
        self._file: Any = None
        self._writer: Any = None

    def on_train_begin(self, logs=None):
        path = Path(self.filename)
        self._has_header = self.append and path.exists() and path.stat().st_size > 0
        self._file = path.open("a" if self.append else "w", newline="")
        self._writer = None

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch, **(logs or {})}
        if self._writer is None:
            names = list(row)
            if self.params.get("do_validation"):  # which may not happen in the first epoch
                measured = [
                    name for name in logs or {} if not name.startswith("val_") and name != "learning_rate"
                ]
                names += [f"val_{name}" for name in measured if f"val_{name}" not in row]
            self._writer = csv.DictWriter(
                self._file, names, restval="NA", delimiter=self.separator, extrasaction="ignore"
            )
            if not self._has_header:
                self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def on_train_end(self, logs=None):
        if self._file is not None:
            self._file.close()
            self._file = None


class LambdaCallback(Callback):
    """A callback made of functions: `LambdaCallback(on_epoch_end=lambda epoch, logs: ...)`."""

    def __init__(self, **hooks):
        super().__init__()
        for name, function in hooks.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                known = ", ".join(hook for hook in vars(Callback) if hook.startswith("on_"))
                raise ValueError(f"LambdaCallback: there is no hook {name!r}. Known: {known}")
            if function is not None:
                setattr(self, name, function)


class ProgressBar(Callback):
    """A progress bar while an epoch runs, and a line of numbers when it has ended.

    Parameters
    ----------
    bar : bool, optional
        Whether the moving bar is shown; by default on a terminal only.
    """

    def __init__(self, bar: bool | None = None):
        super().__init__()
        self.bar = sys.stdout.isatty() if bar is None else bar
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        if self.bar:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.params.get("steps"),
                desc=f"epoch {epoch + 1}/{self.params.get('epochs')}",
                unit="step",
                leave=False,
                file=sys.stdout,
                dynamic_ncols=True,
            )

    def on_progress(self, done, total):
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def on_epoch_end(self, epoch, logs=None):
        self._close()
        numbers = "  ".join(f"{name} {format_number(value)}" for name, value in (logs or {}).items())
        epochs = str(self.params.get("epochs"))
        seconds = time.perf_counter() - self._start
        print(f"epoch {epoch + 1:>{len(epochs)}}/{epochs}  {numbers}  {seconds:.2f} s", flush=True)

    def on_train_end(self, logs=None):
        self._close()

    def _close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def format_number(value: float) -> str:
    """Return a number in a width that keeps columns straight.

    >>> format_number(0.12345), format_number(1234.5), format_number(1e-6)
    ('0.1235', '1234.5000', '1.000e-06')
    """
    return f"{value:.3e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4f}"
