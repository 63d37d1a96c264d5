"""The loop that runs training steps over epochs: batches, callbacks, validation, Ctrl-C.

`Backend.repeat` runs many steps at a time; the loss stays on the device until the epoch ends.
"""

import collections
import contextlib
import functools
import itertools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.callbacks import CallbackList
from nnx.data.samples import Samples, batch_indices
from nnx.data.streams import as_batch, as_part_of_stream, first, iter_of, numbered
from nnx.distributed import ranks
from nnx.errors import own_exceptions, raised_by
from nnx.graph.fingerprint import Settings
from nnx.interrupt import Interrupt, undivided
from nnx.random import SHUFFLE, generator, step_keys
from nnx.saving import resume
from nnx.shapes import elements
from nnx.training.nonfinite_guard import Watch
from nnx.training.step import Steps
from nnx.training.step_cache import parts_of, shared_steps

# Samples stay on the device if they take at most this share of the memory that is free there: the
# rest is for weights, gradients and activations.
DATA_SHARE = 0.5
# Samples of more bytes are placed as they are, see `Backend.padded`: compiling takes less than they do.
PADDED = 256 << 20


class Engine:
    """A compiled model at work: its step functions, and how many steps to run at a time."""

    def __init__(self, model):
        self.model = model
        self.backend = model.backend
        self.communicator = ranks.communicator(model.backend)
        self.steps_a_run = 1
        self.has_begun = False
        self._steps: Steps | None = None
        self._settings = Settings()

    @property
    def steps(self) -> Steps:
        """The step functions for the settings that layers, loss, metrics and optimizer have now."""
        if self._settings.have_changed(parts_of(self.model)):
            guard = None
            if self._steps is not None:
                guard = self._steps.guard
                if guard is None:
                    self.model.expect_same_weights()
                if guard is None or guard.reason is None:
                    log.info("settings have changed since the last step: steps are compiled anew")
            reason = None if guard is None else guard.reason
            self._steps = shared_steps(self.model, self._settings, self.communicator, reason)
        assert self._steps is not None
        return self._steps

    def begin(self, facts: dict) -> None:
        """Where several processes train together: start from the seed and weights of rank 0."""
        if self.communicator is not None:
            ranks.begin(self.model, self.communicator, facts)
        self.has_begun = True

    def part(self, count: int) -> ranks.Part:
        """Return which of `count` samples this process computes: all, if it trains alone."""
        return ranks.part_of(count, self.communicator)

    def numbers(self, start: int, stop: int, part: ranks.Part | None = None) -> dict[str, np.ndarray]:
        """Return what the host computes for steps start, ..., stop - 1, each as a vector."""
        optimizer, keys = self.model.optimizer, step_keys(self.model.seed, start, stop)
        each = [optimizer.scalars(step) for step in range(start, stop)]
        rates = {f"rate_{name}": np.asarray([scalars[name] for scalars in each]) for name in each[0]}
        numbers = {**rates, "key_0": keys[:, 0], "key_1": keys[:, 1]}
        if self.communicator is not None and part is not None:
            numbers["share"] = np.full(stop - start, part.share)
            numbers["first"] = np.full(stop - start, part.start)
        return numbers

    def place(self, samples: Samples) -> dict:
        """Return the samples on the device."""
        return tree.map(self.backend.asarray, samples.arrays())

    def place_if_it_fits(self, samples: Samples, takes_all: bool = False) -> dict | None:
        """Return the samples on the device, or None: then they are to be streamed, batch by batch.

        Unless each step takes all of them as they lie, rows may follow that no step reads.
        """
        if samples.stays_on_host:
            log.info("%s samples, read a window at a time from where they are", f"{len(samples):,}")
            return None
        free = self.backend.free_memory()
        size = f"{len(samples):,} samples, {samples.nbytes / 2**20:,.1f} MiB"
        if free is not None and samples.nbytes > DATA_SHARE * free:
            log.info(
                "%s, streamed batch by batch: %.1f MiB are free on %s", size, free / 2**20, self.backend.name
            )
            return None
        try:
            is_padded = not takes_all and samples.nbytes <= PADDED
            rows = self.backend.padded(len(samples)) if is_padded else len(samples)
            arrays = samples.arrays()
            placed = self.backend.fixed(tree.map(lambda array: self.backend.place(array, rows), arrays))
            log.info("%s, placed on %s", size, self.backend.name)
            return placed
        except Exception as error:  # what is free may be in pieces, or another program's by now
            if free is None or self.backend.out_of_memory(error) is None:
                raise
            log.info("%s, streamed batch by batch: no room on %s", size, self.backend.name)
        return None

    def transfer(self, batches, shared: bool = True):
        """Yield this process's part of each of some `Samples` on the device, which it is, and of how many."""
        waiting = collections.deque()

        def parts():
            for samples in batches:
                part = self.part(len(samples)) if shared else ranks.part_of(len(samples), None)
                waiting.append((part, len(samples)))
                yield samples.part(part.start, part.stop).arrays()

        with contextlib.closing(batches), contextlib.closing(self.backend.transfer(parts())) as placed:
            for batch in placed:
                yield batch, *waiting.popleft()

    def checked(self, stream, steps: int | None = None, name: str | None = None):
        """Yield items of an iterable of batches as `Samples`: so many, or all. For `name` see `numbered`."""
        with contextlib.closing(own_exceptions(first(stream, steps))) as items:
            for number, item in numbered(items, stream, steps, name):
                yield as_part_of_stream(
                    lambda item: self.model.check_for_training(*as_batch(item)), item, number
                )

    def logs(self, totals: dict, samples: int, shared: bool = True) -> dict[str, float]:
        """Return loss and metrics from the totals of an epoch, of all ranks if shared: the one host read."""
        (read,) = self.backend.read([self.of_all_ranks(totals) if shared else totals])
        return self.named(read, samples)

    def of_all_ranks(self, totals: dict) -> dict:
        """Return the sums of totals over all ranks."""
        if self.communicator is None or not totals:
            return totals
        return self.backend.all_reduce(self.communicator, [tree.map(self.backend.asarray, totals)])[0]

    def named(self, read: dict, samples: int) -> dict[str, float]:
        """Return loss and metrics from the totals of so many samples, on the host."""
        logs = {name: float(read["loss"][name]) / samples for name in ("loss", *self.model.loss.parts)}
        for name, part in read.get("masked", {}).items():
            steps = max(float(part["steps"]), 1.0)
            logs["loss"] += float(part["weighted"]) / steps - float(part["off"]) / samples
            if name != "loss":
                logs[name] = float(part["total"]) / steps
        for metric, _ in self.model.metrics_used:
            try:
                totals = tree.map(lambda a: np.asarray(a, dtype=np.float64), read[metric.name])
                value = metric.result(totals)
                logs[metric.name] = value.tolist() if isinstance(value, np.ndarray) else value
            except Exception as error:
                raised_by(error, "metric", metric)
                raise
        return logs

    @undivided  # raised while it is closed, a second Ctrl-C would be lost
    def runs(self, rows, length: int, one_by_one: bool):
        """Yield (start, stop) of runs of steps that last about `backend.seconds_a_run` each."""
        start = 0
        while start < length:
            stop = min(length, start + (1 if one_by_one else self.steps_a_run))
            began = time.perf_counter()
            yield start, stop
            spent = time.perf_counter() - began
            if not one_by_one and stop - start == self.steps_a_run:
                factor = min(8.0, self.backend.seconds_a_run / max(spent, 1e-9))
                self.steps_a_run = max(1, int(self.steps_a_run * factor))
            start = stop

    def evaluate(
        self, samples: Samples, placed: dict | None, batch_size: int, check=lambda: None, shared: bool = False
    ) -> dict[str, float]:
        """Return loss and metrics; call `check` between runs. `placed` as of `place_if_it_fits`.

        If shared, each rank computes its part of the samples.
        """
        if placed is None:
            return self.evaluate_stream(samples.batches(samples.order(), batch_size), check, shared)
        data, totals = {"weights": self._weights(), "samples": placed}, None
        part = self.part(len(samples)) if shared else ranks.part_of(len(samples), None)
        for index in batch_indices(np.arange(part.start, part.stop), batch_size):
            rows = self.backend.stage({"index": index})
            for start, stop in self.runs(rows, len(index), one_by_one=False):
                _, totals = self.steps.evaluate({}, totals, rows, data, start, stop)
                check()
        return self.logs(counted(totals or {}, part), len(samples), shared)

    def evaluate_stream(self, batches, check=lambda: None, shared: bool = False) -> dict[str, float]:
        """Return loss and metrics over an iterable of `Samples`; if shared, see `evaluate`."""
        totals, seen = None, 0
        with contextlib.closing(self.transfer(batches, shared)) as placed:
            for batch, part, count in placed:
                data = {"weights": self._weights(), "samples": batch}
                _, sums = self.steps.evaluate_one({}, totals if part.share else None, {}, data)
                totals = sums if part.share else self.backend.add(totals, counted(sums, part))
                seen += count
                check()
        if totals is None:
            raise ValueError(NO_BATCH_TO_EVALUATE)
        return self.logs(totals, seen, shared)

    def _weights(self) -> dict:
        return {"params": self.model.params, "state": self.model.state}

    @undivided
    def train_rows(
        self, rows, placed: dict, start: int, stop: int, part: ranks.Part, totals, watch: Watch
    ) -> dict:
        """Take steps start, ..., stop - 1 of `rows`; return the totals with their sums added."""
        before = totals if part.share else None
        carry, sums = self.steps.train(self.model.carry, before, rows, {"samples": placed}, start, stop)
        self.model.set_carry(carry, steps=stop - start)
        watch.left = carry
        return sums if part.share else self.backend.add(totals, counted(sums, part))

    @undivided
    def train_on(
        self, batch: dict, part: ranks.Part, count: int, totals=None, watch: Watch | None = None
    ) -> dict:
        """Take one step on this part of `count` samples; return the totals with its sums added."""
        if not self.has_begun:
            self.begin({"number of samples": count})
        numbers = self.numbers(self.model.step, self.model.step + 1, part)
        if watch is not None:
            watch.note_batch(numbers, batch)
        before = totals if part.share else None
        carry, sums = self.steps.train_one(self.model.carry, before, numbers, {"samples": batch})
        self.model.set_carry(carry, steps=1)
        if watch is not None:
            watch.left = carry
        return sums if part.share else self.backend.add(totals, counted(sums, part))

    def train_on_samples(self, samples: Samples) -> dict:
        """Take one step on samples of the host and return its sums."""
        part = self.part(len(samples))
        return self.train_on(self.place(samples.part(part.start, part.stop)), part, len(samples))


