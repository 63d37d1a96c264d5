"""Numbers that go wrong in `fit`: noticed without a look in any step, and undone.

A step is a function of weights, optimizer and batch, so it can be taken again. The watch keeps a copy
of them from a moment at which all was finite, and a journal of the steps since. The loss is read once
an epoch anyway: where it is not finite, or the weights are not, the steps of the journal are taken
again from the copy, to find the first that goes wrong. The model is left as it was before that step.
"""

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnx import tree
from nnx.callbacks import ProgressBar, TerminateOnNaN
from nnx.failures import NonFiniteError
from nnx.history import History

SECONDS_A_SNAPSHOT = 1.0
"""A copy older than this is made anew at the end of an epoch."""
SECONDS_A_LOOK = 10.0
"""Within an epoch the numbers are looked at as often."""
NUMBERS_KEPT, BATCHES_KEPT = 2**24, 4
"""Of a stream, batches are kept until they hold so many numbers (64 MiB in float32), but so many at least."""
BATCHES_SHARED = 32
"""Where several processes train together, so many batches of a stream: all look at the same step."""
STEPS_AGAIN = 64
"""Steps that are taken again at a time, before their numbers are looked at."""
SNAPSHOT_SHARE = 0.25
"""A copy that would take more than this share of the memory free on the device is kept on the host."""


class Snapshot:
    """A copy of all that training changes, on the device if it fits there with ease."""

    def __init__(self, model, carry: dict):
        self.model = model
        parts = {name: part for name, part in carry.items() if name != "slots"}
        parts |= dict(enumerate(carry["slots"]))
        self.slots = len(carry["slots"])
        self.parts = {name: self._kept(name, part, carry) for name, part in parts.items()}

    def _kept(self, name, part, carry):
        model = self.model
        if not _is_large(model, carry):
            return model.backend.snapshot(part)
        host = tree.map(model.backend.to_numpy, part)
        return lambda: model._to_device(host, packed=name not in ("state", "scale"))

    def carry(self) -> dict:
        """Return a carry of its own."""
        found = {name: copy() for name, copy in self.parts.items()}
        found["slots"] = [found.pop(index) for index in range(self.slots)]
        return found


def _is_large(model, carry) -> bool:
    free = model.backend.free_memory()
    if free is None:
        return False
    numbers = sum(math.prod(leaf.shape) for leaf in tree.leaves(carry["params"]))
    nbytes = numbers * (1 + len(carry["slots"])) * np.dtype(model.weight_dtype).itemsize
    return nbytes > SNAPSHOT_SHARE * free


@dataclass
class Run:
    """Steps that were taken: rows start, ..., stop - 1 of `rows`, which name the batches in `data`.

    Of a stream it is one step, and `data` its batch: then `rows` are on the host.
    """

    rows: dict
    data: dict
    start: int
    stop: int
    step: int
    """The number of the first of them since `compile`, counted from 0."""
    epoch: int
    step_of_epoch: int

    @property
    def is_one(self) -> bool:
        return "index" not in self.rows

    def again(self, steps, carry, start, stop) -> tuple:
        """Take some of the steps from a carry of one's own; return the new one and the sums."""
        if self.is_one:
            return steps.train_one(carry, None, self.rows, self.data)
        return steps.train(carry, None, self.rows, self.data, start, stop)

    def batch(self, steps, i) -> tuple[dict, dict]:
        """Return the batch of step `i`, and what the host computed for it."""
        rows = steps.backend.stage(self.rows) if self.is_one else self.rows
        numbers = {name: v[i] if isinstance(v, list) else v[i, ...] for name, v in rows.items()}
        return steps._take(numbers, self.data), numbers


