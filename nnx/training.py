"""The loop that runs training steps over epochs: batches, callbacks, validation, Ctrl-C.

`Backend.repeat` runs many steps at a time; the loss stays on the device until the epoch ends.
"""

import contextlib
import itertools
import operator
import time
import warnings

import numpy as np

from nnx import distributed, tree
from nnx.callbacks import CallbackList
from nnx.data import Samples, as_batch, batch_indices
from nnx.interrupt import Interrupt
from nnx.random import SHUFFLE, generator, step_keys
from nnx.sharing import shared_steps

# A run of steps lasts about this many seconds: bars move, and Ctrl-C is heard.
SECONDS_A_RUN = 0.1


class Engine:
    """A compiled model at work: its step functions, and how many steps to run at a time."""

    def __init__(self, model):
        self.model = model
        self.backend = model.backend
        self.communicator = distributed.communicator(model.backend)
        self.steps = shared_steps(model, self.communicator)
        self.steps_a_run = 1
        self.has_begun = False

    def begin(self, facts: dict) -> None:
        """Where several processes train together: start from the seed and weights of rank 0."""
        if self.communicator is not None:
            distributed.begin(self.model, self.communicator, facts)
        self.has_begun = True

    def part(self, count: int) -> distributed.Part:
        """Return which of `count` samples this process computes: all, if it trains alone."""
        return distributed.part_of(count, self.communicator)

    def numbers(self, start: int, stop: int, part: distributed.Part | None = None) -> dict[str, np.ndarray]:
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
        arrays = {"x": samples.x, "y": samples.y, "weight": samples.weight}
        return {name: self.backend.asarray(array) for name, array in arrays.items()}

    def logs(self, totals: dict, samples: int, shared: bool = True) -> dict[str, float]:
        """Return loss and metrics from the totals of an epoch, of all ranks if shared: the one host read."""
        if shared and self.communicator is not None and totals:
            (totals,) = self.backend.all_reduce(self.communicator, [tree.map(self.backend.asarray, totals)])
        (read,) = self.backend.read([totals])
        read = tree.map(lambda a: np.asarray(a, dtype=np.float64), read)
        logs = {"loss": float(read["loss"]["total"]) / samples}
        for metric, _ in self.model.metrics_used:
            logs[metric.name] = metric.result(read[metric.name])
        return logs

    def runs(self, rows, length: int, one_by_one: bool):
        """Yield (start, stop) of runs of steps that last about SECONDS_A_RUN each."""
        start = 0
        while start < length:
            stop = min(length, start + (1 if one_by_one else self.steps_a_run))
            began = time.perf_counter()
            yield start, stop
            spent = time.perf_counter() - began
            if not one_by_one and stop - start == self.steps_a_run:
                factor = min(8.0, SECONDS_A_RUN / max(spent, 1e-9))
                self.steps_a_run = max(1, int(self.steps_a_run * factor))
            start = stop

    def evaluate(
        self, samples: Samples, placed: dict, batch_size: int, check=lambda: None, shared: bool = False
    ) -> dict[str, float]:
        """Return loss and metrics on samples that are on the device; call `check` between runs.

        If shared, each rank computes its part of them.
        """
        data, totals = {"weights": self._weights(), "samples": placed}, None
        part = self.part(len(samples)) if shared else distributed.part_of(len(samples), None)
        for index in batch_indices(np.arange(part.start, part.stop), batch_size):
            rows = self.backend.stage({"index": index})
            for start, stop in self.runs(rows, len(index), one_by_one=False):
                _, totals = self.steps.evaluate({}, totals, rows, data, start, stop)
                check()
        return self.logs(counted(totals or {}, part), len(samples), shared)

    def evaluate_stream(self, batches, check=lambda: None, shared: bool = False) -> dict[str, float]:
        """Return loss and metrics over an iterable of batches; if shared, see `evaluate`."""
        weights, totals, seen = self._weights(), None, 0
        for item in batches:
            samples = self.model.check_batch(as_batch(item))
            part = self.part(len(samples)) if shared else distributed.part_of(len(samples), None)
            sums = self.steps.evaluate_batch(weights, self.place(samples.part(part.start, part.stop)))
            totals = added(totals, counted(sums, part))
            seen += len(samples)
            check()
        if totals is None:
            raise ValueError(f"validation: {NO_BATCH}")
        return self.logs(totals, seen, shared)

    def _weights(self) -> dict:
        return {"params": self.model.params, "state": self.model.state}

    def train_on(self, samples: Samples) -> dict:
        """Take one step on these samples and return its sums."""
        if not self.has_begun:
            self.begin({"number of samples": len(samples)})
        part = self.part(len(samples))
        row = self.backend.stage(self.numbers(self.model.step, self.model.step + 1, part))
        numbers = {name: values[0] for name, values in row.items()}
        placed = self.place(samples.part(part.start, part.stop))
        carry, sums = self.steps.train_batch(self.model.carry, placed, numbers)
        self.model.set_carry(carry, steps=1)
        return counted(sums, part)


