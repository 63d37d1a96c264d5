"""A callback that writes event files for TensorBoard."""

import importlib
import math
import time
from pathlib import Path

from nnx.callbacks.base import Callback
from nnx.schedules import rate_at

WRITERS = ("tensorboardX", "torch.utils.tensorboard")
"""Modules with a `SummaryWriter`, the smaller one first."""


class TensorBoard(Callback):
    """Write the results of each epoch as event files: `tensorboard --logdir logs` draws them.

    The names are Keras's: `epoch_loss`, `epoch_accuracy`, `epoch_learning_rate`, ... in the folder `train`,
    and those of validation in the folder `validation`. Each `fit` replaces the curves from its first epoch
    on; a resumed one (`fit(resume=)`) keeps the earlier epochs.

    Parameters
    ----------
    log_dir : str or Path
    histogram_freq : int
        Epochs between histograms of the weights; 0 for none.

    Raises
    ------
    ImportError
        If there is neither tensorboardX nor PyTorch with tensorboard: `pip install tensorboardX`.
    """

    first_rank_only = True

    def __init__(self, log_dir="logs", histogram_freq: int = 0):
        super().__init__()
        if histogram_freq < 0:
            raise ValueError(
                f"TensorBoard: histogram_freq must be 0 or a number of epochs, got {histogram_freq}"
            )
        self.log_dir = log_dir
        self.histogram_freq = histogram_freq

    def on_train_begin(self, logs=None):
        self._make_writer, self._writers = _writer(), {}

    def on_epoch_begin(self, epoch, logs=None):
        self._first = self._first if self._writers else epoch

    def on_epoch_end(self, epoch, logs=None):
        rate = rate_at(self.model.optimizer.learning_rate, self.model.step)
        logs = {"learning_rate": rate, **(logs or {})}
        for name, value in logs.items():
            folder = "validation" if name.startswith("val_") else "train"
            tag = f"epoch_{name.removeprefix('val_')}"
            is_list = isinstance(value, list)
            scalars = {f"{tag}_{i}": each for i, each in enumerate(value)} if is_list else {tag: value}
            for tag, each in scalars.items():
                self._in(folder).add_scalar(tag, each, epoch)
        if self.histogram_freq and (epoch + 1) % self.histogram_freq == 0:
            arrays = zip(self.model.weight_paths(), self.model.get_weights(), strict=True)
            for (_, path), values in arrays:
                if (finite := values[abs(values) < math.inf]).size:
                    self._in("train").add_histogram("/".join(path), finite, epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()

    def _in(self, folder):
        """Return the writer of a folder, which hides what an earlier run wrote from this epoch on."""
        if folder not in self._writers:
            # By default writers name a file by the second, and overwrite one of the same second.
            self._writers[folder] = self._make_writer(
                str(Path(self.log_dir) / folder), purge_step=self._first, filename_suffix=f".{time.time_ns()}"
            )
        return self._writers[folder]


def _writer():
    for name in WRITERS:
        try:
            return importlib.import_module(name).SummaryWriter
        except ImportError:
            continue
    raise ImportError("callbacks.TensorBoard needs a writer of event files: pip install tensorboardX")