class Watch:
    """Looks at the numbers of one `fit`."""

    def __init__(self, engine, callbacks):
        self.engine, self.model, self.backend = engine, engine.model, engine.backend
        self.is_shared = engine.communicator is not None
        self.stoppers = [c for c in callbacks.callbacks if isinstance(c, TerminateOnNaN)]
        # Callbacks may keep or save the weights: they are looked at before any of these is called.
        quiet = all(type(c) in (History, ProgressBar) for c in callbacks.callbacks)
        self.each_epoch = self.is_shared or not quiet
        self.snapshot: Snapshot | None = None
        self.journal: list[Run] = []
        self.numbers = 0
        self.kinds: list[str] | None = None
        """Of "params" and "state", those that the model has."""
        self.left: Any = None
        """The weights that the last step left."""
        self.is_unseen = self.is_over = self.has_warned = False
        self.next_snapshot = self.next_look = 0.0

    def begin_epoch(self, epoch: int) -> None:
        """Note that an epoch begins."""
        self.epoch, self.first_step = epoch, self.model.step

    def note(self, rows: dict, data: dict, start: int = 0, stop: int = 1) -> None:
        """Note steps that are about to be taken; see `Run`."""
        model = self.model
        if self.snapshot is None or model._params is not self.left[0] or model._state is not self.left[1]:
            self._begin()
        journal = self.journal
        if journal and journal[-1].rows is rows and journal[-1].stop == start:
            journal[-1].stop = stop
            return
        step = model.step
        journal.append(Run(rows, data, start, stop, step, self.epoch, step - self.first_step))
        if "index" not in rows:
            self.numbers += sum(math.prod(leaf.shape) for leaf in tree.leaves(data))

    def _begin(self):
        """Copy what there is: at the start, when all was found finite, and where a callback changed it."""
        self.snapshot, self.journal, self.numbers = Snapshot(self.model, self.model.carry), [], 0
        now = time.monotonic()
        self.next_snapshot, self.next_look = now + SECONDS_A_SNAPSHOT, now + SECONDS_A_LOOK

    def look_if_due(self, totals: dict) -> bool:
        """Look, after steps, if it is long ago or the journal full; return whether training is over."""
        self.left = self.model._params, self.model._state
        if self.is_shared:  # not by the clock, which is another in each process
            due = self.numbers and len(self.journal) >= BATCHES_SHARED
        else:
            due = self.numbers >= NUMBERS_KEPT and len(self.journal) >= BATCHES_KEPT
            due = due or time.monotonic() > self.next_look
        if due:
            sums = self.engine.of_all_ranks({"loss": totals["loss"]})
            read, *wrong = self.backend.read([sums["loss"], *self._probe()])
            self._judge(tree.leaves(read), wrong)
            self.snapshot = None
        return self.is_over

    def logs(self, totals: dict, samples: int, is_last: bool) -> dict[str, float]:
        """Return loss and metrics of an epoch, as `Engine.logs`; look at them, and now and then at the weights."""
        is_old = time.monotonic() > self.next_snapshot
        looks = is_last or is_old or self.each_epoch
        totals = self.engine.of_all_ranks(totals)
        read, *wrong = self.backend.read([totals, *(self._probe() if looks else [])])
        logs = self.engine.named(read, samples)
        self._judge([logs[name] for name in ("loss", *self.model.loss.parts)], wrong)
        self.is_unseen = not looks
        if is_old or self.is_shared:
            self.snapshot = None
        return logs

    def look_at_validation(self, logs: dict) -> None:
        """Warn once of a validation loss that is not finite, where the loss is."""
        if not math.isfinite(logs["val_loss"]) and not self.has_warned and not self.is_over:
            self.has_warned = True
            warnings.warn(
                f"val_loss is {logs['val_loss']} in epoch {self.epoch + 1}, while the loss is finite: training goes "
                f"on. Look for values in the validation data that are far from those trained on",
                stacklevel=4,
            )

    def look_at_the_end(self) -> None:
        """Look at the weights if those of the last epoch have not been looked at."""
        if self.is_unseen:
            self._judge([], self.backend.read(self._probe()))

    def _probe(self) -> list:
        """Return what tells whether the weights are finite, to be read."""
        return self._probe_of({"params": self.model._params, "state": self.model._state})

    def _probe_of(self, carry: dict) -> list:
        if self.kinds is None:
            self.kinds = [kind for kind in ("params", "state") if tree.leaves(carry[kind])]
        return [self.backend.zero_or_nan(carry[kind]) for kind in self.kinds]

    def _judge(self, losses, wrong) -> None:
        """Raise an error if a number is not finite; with `TerminateOnNaN`, tell that and end training."""
        if self.is_over or all(map(math.isfinite, (*losses, *wrong))):
            return
        fault = self._find()
        if not self.stoppers:
            raise NonFiniteError(fault)
        self.is_over = self.model.stop_training = True
        for callback in self.stoppers:
            callback.fault = fault

    def _find(self) -> str:
        """Take the steps of the journal again; leave the model as it was before the first that goes wrong."""
        from nnx.nonfinite import explain  # seldom needed

        assert self.snapshot is not None
        model, steps, first = self.model, self.engine.steps, self.journal[0]
        self._put_back(self.snapshot, first.step)
        carry = self.snapshot.carry()
        for run in self.journal:
            for start in range(run.start, run.stop, STEPS_AGAIN):
                stop = min(start + STEPS_AGAIN, run.stop)
                before = Snapshot(model, carry)
                carry, sums = run.again(steps, carry, start, stop)
                if self._is_finite(carry, sums):
                    continue
                carry = before.carry()
                for i in range(start, stop):
                    before = Snapshot(model, carry)
                    carry, sums = run.again(steps, carry, i, i + 1)
                    if not self._is_finite(carry, sums):
                        self._put_back(before, run.step + i - run.start)
                        return explain(model, run, i, carry, sums)
        return (
            f"the loss or the weights of epoch {self.epoch + 1} are not finite. Taken again, none of its steps went "
            f"wrong by itself: the sum of the losses is too large for {model.weight_dtype}, or the steps give other "
            f"numbers each time.\nThe model is as it was after step {first.step_of_epoch} of epoch {first.epoch + 1}."
        )

    def _put_back(self, snapshot: Snapshot, step: int) -> None:
        self.model.set_carry(snapshot.carry(), steps=step - self.model.step)
        self.left = self.model._params, self.model._state

    def _is_finite(self, carry, sums) -> bool:
        losses = self.engine.of_all_ranks({"loss": sums["loss"]})
        read = self.backend.read([losses, *self._probe_of(carry)])
        return all(math.isfinite(number) for values in read for number in tree.leaves(values))