NO_BATCH = (
    "the iterable of batches gave no batch: a generator is used up after one pass, so give a list or an object "
    "with __iter__, or for training one without end and steps_per_epoch="
)


def added(totals, sums):
    """Return totals plus sums; the first totals are None."""
    return sums if totals is None else tree.map(operator.add, totals, sums)


def counted(sums, part: distributed.Part) -> dict:
    """Return the sums of a part, or zeros if it does not count."""
    return sums if part.share else tree.map(lambda total: total * 0, sums)


def train(model, samples, stream, validation, callbacks: CallbackList, *, epochs, initial_epoch, batch_size,
          validation_batch_size, validation_freq, shuffle, steps_per_epoch):  # fmt: skip
    """Run the epochs of a fit. `samples` are on the host; or `stream` is an iterable of batches."""
    engine = model.engine
    placed = engine.place(samples) if samples is not None else None
    placed_validation = engine.place(validation) if isinstance(validation, Samples) else None
    source = iter(stream) if steps_per_epoch else None
    if engine.communicator is not None and model.built:  # else at the first batch, see `train_on`
        data = {} if samples is None else {"batch_size": batch_size, **distributed.describe(samples)}
        engine.begin({"epochs": epochs, "initial_epoch": initial_epoch, **data})
    model.stop_training = False
    callbacks.on_train_begin()
    with contextlib.ExitStack() as stack:
        stack.callback(callbacks.on_train_end)
        interrupt = stack.enter_context(Interrupt())
        for epoch in range(initial_epoch, epochs):
            callbacks.on_epoch_begin(epoch)
            if samples is not None:
                order = np.arange(len(samples))
                if shuffle:
                    generator(model.seed, SHUFFLE, model.step).shuffle(order)
                totals, seen = _train_on_placed(engine, placed, order, batch_size, callbacks, interrupt)
            else:
                batches = stream if source is None else itertools.islice(source, steps_per_epoch)
                totals, seen = _train_on_stream(engine, batches, steps_per_epoch, callbacks, interrupt)
                if totals is None:  # used up exactly at the end of the epoch before
                    break
            logs = engine.logs(totals, seen)
            if validation is not None and (epoch + 1) % validation_freq == 0:
                if placed_validation is not None:
                    numbers = engine.evaluate(
                        validation, placed_validation, validation_batch_size, interrupt.check, shared=True
                    )
                else:
                    numbers = engine.evaluate_stream(validation, interrupt.check, shared=True)
                logs.update({f"val_{name}": value for name, value in numbers.items()})
            callbacks.on_epoch_end(epoch, logs)
            interrupt.check()
            if model.stop_training:
                break
    engine.backend.synchronize(tree.leaves(model.params))


def _train_on_placed(engine, placed, order, batch_size, callbacks, interrupt) -> tuple:
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
            numbers = engine.numbers(model.step, model.step + len(block), part)
            rows = engine.backend.stage({"index": block[:, part.start : part.stop], **numbers})
            for start, stop in engine.runs(rows, len(block), each):
                before = totals if part.share else None
                carry, sums = engine.steps.train(model.carry, before, rows, placed, start, stop)
                totals = sums if part.share else added(totals, counted(sums, part))
                model.set_carry(carry, steps=stop - start)
                done, seen = done + stop - start, seen + (stop - start) * block.shape[1]
                callbacks.on_progress(done, total)
                interrupt.check()
            if each:
                callbacks.on_train_batch_end(done - 1, engine.logs(totals or {}, seen))
                if model.stop_training:
                    return totals, seen
    return totals, seen


def _train_on_stream(engine, batches, steps, callbacks, interrupt) -> tuple:
    """Train on the batches of an iterable; return the totals and the number of samples seen."""
    model, totals, seen, done = engine.model, None, 0, 0
    for item in batches:
        if callbacks.each_batch:
            callbacks.on_train_batch_begin(done)
        samples = model.check_batch(as_batch(item))
        totals = added(totals, engine.train_on(samples))
        seen, done = seen + len(samples), done + 1
        callbacks.on_progress(done, steps)
        if callbacks.each_batch:
            callbacks.on_train_batch_end(done - 1, engine.logs(totals, seen))
        interrupt.check()
        if model.stop_training:
            break
    if totals is None and (not steps or model.step == 0):
        raise ValueError(NO_BATCH)
    if steps and done < steps and not model.stop_training:
        warnings.warn(
            f"the iterable of batches ended after {done} of {steps} batches of this epoch: training stops. Give one "
            f"that yields steps_per_epoch * epochs batches",
            stacklevel=2,
        )
        model.stop_training = True
    return totals, seen
