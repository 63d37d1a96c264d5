"""Callbacks that watch one number for getting better: early stopping and checkpoints."""

import math
import os
import warnings
from pathlib import Path

from nnx.callbacks.base import Callback
from nnx.resume import STATE


class Monitor(Callback):
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


class EarlyStopping(Monitor):
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

    keeps = ("wait", "stopped_epoch", "best_epoch", "best", "best_weights")

    def __init__(self, monitor: str = "val_loss", min_delta: float = 0.0, patience: int = 0, verbose: int = 0,
                 mode: str = "auto", baseline: float | None = None, restore_best_weights: bool = False,
                 start_from_epoch: int = 0):  # fmt: skip
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = self.keeps_weights = restore_best_weights
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


class ModelCheckpoint(Monitor):
    """Save the model after each epoch, or after each epoch that is the best so far.

    Parameters
    ----------
    filepath : str or Path
        May contain `{epoch}` (counted from 1) and names of the logs: `"net-{epoch:02d}-{val_loss:.3f}.nnx"`.
    save_best_only : bool
        Whether an epoch that is not better than all before is left out.
    save_weights_only : bool
        Whether architecture and optimizer are left out.
    save_state : bool
        Whether after each epoch the state of the whole training is written to `state.nnx` in the same
        folder, so that `fit(..., resume=folder)` can go on from there if this process is killed.
    """

    first_rank_only = True
    keeps = ("best",)

    def __init__(self, filepath, monitor: str = "val_loss", verbose: int = 0, save_best_only: bool = False,
                 save_weights_only: bool = False, mode: str = "auto", save_state: bool = False):  # fmt: skip
        super().__init__(monitor, mode)
        if save_state and "{" in str(Path(filepath).parent):
            raise ValueError(
                f"ModelCheckpoint: save_state=True needs one folder for all epochs, got {filepath}"
            )
        self.state_path = Path(filepath).parent / STATE if save_state else None
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
