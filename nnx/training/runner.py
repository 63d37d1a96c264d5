"""`StepRunner` runs the compiled steps of a model, many a call, on this process's shard of each batch."""

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from nnx import tree
from nnx.data.samples import Samples
from nnx.distributed import ranks
from nnx.distributed.ranks import Shard, shard_of
from nnx.errors import raised_by
from nnx.interrupt import undivided
from nnx.random import step_keys
from nnx.training.batches import Batches, PlacedSamples, Stream, source_of
from nnx.training.step import Steps

NO_BATCH_TO_EVALUATE = (
    "validation: the iterable of batches gave no batch: a generator is used up after one pass, so give a list or an "
    "object with __iter__, or a generator that yields validation_steps batches for each validation"
)


class StepRunner:
    """Runs training and evaluation steps of a compiled model, and reads their loss and metrics."""

    def __init__(self, model):
        self.model, self.backend = model, model.backend
        model._require_compiled()
        self.compiled = model._compiled_steps
        self.communicator = ranks.communicator(model.backend)

    @property
    def steps(self) -> Steps:
        """The step functions for the current settings of layers, loss, metrics and optimizer."""
        return self.compiled.of(self.model, self.communicator)

    def begin(self, metadata: dict) -> None:
        """If several processes train together, start from the seed and weights of rank 0."""
        if self.communicator is not None:
            ranks.begin(self.model, self.communicator, metadata)
        self.compiled.has_begun = True

    def shard(self, count: int) -> Shard:
        """Return the shard of `count` samples that this process computes; all samples if it trains alone."""
        return shard_of(count, self.communicator)

    def place(self, samples: Samples) -> dict:
        """Return the samples on the device."""
        return tree.map(self.backend.asarray, samples.arrays())

    def scalars(self, start: int, stop: int, shard: Shard | None = None) -> dict[str, np.ndarray]:
        """Return the scalars that the host computes for steps start, ..., stop - 1, each as a vector."""
        optimizer, keys = self.model.optimizer, step_keys(self.model.seed, start, stop)
        each = [optimizer.scalars(step) for step in range(start, stop)]
        rates = {f"rate_{name}": np.asarray([scalars[name] for scalars in each]) for name in each[0]}
        scalars = {**rates, "key_0": keys[:, 0], "key_1": keys[:, 1]}
        if self.communicator is not None and shard is not None:
            scalars["share"] = np.full(stop - start, shard.share)
            scalars["first"] = np.full(stop - start, shard.start)
        return scalars

    def rows(self, batches: Batches, step: int) -> dict:
        """Return the scalars and sample indices of the steps from `step` on, one row a step, on the device."""
        rows = self.scalars(step, step + batches.steps, batches.shard)
        if batches.indices is not None:
            rows["index"] = batches.indices
        return self.backend.device_put(rows)

    @undivided  # an error raised while the generator closes, such as a second Ctrl-C, would be lost
    def runs(self, steps: int) -> Generator[tuple[int, int]]:
        """Yield (start, stop) of runs of steps that last about `backend.seconds_a_run` each."""
        compiled, start = self.compiled, 0
        while start < steps:
            stop = min(steps, start + compiled.steps_a_run)
            began = time.perf_counter()
            yield start, stop
            spent = time.perf_counter() - began
            if stop - start == compiled.steps_a_run:
                factor = min(8.0, self.backend.seconds_a_run / max(spent, 1e-9))
                compiled.steps_a_run = max(1, int(compiled.steps_a_run * factor))
            start = stop

    @undivided
    def train(self, rows: dict, batches: Batches, start: int, stop: int, totals, guard=None) -> dict:
        """Run steps start, ..., stop - 1 of `rows`; return the totals with their sums added."""
        before = totals if batches.shard.share else None
        carry, after = self.steps.train(
            self.model.carry, before, rows, {"samples": batches.samples}, start, stop
        )
        self.model.set_carry(carry, steps=stop - start)
        if guard is not None:
            guard.after(carry)
        return self._updated(totals, after, batches.shard)

    def train_on_batch(self, samples: Samples) -> dict:
        """Run one step on samples of the host; return its totals on the device."""
        if not self.compiled.has_begun:
            self.begin({"number of samples": len(samples)})
        shard = self.shard(len(samples))
        batch = Batches(self.place(samples.part(shard.start, shard.stop)), 1, len(samples), shard)
        return self.train(self.rows(batch, self.model.step), batch, 0, 1, None)

    def evaluate(
        self, source: PlacedSamples | Stream, check: Callable = lambda: None, shared: bool = False
    ) -> dict[str, float]:
        """Return loss and metrics over an epoch of a source; call `check` between runs of steps.

        If shared, each process computes its shard of each batch, and all get the same results.
        """
        model, totals, samples = self.model, None, 0
        weights = {"params": model.params, "state": model.state}
        with contextlib.closing(source.epoch()) as epoch:
            for batches in epoch:
                rows = {} if batches.indices is None else self.backend.device_put({"index": batches.indices})
                data = {"weights": weights, "samples": batches.samples}
                for start, stop in self.runs(batches.steps):
                    before = totals if batches.shard.share else None
                    _, after = self.steps.evaluate({}, before, rows, data, start, stop)
                    totals = self._updated(totals, after, batches.shard)
                    check()
                samples += batches.steps * batches.batch_size
        if totals is None:
            raise ValueError(NO_BATCH_TO_EVALUATE)
        return self.logs(totals, samples, shared)

    def evaluate_samples(self, samples: Samples, batch_size: int) -> dict[str, float]:
        """Return loss and metrics on samples, computed by this process alone."""
        return self.evaluate(source_of(self.backend, samples, batch_size))

    def _updated(self, before, after, shard: Shard) -> dict:
        """Return the totals after a run of steps; a shard of share 0 adds nothing."""
        if shard.share:
            return after
        return self.backend.add(before, tree.map(lambda total: total * 0, after))

    # Loss and metrics

    def logs(self, totals: dict, samples: int, shared: bool = True) -> dict[str, float]:
        """Return loss and metrics from the totals of an epoch, of all processes if shared, in one host read."""
        (read,) = self.backend.read([self.of_all_ranks(totals) if shared else totals])
        return self.named(read, samples)

    def of_all_ranks(self, totals: dict) -> dict:
        """Return the sums of totals over all processes."""
        if self.communicator is None or not totals:
            return totals
        return self.backend.all_reduce(self.communicator, [tree.map(self.backend.asarray, totals)])[0]

    def named(self, read: dict, samples: int) -> dict[str, float]:
        """Return loss and metrics by name, from totals over `samples` on the host."""
        logs = {name: float(read["loss"][name]) / samples for name in ("loss", *self.model.loss.parts)}
        for name, part in read.get("masked", {}).items():
            steps = max(float(part["steps"]), 1.0)
            logs["loss"] += float(part["weighted"]) / steps - float(part["off"]) / samples
            if name != "loss":
                logs[name] = float(part["total"]) / steps
        for metric, _ in self.model.metrics_used:
            try:
                totals: Any = tree.map(lambda a: np.asarray(a, dtype=np.float64), read[metric.name])
                value = metric.result(totals)
                logs[metric.name] = value.tolist() if isinstance(value, np.ndarray) else value
            except Exception as error:
                raised_by(error, "metric", metric)
                raise
        return logs
