"""Numbers that go wrong in `fit`: noticed without a look in any step, and undone.

A step is a function of weights, optimizer and batch, so it can be taken again. The watch keeps a copy
of them from a moment at which all was finite, and a journal of the steps since. The loss is read once
an epoch anyway: where it is not finite, or the weights are not, the steps of the journal are taken
again from the copy, to find the first that goes wrong. The model is left as it was before that step.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nnx import tree
from nnx.callbacks import TerminateOnNaN
from nnx.errors import NonFiniteError

SECONDS_A_SNAPSHOT, RUNS_KEPT = 1.0, 64
"""A copy older than this, or than so many runs of steps, is made anew at the end of an epoch."""
SECONDS_A_LOOK = 10.0
"""Within an epoch the numbers are looked at as often."""
NUMBERS_KEPT, BATCHES_KEPT = 2**22, 4
"""Of a stream, batches are kept until they hold so many numbers (16 MiB in float32), but so many at least."""
BATCHES_SHARED = 32
"""Where several processes train together, so many batches of a stream: all look at the same step."""
STEPS_AGAIN = 64
"""Steps that are taken again at a time, before their numbers are looked at."""
SNAPSHOT_SHARE, SMALL = 0.25, 2**20
"""A copy that would take more than this share of the memory free on the device is kept on the host, unless it
is of fewer bytes."""
BATCHES_SHARE, FEW_NUMBERS = 0.125, 2**16
"""The share of that memory for the batches of a stream that are kept, which may be so many numbers in any case."""


class Snapshot:
    """A copy of all that training changes, on the device if it fits there with ease."""

    def __init__(self, model, carry: dict):
        self.model = model
        parts = {name: part for name, part in carry.items() if name != "slots"}
        parts |= dict(enumerate(carry["slots"]))
        self.slots = len(carry["slots"])
        keep = self._on_host if _is_large(model, carry) else self._on_device
        self.parts = {name: keep(name, part) for name, part in parts.items()}

    def _on_device(self, name, part):
        return self.model.backend.snapshot(part)

    def _on_host(self, name, part):
        host = tree.map(self.model.backend.to_numpy, part)
        return lambda: self.model._to_device(host, packed=name not in ("state", "scale"))

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
    return nbytes > max(SMALL, SNAPSHOT_SHARE * free)


class Run(NamedTuple):
    """Steps to be taken: rows start, ..., stop - 1 of `rows`, which number those of `samples` in each batch.

    Without numbers ("index") a step takes all samples as they lie.
    Of a stream it is one step, and `samples` its batch: then `rows` are on the host.
    """

    rows: dict
    samples: dict
    start: int
    stop: int
    step: int
    """The number of the first of them since `compile`, counted from 0."""
    epoch: int
    first_step: int
    """That of the epoch's first step."""
    of_stream: bool = False
    """Whether `samples` are one batch of a stream."""

    def again(self, steps, carry, start, stop) -> tuple:
        """Take some of the steps from a carry of one's own; return the new one and the sums."""
        if self.of_stream:
            return steps.train_one(carry, None, self.rows, {"samples": self.samples})
        return steps.train(carry, None, self.rows, {"samples": self.samples}, start, stop)

    def batch(self, steps, i) -> tuple[dict, dict]:
        """Return the batch of row `i`, and what the host computed for it."""
        rows = steps.backend.stage(self.rows) if self.of_stream else self.rows
        numbers = {name: v[i] if isinstance(v, list) else v[i, ...] for name, v in rows.items()}
        return steps.backend.batch(numbers, {"samples": self.samples})["samples"], numbers

    def where(self, i) -> str:
        """Return which step the one of row `i` is, in words."""
        step = self.step + i - self.start
        return f"epoch {self.epoch + 1}, step {step - self.first_step + 1} (step {step + 1} since compile)"


class Epochs(NamedTuple):
    """Steps from `step` on whose rows can be made again: kept, they would take new memory in each epoch."""

    step: int
    epoch: int
    """That of `step`."""
    first_step: int
    """That of the epoch's first step."""
    settings: dict
    """Those of the optimizer."""


