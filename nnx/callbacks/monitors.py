"""Callbacks that watch one number for getting better: early stopping and checkpoints."""

import math
import os
from pathlib import Path

from nnx import log
from nnx.arguments import expect_range
from nnx.callbacks.base import Callback
from nnx.registry import REGISTRIES
from nnx.saving.resume import STATE


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
        """Whether larger is better: as said by `mode`, or by the metric of that name.

        Raises
        ------
        ValueError
            If neither says so.
        """
        if self.mode != "auto":
            return self.mode == "max"
        found = is_higher_better(self.monitor, self.model)
        if found is None:
            kind = type(self).__name__
            raise ValueError(
                f"{kind}: whether a larger or a smaller {self.monitor!r} is better is not known: it is neither a loss "
                f"nor of a metric that has higher_is_better. Say so by mode='max' or mode='min'"
            )
        return found

    def value(self, epoch: int, logs) -> float | None:
        """Return the number watched, or None, with a warning unless it comes with a later validation."""
        if self.monitor in (logs or {}):
            value = logs[self.monitor]
            if isinstance(value, (list, tuple)):
                raise ValueError(
                    f"{type(self).__name__} watches {self.monitor!r}, which has {len(value)} values: give the "
                    f"metric average='macro', or watch another number"
                )
            return value
        is_validated = (epoch + 1) % self.params.get("validation_freq", 1) == 0
        if self.monitor.startswith("val_") and self.params.get("do_validation") and not is_validated:
            return None
        log.warn(
            f"{type(self).__name__} watches {self.monitor!r}, which this training does not report. It reports: "
            f"{', '.join(logs or {})}"
        )
        return None

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a number is better than the best one so far, None if there is none."""
        if best is None:
            best = -math.inf if self.rises else math.inf
        return value > best + self.min_delta if self.rises else value < best - self.min_delta


def is_higher_better(name: str, model=None) -> bool | None:
    """Return whether larger numbers of this name in the logs are better; None if that is not known.

    The metric of the model that has the name says so, else the one that is registered under it.
    """
    name = name.removeprefix("val_")
    if name in ("loss", *(() if model is None else model.loss.parts)):
        return False
    for metric, _ in () if model is None else model.metrics_used:
        if metric.name == name:
            return metric.higher_is_better
    return getattr(REGISTRIES["metric"].known(name), "higher_is_better", None)


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
        Whether smaller or larger is better. "auto" asks the metric; a loss is to be small. For a metric
        of your own without `higher_is_better`, or a number that a callback adds, say which.
    baseline : float, optional
        Training stops if it is not better than this within `patience` epochs.
    restore_best_weights : bool
        Whether the weights of the best epoch are put back at the end.
    start_from_epoch : int
        Epochs to wait before watching.
    """

    keeps = ("wait", "stopped_epoch", "best_epoch", "best", "best_weights")
    wait: int
    """Epochs since it was better."""
    stopped_epoch: int
    best_epoch: int
    best: float | None
    """The best number of this training so far."""
    best_weights: dict | None

    def __init__(self, monitor: str = "val_loss", min_delta: float = 0.0, patience: int = 0, verbose: int = 0,
                 mode: str = "auto", baseline: float | None = None, restore_best_weights: bool = False,
                 start_from_epoch: int = 0):  # fmt: skip
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = self.keeps_weights = restore_best_weights
        expect_range(self, at_least=0, patience=patience, start_from_epoch=start_from_epoch)
        self.start_from_epoch = start_from_epoch
        self._begin()

    def _begin(self):
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best = self.best_weights = None

    def on_train_begin(self, logs=None):
        self._begin()

    def on_epoch_end(self, epoch, logs=None):
        value = self.value(epoch, logs)
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
    mode : {"auto", "min", "max"}
        As for `EarlyStopping`.
    initial_value_threshold : float, optional
        What the first model must be better than to be saved. After that `best` counts, which is kept from
        one `fit` to the next: a worse model does not replace the file.
    save_state : bool
        Whether after each epoch the state of the whole training is written to `state.nnx` in the same
        folder, so that `fit(..., resume=folder)` can go on from there if this process is killed.
    """

    first_rank_only = True
    keeps = ("best",)
    best: float | None
    """The best number so far, in all trainings with this callback."""
    state_path: Path | None

    def __init__(self, filepath, monitor: str = "val_loss", verbose: int = 0, save_best_only: bool = False,
                 save_weights_only: bool = False, mode: str = "auto",
                 initial_value_threshold: float | None = None, save_state: bool = False):  # fmt: skip
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
        self.best = self.initial_value_threshold = initial_value_threshold

    def on_epoch_end(self, epoch, logs=None):
        if self.save_best_only:
            value = self.value(epoch, logs)
            if value is None or not self.is_better(value, self.best):
                return
            self.best = value
        path = self._path({**(logs or {}), "epoch": epoch + 1})
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        if self.verbose:
            print(f"epoch {epoch + 1}: saved {path}")

    def _path(self, numbers: dict) -> Path:
        try:
            return Path(os.fspath(self.filepath).format(**numbers))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"ModelCheckpoint: filepath {os.fspath(self.filepath)!r} cannot be filled in ({error}). Epoch "
                f"{numbers['epoch']} reports {', '.join(numbers)}"
            ) from None
