"""Callbacks that tell how training goes: on the terminal, in a file, and when it goes wrong."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from nnx import log
from nnx.callbacks.base import Callback

SECONDS_TO_SEE = 0.1
"""An epoch that is over sooner needs no moving bar: its line of numbers is there already."""


class ProgressBar(Callback):
    """A progress bar while an epoch runs, and a line of numbers when it has ended.

    Parameters
    ----------
    bar : bool, optional
        Whether the moving bar is shown; by default on a terminal only. After an epoch that took less
        than a tenth of a second the next one has none.
    """

    first_rank_only = True
    keeps_weights = False

    def __init__(self, bar: bool | None = None):
        super().__init__()
        self.bar = sys.stdout.isatty() if bar is None else bar
        self._bar = None

    def on_train_begin(self, logs=None):
        self._last = math.inf  # seconds that the epoch before took

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
        numbers = "  ".join(f"{name} {format_number(value)}" for name, value in (logs or {}).items())
        epochs = str(self.params.get("epochs"))
        self._last = time.perf_counter() - self._start
        print(f"epoch {epoch + 1:>{len(epochs)}}/{epochs}  {numbers}  {self._last:.2f} s", flush=True)

    def on_train_end(self, logs=None):
        self._close()

    def _close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def format_number(value: float | list[float]) -> str:
    """Return a number in a width that keeps columns straight.

    >>> format_number(0.12345), format_number(1234.5), format_number(1e-6)
    ('0.1235', '1234.5000', '1.000e-06')
    """
    if isinstance(value, list):  # of a metric that has several
        return f"[{' '.join(map(format_number, value))}]"
    return f"{value:.3e}" if value != 0 and abs(value) < 1e-3 else f"{value:.4f}"


class CSVLogger(Callback):
    """Write the numbers of each epoch to a CSV file, a line an epoch, as they come.

    With `append` the lines follow those of the file, which must have the same columns.

    A training that goes on (`fit(resume=)`) goes on with the file: lines of epochs that are done again
    are taken off.
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
        self._told: set[str] = set()

    def on_train_begin(self, logs=None):
        path = Path(self.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._header = self._columns_of(path) if self.append and path.exists() else []
        keep = self.append or self.params.get("resumed")
        self._file = path.open("a" if keep else "w", newline="", encoding="utf-8")
        self._writer, self._told = None, set()

    def get_state(self):
        """Return the columns, and where the lines so far end in the file, which are on the disk then."""
        os.fsync(self._file.fileno())
        return {"columns": list(self._writer.fieldnames), "end": self._file.tell()}

    def set_state(self, state):
        """Go on after those lines."""
        names, end = state["columns"], state["end"]
        if not (
            isinstance(names, list)
            and all(type(name) is str for name in names)
            and type(end) is int
            and end >= 0
        ):
            raise ValueError(
                f"CSVLogger: columns and end of {self.filename} are damaged in the state: {names}, {end}"
            )
        if Path(self.filename).stat().st_size < state["end"]:
            raise ValueError(
                f"CSVLogger: {self.filename} is shorter than when the state of this training was saved: put back the "
                f"file, or train without resume"
            )
        self._file.seek(state["end"])
        self._file.truncate()
        self._writer = self._make_writer(state["columns"])

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
            if self.params.get("do_validation"):  # which may not happen in the first epoch
                measured = [
                    name for name in logs or {} if not name.startswith("val_") and name != "learning_rate"
                ]
                names += [f"val_{name}" for name in measured if f"val_{name}" not in row]
            if self._header and set(self._header) != set(names):
                raise ValueError(
                    f"CSVLogger: {self.filename} has the columns {', '.join(self._header)}, while this training "
                    f"reports {', '.join(names)}: append to a file of the same columns, or write to another one"
                )
            self._writer = self._make_writer(self._header or names)
            if not self._header:
                self._writer.writeheader()
        if left_out := row.keys() - set(self._writer.fieldnames) - self._told:
            self._told |= left_out
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

    It prints what the error would say. The weights are those of before the step that went wrong.
    """

    keeps_weights = False
    fault: str | None = None
    """What `fit` found, before `on_epoch_end`."""

    def on_train_begin(self, logs=None):
        self.fault = None

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss")
        if self.fault is not None:
            print(f"training stops: {self.fault}")
        elif loss is not None and not math.isfinite(loss):
            print(f"epoch {epoch + 1}: the loss is {loss}, training stops; try a smaller learning rate")
            self.model.stop_training = True
