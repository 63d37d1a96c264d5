"""The guard against nan and infinity in `fit`: it detects them without reading from the device in each step.

A step is a function of weights, optimizer and batch, so it can be repeated. The guard keeps a snapshot of
finite weights and slots, and a journal of the steps since then. `fit` reads the loss once an epoch: if it
or the weights are not finite, the guard repeats the steps of the journal from the snapshot to find the
first that fails. The model is left as it was before that step.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nnx import log, tree
from nnx.backend import batch_of
from nnx.callbacks import TerminateOnNaN
from nnx.errors import NonFiniteError
from nnx.training.batches import Batches

SECONDS_A_SNAPSHOT, RUNS_KEPT = 1.0, 64
"""The age of a snapshot, and the number of runs of steps since then, after which an epoch ends with a new one."""
SECONDS_A_CHECK = 10.0
"""The time between two checks within an epoch."""
ELEMENTS_KEPT, BATCHES_KEPT = 2**22, 4
"""The most array elements of kept batches of a stream (16 MiB in float32), and the fewest batches."""
BATCHES_SHARED = 32
"""The number of kept batches of a stream if several processes train together: all check at the same step."""
STEPS_AGAIN = 64
"""Steps repeated before each check."""
SNAPSHOT_SHARE, SMALL = 0.25, 2**20
"""The largest share of the device's free memory for a snapshot, and the bytes that are allowed in any case; a
larger one is kept on the host."""
BATCHES_SHARE, FEW_ELEMENTS = 0.125, 2**16
"""The same share for kept batches of a stream, and the elements that are kept in any case."""


class Snapshot:
    """A copy of the carry, on the device if that has enough free memory."""

    def __init__(self, model, carry: dict):
        self.model = model
        parts = {name: part for name, part in carry.items() if name != "slots"}
        parts |= dict(enumerate(carry["slots"]))
        self.slots = len(carry["slots"])
        keep = self._on_host if _is_large(model, carry) else self._on_device
        self.parts = {name: keep(name, part) for name, part in parts.items()}

    def _on_device(self, name, part):
        copy = self.model.backend.copy
        return functools.partial(copy, copy(part))  # without a reference to self: the memory is freed at once

    def _on_host(self, name, part):
        host = tree.map(self.model.backend.to_numpy, part)
        return lambda: self.model._to_device(host, packed=name not in ("state", "scale"))

    def carry(self) -> dict:
        """Return a new copy of the carry."""
        carry = {name: copy() for name, copy in self.parts.items()}
        carry["slots"] = [carry.pop(index) for index in range(self.slots)]
        return carry


def _is_large(model, carry) -> bool:
    free = model.backend.free_memory()
    if free is None:
        return False
    elements = sum(math.prod(leaf.shape) for leaf in tree.leaves(carry["params"]))
    nbytes = elements * (1 + len(carry["slots"])) * np.dtype(model.weight_dtype).itemsize
    return nbytes > max(SMALL, SNAPSHOT_SHARE * free)


class Run(NamedTuple):
    """Completed steps: those of rows start, ..., stop - 1."""

    rows: dict
    """Scalars and sample indices, one row a step, on the device."""
    samples: dict
    """The arrays from which batches are gathered; without `rows["index"]` the batch itself."""
    start: int
    stop: int
    step: int
    """The index of the first step since `compile`."""
    epoch: int
    first_step: int
    """The index of the epoch's first step."""

    def again(self, steps, carry, start, stop) -> tuple:
        """Repeat some of the steps from a carry, which is consumed; return the new carry and the sums."""
        return steps.train(carry, None, self.rows, {"samples": self.samples}, start, stop)

    def batch(self, steps, i) -> tuple[dict, dict]:
        """Return the batch of row `i`, and its scalars."""
        row = {name: v[i] if isinstance(v, list) else v[i, ...] for name, v in self.rows.items()}
        return batch_of(steps.backend, row, {"samples": self.samples})["samples"], row

    def where(self, i) -> str:
        """Return which step row `i` is, in words."""
        step = self.step + i - self.start
        return f"epoch {self.epoch + 1}, step {step - self.first_step + 1} (step {step + 1} since compile)"


class Epochs(NamedTuple):
    """Journal entry of steps from `step` on, whose inputs are not kept, but computed again if needed."""

    step: int
    epoch: int
    """The epoch of `step`."""
    first_step: int
    """The index of that epoch's first step."""
    settings: dict
    """The attributes of the optimizer."""


