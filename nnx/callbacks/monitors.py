"""Callbacks that watch whether a metric improves: early stopping and checkpoints."""

import math
import os
from pathlib import Path

from nnx import log
from nnx.arguments import expect_range
from nnx.callbacks.base import Callback
from nnx.registry import REGISTRIES
from nnx.saving.resume import STATE


class Monitor(Callback):
    """Base of callbacks that watch whether a metric improves."""

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0):
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{type(self).__name__}: mode must be 'auto', 'min' or 'max', got {mode!r}")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)

    @property
    def rises(self) -> bool:
        """Whether larger is better, by `mode` or by the metric of that name.

        Raises
        ------
        ValueError
            If neither decides it.
        """
        if self.mode != "auto":
            return self.mode == "max"
        rises = is_higher_better(self.monitor, self.model)
        if rises is None:
            kind = type(self).__name__
            raise ValueError(
                f"{kind}: whether a larger or a smaller {self.monitor!r} is better is not known: it is neither a loss "
                f"nor of a metric that has higher_is_better. Say so by mode='max' or mode='min'"
            )
        return rises

    def value(self, epoch: int, logs) -> float | None:
        """Return the watched value; if there is none, return None, and warn unless this epoch is not validated."""
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
        """Whether a value is better than the best so far, or there is no best."""
        if best is None:
            best = -math.inf if self.rises else math.inf
        return value > best + self.min_delta if self.rises else value < best - self.min_delta


def is_higher_better(name: str, model=None) -> bool | None:
    """Return whether larger values of a metric are better; None if that is not known.

    The model's metric of this name decides, or else the registered one.
    """
    name = name.removeprefix("val_")
    if name in ("loss", *(() if model is None else model.loss.parts)):
        return False
    for metric, _ in () if model is None else model.metrics_used:
        if metric.name == name:
            return metric.higher_is_better
    return getattr(REGISTRIES["metric"].known(name), "higher_is_better", None)


class EarlyStopping(Monitor):
    """Stop training when a metric has not improved for some epochs.

    Parameters
    ----------
    monitor : str
        The metric to watch, a key of the history.
    min_delta : float
        The smallest change that counts as an improvement.
    patience : int
        Epochs without improvement after which training stops.
    verbose : int
        1 prints a line when training stops.
    mode : {"auto", "min", "max"}
        Whether smaller or larger is better. "auto" asks the metric; a smaller loss is better. It is needed
        for your own metric without `higher_is_better`, and for a value that a callback adds.
    baseline : float, optional
        Training stops if the metric is not better than this within `patience` epochs.
    restore_best_weights : bool
        Whether to restore the weights of the best epoch at the end.
    start_from_epoch : int
        Epochs to wait before watching.
    """

    keeps = ("wait", "stopped_epoch", "best_epoch", "best", "best_weights")
    wait: int
    """Epochs since the last improvement."""
    stopped_epoch: int
    best_epoch: int
    best: float | None
    """The best value of this training so far."""
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
        EarlyStopping.on_train_begin(self)

    def on_train_begin(self, logs=None):
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best = self.best_weights = None

    def on_epoch_end(self, epoch, logs=None):
        value = self.value(epoch, logs)
        if value is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self._keep_weights(epoch)
        self.wait += 1
        if self.is_better(value, self.best):
            self.best = value
            self._keep_weights(epoch)
            if self.baseline is None or self.is_better(value, self.baseline):
                self.wait = 0
                return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def _keep_weights(self, epoch):
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
    """Save the model after each epoch, or only after the best epochs so far.

    Parameters
    ----------
    filepath : str or Path
        May contain `{epoch}` (counted from 1) and names of the logs: `"net-{epoch:02d}-{val_loss:.3f}.nnx"`.
    save_best_only : bool
        Whether to save only an epoch that is better than all earlier ones.
    save_weights_only : bool
        Whether to save weights without architecture and optimizer.
    mode : {"auto", "min", "max"}
        As for `EarlyStopping`.
    initial_value_threshold : float, optional
        The first model is saved only if it is better than this. `best` is kept from one `fit` to the next:
        a worse model does not replace the file.
    save_state : bool
        Whether to write the state of the whole training to `state.nnx` in the same folder after each epoch,
        so that `fit(..., resume=folder)` can continue from there if this process is killed.
    """

    first_rank_only = True
    keeps = ("best",)
    best: float | None
    """The best value so far, in all trainings with this callback."""
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

    def _path(self, values: dict) -> Path:
        try:
            return Path(os.fspath(self.filepath).format(**values))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"ModelCheckpoint: filepath {os.fspath(self.filepath)!r} cannot be filled in ({error}). Epoch "
                f"{values['epoch']} reports {', '.join(values)}"
            ) from None
