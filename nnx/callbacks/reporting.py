"""Callbacks that report on training: a progress bar, a CSV file, and a stop when the loss is nan."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from nnx import log
from nnx.callbacks.base import Callback

SECONDS_TO_SEE = 0.1
"""A shorter epoch needs no moving bar: its line of results appears at once."""


class ProgressBar(Callback):
    """A progress bar while an epoch runs, and a line of results at its end.

    Parameters
    ----------
    bar : bool, optional
        Whether the moving bar is shown; by default only on a terminal. An epoch that follows one of less
        than a tenth of a second has no bar.
    """

    first_rank_only = True
    keeps_weights = False

    def __init__(self, bar: bool | None = None):
        super().__init__()
        self.bar = sys.stdout.isatty() if bar is None else bar
        self._bar = None

    def on_train_begin(self, logs=None):
        self._last = math.inf  # duration of the previous epoch in seconds

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()
        if self.bar and self._last >= SECONDS_TO_SEE:
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
        results = "  ".join(f"{name} {format_number(value)}" for name, value in (logs or {}).items())
        epochs = str(self.params.get("epochs"))
        self._last = time.perf_counter() - self._start
        print(f"epoch {epoch + 1:>{len(epochs)}}/{epochs}  {results}  {self._last:.2f} s", flush=True)

    def on_train_end(self, logs=None):
        self._close()

    def _close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def format_number(value: float | list[float]) -> str:
    """Return a number as text of constant width.

    >>> format_number(0.12345), format_number(1234.5), format_number(1e-6)
    ('0.1235', '1234.5000', '1.000e-06')
    """
    if isinstance(value, list):  # of a metric with several values
        return f"[{' '.join(map(format_number, value))}]"
    return f"{value:.3e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4f}"


class CSVLogger(Callback):
    """Write the results of each epoch to a CSV file, one line an epoch.

    With `append` the lines are added to an existing file, which must have the same columns. A resumed
    training (`fit(resume=)`) continues the file, and first removes the lines of epochs that it repeats.
    """

    first_rank_only = True
    keeps_weights = False
    keeps = ("columns", "end")

    def __init__(self, filename, separator: str = ",", append: bool = False):
        super().__init__()
        self.filename = filename
        self.separator = separator
        self.append = append
        self._file: Any = None
        self._writer: Any = None
        self._warned: set[str] = set()

    def on_train_begin(self, logs=None):
        path = Path(self.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._header = self._columns_of(path) if self.append and path.exists() else []
        keep = self.append or self.params.get("resumed")
        self._file = path.open("a" if keep else "w", newline="", encoding="utf-8")
        self._writer, self._warned = None, set()

    def get_state(self):
        """Flush the file to the disk; return its columns and its length."""
        os.fsync(self._file.fileno())
        return {"columns": list(self._writer.fieldnames), "end": self._file.tell()}

    def set_state(self, state):
        """Cut the file at the saved length and continue there."""
        names, end = state["columns"], state["end"]
        are_names = isinstance(names, list) and all(type(name) is str for name in names)
        if not (are_names and type(end) is int and end >= 0):
            raise ValueError(
                f"CSVLogger: columns and end of {self.filename} are damaged in the state: {names}, {end}"
            )
        if Path(self.filename).stat().st_size < end:
            raise ValueError(
                f"CSVLogger: {self.filename} is shorter than when the state of this training was saved: put back the "
                f"file, or train without resume"
            )
        self._file.seek(end)
        self._file.truncate()
        self._writer = self._make_writer(names)

    def _columns_of(self, path) -> list[str]:
        import csv

        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file, delimiter=self.separator), [])

    def _make_writer(self, names):
        import csv

        return csv.DictWriter(
            self._file, names, restval="NA", delimiter=self.separator, extrasaction="ignore"
        )

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch, **(logs or {})}
        if self._writer is None:
            names = list(row)
            if self.params.get("do_validation"):  # maybe not yet in the first epoch
                others = ("learning_rate", *(name for name in logs or {} if name.startswith("val_")))
                expected = [f"val_{name}" for name in logs or {} if name not in others]
                names += [name for name in expected if name not in row]
            if self._header and set(self._header) != set(names):
                raise ValueError(
                    f"CSVLogger: {self.filename} has the columns {', '.join(self._header)}, while this training "
                    f"reports {', '.join(names)}: append to a file of the same columns, or write to another one"
                )
            self._writer = self._make_writer(self._header or names)
            if not self._header:
                self._writer.writeheader()
        if left_out := row.keys() - set(self._writer.fieldnames) - self._warned:
            self._warned |= left_out
            log.warn(
                f"CSVLogger: epoch {epoch + 1} reports {', '.join(sorted(left_out))}, for which {self.filename} has no "
                f"column, as the first epoch did not report it: it is left out of the file"
            )
        self._writer.writerow(row)
        self._file.flush()

    def on_train_end(self, logs=None):
        if self._file is not None:
            self._file.close()
            self._file = None


class TerminateOnNaN(Callback):
    """Stop training when the loss or the weights are no longer finite, in place of `nnx.NonFiniteError`.

    It prints the message of that error. The model keeps its weights from before the step that failed.
    """

    keeps_weights = False
    fault: str | None = None
    """The message, which `fit` sets before `on_epoch_end`."""

    def on_train_begin(self, logs=None):
        self.fault = None

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss")
        if self.fault is not None:
            print(f"training stops: {self.fault}")
        elif loss is not None and not math.isfinite(loss):
            print(f"epoch {epoch + 1}: the loss is {loss}, training stops; try a smaller learning rate")
            self.model.stop_training = True