class NonfiniteGuard:
    """Checks the loss and the weights of one `fit`.

    Parameters
    ----------
    runner : StepRunner
    callbacks : CallbackList
    epoch_again : function, optional
        `epoch_again(step)` yields the `Batches` of the epoch that began at a step again. Without it, the
        guard keeps the rows and batches of all steps since its snapshot.
    """

    def __init__(self, runner, callbacks, epoch_again: Callable[[int], Iterator[Batches]] | None = None):
        self.runner, self.model, self.backend = runner, runner.model, runner.backend
        self.epoch_again = epoch_again
        self.is_shared = runner.communicator is not None
        self.stoppers = [c for c in callbacks.callbacks if isinstance(c, TerminateOnNaN)]
        # The weights are checked before a callback may keep or save them.
        self.each_epoch = self.is_shared or any(c.keeps_weights for c in callbacks.callbacks)
        self.snapshot: Snapshot | None = None
        self.journal: list[Run | Epochs] = []
        """The steps since the snapshot."""
        self.settings: dict = {}
        self.elements = self.most_elements = 0
        """Array elements of the streamed batches in the journal."""
        self.kinds: list[str] | None = None
        """Those of "params" and "state" that the model has."""
        self.carry: Any = None
        """The carry after the last step: if the model has another, a callback has set its weights."""
        self.steps: Any = None
        """The step functions of the steps in the journal."""
        self.is_unchecked = self.is_over = self.has_warned = False
        self.next_snapshot = self.next_check = math.inf

    def begin_epoch(self, epoch: int) -> None:
        """Record the start of an epoch, after its callbacks."""
        self.epoch, self.first_step = epoch, self.model.step
        if self.epoch_again is None:
            return
        if self.snapshot is None or self._is_changed_by_callback():
            self._begin()
        elif self._has_other_settings():
            self._note_settings()

    def before(self, rows: dict, batches: Batches) -> None:
        """Record steps before they run."""
        if self.epoch_again is not None:
            return
        if self.snapshot is None or self._is_changed_by_callback():
            self._begin()
        step = self.model.step
        self.journal.append(Run(rows, batches.samples, 0, batches.steps, step, self.epoch, self.first_step))
        if batches.is_streamed:
            self.elements += sum(math.prod(leaf.shape) for leaf in tree.leaves(batches.samples))

    def after(self, carry: dict) -> None:
        """Record the carry after steps."""
        self.carry = carry

    def _is_changed_by_callback(self) -> bool:
        """Whether a callback has set weights, or changed settings of layers."""
        model, carry = self.model, self.carry
        is_set = model._params is not carry["params"] or model._state is not carry["state"]
        return is_set or self.runner.steps is not self.steps

    def _has_other_settings(self) -> bool:
        """Whether a callback has changed the optimizer, such as its learning rate."""
        known = self.settings
        return any(known.get(name, self) is not value for name, value in vars(self.model.optimizer).items())

    def _begin(self):
        """Take a snapshot: at the start, after a successful check, and after a change by a callback."""
        self.carry = carry = self.model.carry
        self.steps = self.runner.steps
        self.snapshot, self.journal, self.elements = Snapshot(self.model, carry), [], 0
        free = self.backend.free_memory()
        self.most_elements = ELEMENTS_KEPT
        if free is not None:
            self.most_elements = min(ELEMENTS_KEPT, max(FEW_ELEMENTS, int(BATCHES_SHARE * free) // 4))
        now = time.monotonic()
        self.next_snapshot = now + SECONDS_A_SNAPSHOT
        # Processes that train together cannot use their clocks, which differ.
        self.next_check = math.inf if self.is_shared else now + SECONDS_A_CHECK
        if self.epoch_again is not None:
            self._note_settings()

    def _note_settings(self):
        self.settings = dict(vars(self.model.optimizer))
        self.journal.append(Epochs(self.model.step, self.epoch, self.first_step, self.settings))

    def check(self, totals: dict) -> bool:
        """Check the loss and the weights if it is time; return whether training is over."""
        keeps_most = len(self.journal) >= BATCHES_KEPT and self.elements >= self.most_elements
        if self.is_shared:
            keeps_most = self.elements > 0 and len(self.journal) >= BATCHES_SHARED
        if not keeps_most and time.monotonic() <= self.next_check:
            return False
        sums = self.runner.of_all_ranks({"loss": totals["loss"]})
        read, *wrong = self.backend.read([sums["loss"], *self._probe()])
        self._expect_finite(tree.leaves(read), wrong)
        run, step = self.journal[-1], self.model.step
        self._begin()
        if (
            isinstance(run, Run) and (start := run.start + step - run.step) < run.stop
        ):  # steps that will run next
            self.journal = [run._replace(start=start, step=step)]
        return self.is_over

    def logs(self, totals: dict, samples: int, is_last: bool) -> dict[str, float]:
        """Return loss and metrics of an epoch, after checking them and, if it is time, the weights."""
        is_old = len(self.journal) >= RUNS_KEPT or time.monotonic() > self.next_snapshot
        if not (is_old or is_last or self.each_epoch):
            logs, wrong = self.runner.logs(totals, samples), []
        else:
            read, *wrong = self.backend.read([self.runner.of_all_ranks(totals), *self._probe()])
            logs = self.runner.named(read, samples)
        if wrong or not math.isfinite(logs["loss"]):  # the loss includes the losses of all outputs
            self._expect_finite((logs["loss"],), wrong)
        self.is_unchecked = not wrong
        if is_old or self.is_shared:
            self.snapshot, self.journal = None, []
        return logs

    def check_validation(self, logs: dict) -> None:
        """Warn once of a validation loss that is not finite, where the loss is."""
        if not math.isfinite(logs["val_loss"]) and not self.has_warned and not self.is_over:
            self.has_warned = True
            log.warn(
                f"val_loss is {logs['val_loss']} in epoch {self.epoch + 1}, while the loss is finite: training goes "
                f"on. Look for values in the validation data that are far from those trained on"
            )

    def end(self) -> None:
        """Check the weights if those of the last epoch have not been checked."""
        if self.is_unchecked:
            self._expect_finite([], self.backend.read(self._probe()))

    def _probe(self) -> list:
        """Return scalars on the device that are zero if the weights are finite, else nan."""
        return self._probe_of({"params": self.model._params, "state": self.model._state})

    def _probe_of(self, carry: dict) -> list:
        if self.kinds is None:
            self.kinds = [kind for kind in ("params", "state") if tree.leaves(carry[kind])]
        return [self.backend.zero_or_nan(carry[kind]) for kind in self.kinds]

    def _expect_finite(self, losses, wrong) -> None:
        """Raise an error if a value is not finite, or with `TerminateOnNaN` end training."""
        if self.is_over or all(map(math.isfinite, (*losses, *wrong))):
            return
        fault = self._find()
        if not self.stoppers:
            raise NonFiniteError(fault)
        self.is_over = self.model.stop_training = True
        for callback in self.stoppers:
            callback.fault = fault

    def _find(self) -> str:
        """Repeat the steps of the journal; restore the model to before the first that fails; return the message."""
        from nnx.inspect.nonfinite import explain  # rarely needed

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
                        return explain(self.runner, run, i, carry, sums)
        return (
            f"the loss or the weights of epoch {self.epoch + 1} are not finite. Taken again, none of its steps went "
            f"wrong by itself: the sum of the losses is too large for {model.weight_dtype}, or the steps give other "
            f"numbers each time.\nThe model is as it was before step {first.step + 1} since compile."
        )

    def _runs(self, taken: int) -> Iterator[Run]:
        """Yield the runs of the journal up to step `taken`; inputs that were not kept are computed again."""
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
        """Return (rows, samples, number of steps, first step) of the epoch that began at a step.

        The optimizer has the given settings while they are computed.
        """
        optimizer, epoch_again, again = vars(self.model.optimizer), self.epoch_again, []
        assert epoch_again is not None
        present = dict(optimizer)
        try:
            optimizer.update(settings)
            for batches in epoch_again(step):
                again.append((self.runner.rows(batches, step), batches.samples, batches.steps, step))
                step += batches.steps
            return again
        finally:
            optimizer.update(present)

    def _put_back(self, snapshot: Snapshot, step: int) -> None:
        self.carry = carry = snapshot.carry()
        self.model.set_carry(carry, steps=step - self.model.step)

    def _is_finite(self, carry, sums) -> bool:
        losses = self.runner.of_all_ranks({"loss": sums["loss"]})
        read = self.backend.read([losses, *self._probe_of(carry)])
        return all(math.isfinite(number) for values in read for number in tree.leaves(values))