class Watch:
    """Looks at the numbers of one `fit`."""

    def __init__(self, engine, callbacks):
        self.engine, self.model, self.backend = engine, engine.model, engine.backend
        self.is_shared = engine.communicator is not None
        self.stoppers = [c for c in callbacks.callbacks if isinstance(c, TerminateOnNaN)]
        # The weights are looked at before a callback is called that may keep or save them.
        self.each_epoch = self.is_shared or any(c.keeps_weights for c in callbacks.callbacks)
        self.snapshot: Snapshot | None = None
        self.journal: list[Run | Epochs] = []
        """The steps since the snapshot."""
        self.rows_again: Callable | None = None
        """`rows_again(step)` gives (rows, samples, stop, step) of each `Run` of an epoch that begins at a step."""
        self.settings: dict = {}
        self.numbers = self.numbers_a_sample = self.most_numbers = 0
        self.kinds: list[str] | None = None
        """Of "params" and "state", those that the model has."""
        self.left: Any = None
        """The carry that the last step left: other weights are of a callback."""
        self.steps: Any = None
        """The step functions that the steps of the journal are taken by."""
        self.is_unseen = self.is_over = self.has_warned = False
        self.next_snapshot = self.next_look = math.inf

    def begin_epoch(self, epoch: int) -> None:
        """Note that an epoch begins, after callbacks."""
        self.epoch, self.first_step = epoch, self.model.step
        if self.rows_again is None:
            return
        if self.snapshot is None or self._is_other():
            self._begin()
        elif self._has_other_settings():
            self._note_settings()

    def note(self, rows: dict, samples: dict, steps: int = 1, of_stream: bool = False) -> None:
        """Note steps that are about to be taken; see `Run`."""
        if self.rows_again is None:
            if self.snapshot is None or self._is_other():
                self._begin()
            step = self.model.step
            self.journal.append(Run(rows, samples, 0, steps, step, self.epoch, self.first_step, of_stream))

    def _is_other(self) -> bool:
        """Whether a callback has set other weights than the last step left, or other settings of the layers."""
        model, left = self.model, self.left
        is_set = model._params is not left["params"] or model._state is not left["state"]
        return is_set or self.engine.steps is not self.steps

    def _has_other_settings(self) -> bool:
        """Whether a callback has changed the optimizer, such as its learning rate."""
        known = self.settings
        return any(known.get(name, self) is not value for name, value in vars(self.model.optimizer).items())

    def _begin(self):
        """Copy what there is: at the start, when all was found finite, and where a callback changed it."""
        self.left = carry = self.model.carry
        self.steps = self.engine.steps
        self.snapshot, self.journal, self.numbers = Snapshot(self.model, carry), [], 0
        free = self.backend.free_memory()
        self.most_numbers = NUMBERS_KEPT
        if free is not None:
            self.most_numbers = min(NUMBERS_KEPT, max(FEW_NUMBERS, int(BATCHES_SHARE * free) // 4))
        now = time.monotonic()
        self.next_snapshot = now + SECONDS_A_SNAPSHOT
        # Not by the clock where several processes train together: it is another in each.
        self.next_look = math.inf if self.is_shared else now + SECONDS_A_LOOK
        if self.rows_again is not None:
            self._note_settings()

    def _note_settings(self):
        self.settings = dict(vars(self.model.optimizer))
        self.journal.append(Epochs(self.model.step, self.epoch, self.first_step, self.settings))

    def note_batch(self, numbers: dict, batch: dict) -> None:
        """Note a step on a batch of a stream."""
        self.note(numbers, batch, of_stream=True)
        if self.numbers_a_sample == 0:
            self.numbers_a_sample = sum(math.prod(leaf.shape[1:]) for leaf in tree.leaves(batch))
        self.numbers += self.numbers_a_sample * batch["weight"].shape[0]

    def look_at_batches(self, totals: dict) -> bool:
        """Look if too many batches are kept; return whether training is over."""
        if self.is_shared:
            return len(self.journal) >= BATCHES_SHARED and self.look(totals)
        return self.numbers >= self.most_numbers and len(self.journal) >= BATCHES_KEPT and self.look(totals)

    def look(self, totals: dict) -> bool:
        """Look at the loss and the weights now; return whether training is over."""
        sums = self.engine.of_all_ranks({"loss": totals["loss"]})
        read, *wrong = self.backend.read([sums["loss"], *self._probe()])
        self._judge(tree.leaves(read), wrong)
        run, step = self.journal[-1], self.model.step
        self._begin()
        if isinstance(run, Run) and (start := run.start + step - run.step) < run.stop:  # the rest is to come
            self.journal = [run._replace(start=start, step=step)]
        return self.is_over

    def logs(self, totals: dict, samples: int, is_last: bool) -> dict[str, float]:
        """Return loss and metrics of an epoch, as `Engine.logs`; look at them, and now and then at the weights."""
        is_old = len(self.journal) >= RUNS_KEPT or time.monotonic() > self.next_snapshot
        if not (is_old or is_last or self.each_epoch):
            logs, wrong = self.engine.logs(totals, samples), []
        else:
            read, *wrong = self.backend.read([self.engine.of_all_ranks(totals), *self._probe()])
            logs = self.engine.named(read, samples)
        if wrong or not math.isfinite(logs["loss"]):  # no part of the loss goes wrong without it
            self._judge((logs["loss"],), wrong)
        self.is_unseen = not wrong
        if is_old or self.is_shared:
            self.snapshot, self.journal = None, []
        return logs

    def look_at_validation(self, logs: dict) -> None:
        """Warn once of a validation loss that is not finite, where the loss is."""
        if not math.isfinite(logs["val_loss"]) and not self.has_warned and not self.is_over:
            self.has_warned = True
            warnings.warn(
                f"val_loss is {logs['val_loss']} in epoch {self.epoch + 1}, while the loss is finite: training goes "
                f"on. Look for values in the validation data that are far from those trained on",
                stacklevel=7,
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
        from nnx.inspect.nonfinite import explain  # seldom needed

        assert self.snapshot is not None
        model, steps, taken = self.model, self.steps, self.model.step
        first = self.journal[0]
        self._put_back(self.snapshot, first.step)
        carry = self.snapshot.carry()
        for run in self._runs(taken):
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
            f"numbers each time.\nThe model is as it was before step {first.step + 1} since compile."
        )

    def _runs(self, taken: int) -> Iterator[Run]:
        """Yield the runs of the journal up to step `taken`; those that are not kept are made again."""
        ends = [entry.step for entry in self.journal[1:]] + [taken]
        for entry, end in zip(self.journal, ends, strict=True):
            if isinstance(entry, Run):
                yield entry._replace(stop=min(entry.stop, entry.start + end - entry.step))
                continue
            first, epoch = entry.first_step, entry.epoch
            while first < end:
                after = first
                for rows, samples, count, step in self._made_again(first, entry.settings):
                    start, stop, after = max(0, entry.step - step), min(count, end - step), step + count
                    if start < stop:
                        yield Run(rows, samples, start, stop, step + start, epoch, first)
                first, epoch = after, epoch + 1

    def _made_again(self, step: int, settings: dict) -> list:
        """Return the runs of the epoch that begins at a step, as the optimizer was set then."""
        optimizer, rows_again = vars(self.model.optimizer), self.rows_again
        assert rows_again is not None
        present = dict(optimizer)
        try:
            optimizer.update(settings)
            return list(rows_again(step))
        finally:
            optimizer.update(present)

    def _put_back(self, snapshot: Snapshot, step: int) -> None:
        self.left = carry = snapshot.carry()
        self.model.set_carry(carry, steps=step - self.model.step)

    def _is_finite(self, carry, sums) -> bool:
        losses = self.engine.of_all_ranks({"loss": sums["loss"]})
        read = self.backend.read([losses, *self._probe_of(carry)])
        return all(math.isfinite(number) for values in read for number in tree.leaves(values))