def parts_that_fit(model, starts: range, batch_size: int) -> list[range]:
    """Return the starts of batches in parts whose outputs fit on the device together."""
    free, bytes_a_batch = model.backend.free_memory(), np.dtype(model.weight_dtype).itemsize * batch_size
    bytes_a_batch *= elements(model.output_shape)
    count = len(starts) if free is None else max(1, int(DATA_SHARE * free) // bytes_a_batch)
    if count < len(starts):
        log.info("outputs fetched every %d of %d batches, for want of memory", count, len(starts))
    return [starts[i : i + count] for i in range(0, len(starts), count)]


NO_BATCH = (
    "the iterable of batches gave no batch: a generator is used up after one pass, so give a list or an object "
    "with __iter__, or for training one without end and steps_per_epoch="
)


NO_BATCH_TO_EVALUATE = (
    "validation: the iterable of batches gave no batch: a generator is used up after one pass, so give a list or an "
    "object with __iter__, or a generator that yields validation_steps batches for each validation"
)


def counted(sums, part: ranks.Part) -> dict:
    """Return the sums of a part, or zeros if it does not count."""
    return sums if part.share else tree.map(lambda total: total * 0, sums)


def train(model, samples, stream, validation, callbacks: CallbackList, *, epochs, initial_epoch, batch_size,
          validation_batch_size, validation_freq, validation_steps, shuffle, steps_per_epoch, facts, run):  # fmt: skip
    """Run the epochs of a fit. `samples` are on the host; or `stream` is an iterable of batches.

    `facts` and `run`, which goes on: see `nnx.saving.resume`.
    """
    engine = model.engine
    # Whether each step takes all samples as they lie.
    takes_all = (
        samples is not None and not shuffle and batch_size >= len(samples) and engine.communicator is None
    )
    placed = engine.place_if_it_fits(samples, takes_all) if samples is not None else None
    placed_validation = engine.place_if_it_fits(validation) if isinstance(validation, Samples) else None
    source = iter_of(stream) if steps_per_epoch else None
    if engine.communicator is not None and model.built:  # else at the first batch, see `train_on`
        data = {} if samples is None else {"batch_size": batch_size, **ranks.describe(samples)}
        engine.begin({"epochs": epochs, "initial_epoch": initial_epoch, **data})
    log.info(
        "training on %s in %s: epochs %d to %d", engine.backend.name, model.dtype, initial_epoch + 1, epochs
    )
    model.stop_training = False
    interrupt = Interrupt.current()
    interrupt.check()
    try:
        callbacks.on_train_begin()
        watch = Watch(engine, callbacks)
        if placed is not None and not callable(shuffle) and not callbacks.each_batch:
            watch.rows_again = functools.partial(
                _rows_again, engine, samples, placed, batch_size, shuffle, takes_all
            )
        if run is not None:
            resume.continue_callbacks(model, callbacks, run)
            if source is not None:  # the batches of the epochs that are done
                collections.deque(itertools.islice(source, run["epochs"] * steps_per_epoch), maxlen=0)
        for epoch in range(initial_epoch, epochs):
            if model.stop_training:  # before it was cut off
                break
            callbacks.on_epoch_begin(epoch)
            watch.begin_epoch(epoch)
            if samples is not None:
                order = _ordered(model, samples, shuffle, model.step)
                if placed is not None:
                    totals, seen = _train_on_placed(
                        engine, placed, order, batch_size, callbacks, interrupt, watch, takes_all
                    )
                else:
                    batches, steps = samples.batches(order, batch_size), -(-len(samples) // batch_size)
                    totals, seen = _train_on_stream(engine, batches, steps, callbacks, interrupt, watch)
            else:
                if source is None:
                    batches = engine.checked(stream, name="steps_per_epoch")
                else:
                    batches = engine.checked(itertools.islice(source, steps_per_epoch))
                totals, seen = _train_on_stream(
                    engine, batches, steps_per_epoch, callbacks, interrupt, watch, due=steps_per_epoch
                )
                if totals is None:  # used up exactly at the end of the epoch before
                    break
            logs = watch.logs(totals, seen, is_last=epoch + 1 == epochs or model.stop_training)
            if validation is not None and (epoch + 1) % validation_freq == 0:
                if isinstance(validation, Samples):
                    numbers = engine.evaluate(
                        validation, placed_validation, validation_batch_size, interrupt.check, shared=True
                    )
                else:
                    batches = engine.checked(validation, validation_steps, "validation_steps")
                    numbers = engine.evaluate_stream(batches, interrupt.check, shared=True)
                logs.update({f"val_{name}": value for name, value in numbers.items()})
                watch.look_at_validation(logs)
            callbacks.on_epoch_end(epoch, logs)
            resume.save(model, callbacks, facts, epoch)
            interrupt.check()
            if model.stop_training:
                break
        watch.look_at_the_end()
    finally:  # nothing comes between this and the call, no Ctrl-C either
        try:
            callbacks.on_train_end()
        finally:
            if source is not stream:  # made here, so ended here
                getattr(source, "close", lambda: None)()
    engine.backend.synchronize(tree.leaves(model.params))


def _ordered(model, samples, shuffle, step: int) -> Any:
    """Return the numbers of the samples in the order of an epoch that begins at a step."""
    return samples.order(shuffle, functools.partial(generator, model.seed, SHUFFLE, step))


def _rows(engine, block, part, step: int, takes_all: bool) -> dict:
    """Return what the step functions read of each step from `step` on, on batches numbered by `block`.

    A step that takes all samples is given no numbers, and gathers nothing.
    """
    numbers = engine.numbers(step, step + len(block), part)
    if not takes_all:
        numbers["index"] = block[:, part.start : part.stop]
    return engine.backend.stage(numbers)


def _rows_again(engine, samples, placed, batch_size, shuffle, takes_all: bool, step: int) -> Iterator[tuple]:
    """Yield (rows, samples, number of steps, first step) of each run of an epoch that began at a step."""
    for block in batch_indices(_ordered(engine.model, samples, shuffle, step), batch_size):
        rows = _rows(engine, block, engine.part(block.shape[1]), step, takes_all)
        yield rows, placed, len(block), step
        step += len(block)


def _train_on_placed(engine, placed, order, batch_size, callbacks, interrupt, watch, takes_all) -> tuple:
    """Train on all batches; return the totals and the number of samples seen."""
    model, totals, done, seen = engine.model, None, 0, 0
    parts = batch_indices(order, batch_size)
    total = sum(len(part) for part in parts)
    each = callbacks.each_batch
    for index in parts:
        part = engine.part(index.shape[1])
        # With callbacks at each batch, numbers are made a step at a time: they may change the rate.
        blocks = [index[i : i + 1] for i in range(len(index))] if each else [index]
        for block in blocks:
            if each:
                callbacks.on_train_batch_begin(done)
            rows = _rows(engine, block, part, model.step, takes_all)
            watch.note(rows, placed, len(block))
            for start, stop in engine.runs(rows, len(block), each):
                totals = engine.train_rows(rows, placed, start, stop, part, totals, watch)
                done, seen = done + stop - start, seen + (stop - start) * block.shape[1]
                is_over = time.monotonic() > watch.next_look and watch.look(totals)
                callbacks.on_progress(done, total)
                interrupt.check()
                if is_over or (model.stop_training and not each):  # it may be said in another thread
                    return totals, seen
            if each:
                callbacks.on_train_batch_end(done - 1, engine.logs(totals or {}, seen))
                if model.stop_training:
                    return totals, seen
    return totals, seen


def _train_on_stream(engine, batches, steps, callbacks, interrupt, watch, due=None) -> tuple:
    """Train on an iterable of `Samples`; return the totals and the number of samples seen.

    `steps` are told to whoever shows progress; `due` is how many batches must come.
    """
    model, totals, seen, done = engine.model, None, 0, 0
    with contextlib.closing(engine.transfer(batches)) as placed:
        for batch, part, count in placed:
            if callbacks.each_batch:
                callbacks.on_train_batch_begin(done)
            totals = engine.train_on(batch, part, count, totals, watch)
            seen, done = seen + count, done + 1
            is_over = watch.look_at_batches(totals) or (
                time.monotonic() > watch.next_look and watch.look(totals)
            )
            callbacks.on_progress(done, steps)
            if callbacks.each_batch:
                callbacks.on_train_batch_end(done - 1, engine.logs(totals, seen))
            interrupt.check()
            if model.stop_training or is_over:
                break
    if totals is None and (not steps or model.step == 0):
        raise ValueError(NO_BATCH)
    if due and done < due and not model.stop_training:
        warnings.warn(
            f"the iterable of batches ended after {done} of {due} batches of this epoch: training stops. Give one "
            f"that yields steps_per_epoch * epochs batches",
            stacklevel=2,
        )
        model.stop_training = True
    return totals, seen
