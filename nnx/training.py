"""The loop that runs training steps over epochs: batches, callbacks, validation, Ctrl-C.

`Backend.repeat` runs many steps at a time; the loss stays on the device until the epoch ends.
"""

import contextlib
import signal
import threading
import time

import numpy as np

from nnx import tree
from nnx.callbacks import CallbackList
from nnx.data import Samples, as_batch, batch_indices
from nnx.random import SHUFFLE, generator, step_keys
from nnx.step import shared_steps

# A run of steps lasts about this many seconds: bars move, and Ctrl-C is heard.
SECONDS_A_RUN = 0.1


class Engine:
    """A compiled model at work: its step functions, and how many steps to run at a time."""

    def __init__(self, model):
        self.model = model
        self.backend = model.backend
        self.steps = shared_steps(model)
        self.steps_a_run = 1

    def numbers(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return what the host computes for steps start, ..., stop - 1, each as a vector."""
        optimizer, keys = self.model.optimizer, step_keys(self.model.seed, start, stop)
        each = [optimizer.scalars(step) for step in range(start, stop)]
        rates = {f"rate_{name}": np.asarray([scalars[name] for scalars in each]) for name in each[0]}
        return {**rates, "key_0": keys[:, 0], "key_1": keys[:, 1]}

    def place(self, samples: Samples) -> dict:
        """Return the samples on the device."""
        arrays = {"x": samples.x, "y": samples.y, "weight": samples.weight}
        return {name: self.backend.asarray(array) for name, array in arrays.items()}

    def logs(self, sums: list, samples: int) -> dict[str, float]:
        """Return loss and metrics from the sums of all runs of an epoch: the one host read."""
        total: dict = {}
        for part in self.backend.read(sums):
            part = tree.map(lambda a: np.asarray(a, dtype=np.float64), part)
            total = tree.map(np.add, total, part) if total else part
        logs = {"loss": float(total["loss"]["total"]) / samples}
        for metric, _ in self.model.metrics_used:
            logs[metric.name] = metric.result(total[metric.name])
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

    def evaluate_samples(self, placed: dict, count: int, batch_size: int) -> list:
        """Return the totals over samples that are on the device."""
        weights = {"params": self.model.params, "state": self.model.state}
        data, totals = {"weights": weights, "samples": placed}, None
        for index in batch_indices(np.arange(count), batch_size):
            rows = self.backend.stage({"index": index})
            for start, stop in self.runs(rows, len(index), one_by_one=False):
                _, totals = self.steps.evaluate({}, totals, rows, data, start, stop)
        return [totals]


class Interrupt:
    """Ctrl-C inside a `with` block: noted, and heard between two runs of steps.

    So an interrupt never leaves half-updated weights. A second one is not held back.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._old = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.getsignal(signal.SIGINT)
            if self._old is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception):
        if self._old is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._old)

    def _note(self, number, frame):
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self):
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt


def train(model, samples, stream, validation, callbacks: CallbackList, *, epochs, initial_epoch, batch_size,
          validation_batch_size, validation_freq, shuffle, steps_per_epoch):  # fmt: skip
    """Run the epochs of a fit. `samples` are on the host; or `stream` is an iterable of batches."""
    engine, backend = model.engine, model.backend
    placed = engine.place(samples) if samples is not None else None
    placed_validation = engine.place(validation) if isinstance(validation, Samples) else None
    source = iter(stream) if steps_per_epoch else None
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
                sums = _train_on_placed(engine, placed, order, batch_size, callbacks, interrupt)
                seen = len(samples)
            else:
                batches = _limited(source, steps_per_epoch) if source else stream
                sums, seen = _train_on_stream(engine, batches, steps_per_epoch, callbacks, interrupt)
            logs = engine.logs(sums, seen)
            if validation is not None and (epoch + 1 - initial_epoch) % validation_freq == 0:
                if placed_validation is not None:
                    found = engine.evaluate_samples(placed_validation, len(validation), validation_batch_size)
                    numbers = engine.logs(found, len(validation))
                else:
                    numbers = evaluate_stream(engine, validation)
                logs.update({f"val_{name}": value for name, value in numbers.items()})
            callbacks.on_epoch_end(epoch, logs)
            interrupt.check()
            if model.stop_training:
                break
    backend.synchronize(tree.leaves(model.params))


def _train_on_placed(engine, placed, order, batch_size, callbacks, interrupt) -> list:
    model, totals, done = engine.model, None, 0
    parts = batch_indices(order, batch_size)
    total = sum(len(part) for part in parts)
    each = callbacks.each_batch
    for index in parts:
        # With callbacks at each batch, numbers are made a step at a time: they may change the rate.
        blocks = [index[i : i + 1] for i in range(len(index))] if each else [index]
        for block in blocks:
            if each:
                callbacks.on_train_batch_begin(done)
            rows = engine.backend.stage(
                {"index": block, **engine.numbers(model.step, model.step + len(block))}
            )
            for start, stop in engine.runs(rows, len(block), each):
                carry, totals = engine.steps.train(model.carry, totals, rows, placed, start, stop)
                model.set_carry(carry, steps=stop - start)
                done += stop - start
                callbacks.on_progress(done, total)
                interrupt.check()
            if each:
                seen = min(done * batch_size, len(order))
                callbacks.on_train_batch_end(done - 1, engine.logs([totals], seen))
                if model.stop_training:
                    return [totals]
    return [totals]


def _train_on_stream(engine, batches, steps, callbacks, interrupt) -> tuple[list, int]:
    model, sums, seen, done = engine.model, [], 0, 0
    for item in batches:
        if callbacks.each_batch:
            callbacks.on_train_batch_begin(done)
        samples = model.check_batch(as_batch(item))
        sums.append(train_on_samples(engine, samples))
        seen, done = seen + len(samples), done + 1
        callbacks.on_progress(done, steps)
        if callbacks.each_batch:
            callbacks.on_train_batch_end(done - 1, engine.logs(sums, seen))
        interrupt.check()
        if model.stop_training:
            break
    if not sums:
        raise ValueError(
            "the iterable of batches gave no batch: a generator is used up after one epoch, so give a list, "
            "an object with __iter__, or steps_per_epoch="
        )
    return sums, seen


def train_on_samples(engine, samples: Samples) -> dict:
    """Take one step on these samples and return its sums."""
    model = engine.model
    row = engine.backend.stage(engine.numbers(model.step, model.step + 1))
    numbers = {name: values[0] for name, values in row.items()}
    carry, sums = engine.steps.train_batch(model.carry, engine.place(samples), numbers)
    model.set_carry(carry, steps=1)
    return sums


def evaluate_stream(engine, batches) -> dict[str, float]:
    """Return loss and metrics over an iterable of batches."""
    model, sums, seen = engine.model, [], 0
    weights = {"params": model.params, "state": model.state}
    for item in batches:
        samples = model.check_batch(as_batch(item))
        sums.append(engine.steps.evaluate_batch(weights, engine.place(samples)))
        seen += len(samples)
    if not sums:
        raise ValueError("the iterable of batches gave no batch")
    return engine.logs(sums, seen)


def _limited(source, steps):
    for _, item in zip(range(steps), source, strict=False):
        yield item
