"""`fit`: the loop over epochs, with callbacks, validation, the nonfinite guard and Ctrl-C.

Many steps run at a time; the loss stays on the device until the epoch ends.
"""

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import ContextVar

from nnx import log, tree
from nnx.callbacks import Callback, CallbackList, ProgressBar
from nnx.callbacks.history import History
from nnx.data.samples import Samples
from nnx.data.streams import as_batch, as_part_of_stream, first, iter_of, numbered
from nnx.distributed import ranks
from nnx.errors import own_exceptions
from nnx.interrupt import Interrupt
from nnx.saving import resume
from nnx.training.arguments import FitArguments, FitData
from nnx.training.batches import Batches, Stream, source_of
from nnx.training.nonfinite_guard import NonfiniteGuard
from nnx.training.preparation import prepared_for_training
from nnx.training.runner import StepRunner

NO_BATCH = (
    "the iterable of batches gave no batch: a generator is used up after one pass, so give a list or an object "
    "with __iter__, or for training one without end and steps_per_epoch="
)

fit_override: ContextVar[Callable | None] = ContextVar("nnx_fit_override", default=None)
"""If set, called with the `Trainer` instead of training."""


class Trainer:
    """One call of `fit`.

    Parameters
    ----------
    model : Model
        Compiled.
    arguments : FitArguments
    data : FitData
    """

    def __init__(self, model, arguments: FitArguments, data: FitData):
        self.model, self.arguments, self.data = model, arguments, data
        self.runner = StepRunner(model)
        self.interrupt = Interrupt.current()
        self.iterator: Iterator | None = None
        """The iterator of an iterable with `steps_per_epoch`; each epoch continues it."""

    def fit(self, callbacks, resume_from=None) -> History:
        """Train and return the history; `resume_from` is `resume` of `Model.fit`."""
        model, given = self.model, self.arguments
        if (other := fit_override.get()) is not None:
            return other(self)
        model.history = History()
        self.callbacks = _callback_list(model, callbacks, given.verbose)
        with resume.alone_in_folders(self.callbacks):
            self.metadata, self.begun, start = {}, None, given.initial_epoch
            if resume_from is not None or resume.is_wanted(self.callbacks):
                self.metadata = self._metadata()
            if resume_from is not None:
                self.begun = resume.begin(model, self.callbacks, self.metadata, resume_from)
            if self.begun is not None:
                start += self.begun["epochs"]
            samples, steps = self.data.samples, given.steps_per_epoch
            self.callbacks.set_params({
                "epochs": given.epochs, "steps": steps if samples is None else -(-len(samples) // given.batch_size),
                "verbose": given.verbose, "resumed": self.begun is not None,
                "do_validation": self.data.validation is not None, "validation_freq": given.validation_freq,
            })  # fmt: skip
            with model.backend.scope(model.dtype):
                self.train(start)
        return model.history

    def _metadata(self) -> dict:
        """Return the settings that must be the same when this training is resumed."""
        given = self.arguments
        return {
            "batch_size": given.batch_size, "initial_epoch": given.initial_epoch,
            "steps_per_epoch": given.steps_per_epoch, "validation_freq": given.validation_freq,
            "shuffle": given.shuffle if isinstance(given.shuffle, bool) else "function",
            "learning rate": resume.encode_or_name(self.model.optimizer.learning_rate),
            "training data": resume.describe(self.data.samples),
            "validation data": resume.describe(self.data.validation),
        }  # fmt: skip

    def train(self, start: int) -> None:
        """Run the epochs from `start` on."""
        model, runner, given, callbacks = self.model, self.runner, self.arguments, self.callbacks
        if runner.communicator is not None and model.built:  # else at the first batch
            metadata = {"epochs": given.epochs, "initial_epoch": start}
            if self.data.samples is not None:
                metadata |= {"batch_size": given.batch_size, **ranks.describe(self.data.samples)}
            runner.begin(metadata)
        source, validation = self._source(), self._validation_source()
        log.info(
            "training on %s in %s: epochs %d to %d", model.backend.name, model.dtype, start + 1, given.epochs
        )
        model.stop_training = False
        self.interrupt.check()
        try:
            callbacks.on_train_begin()
            can_repeat = not (isinstance(source, Stream) or callable(given.shuffle) or callbacks.each_batch)
            guard = NonfiniteGuard(runner, callbacks, source.epoch if can_repeat else None)
            if self.begun is not None:
                self._continue(self.begun)
            for epoch in range(start, given.epochs):
                if model.stop_training:  # set before the interruption
                    break
                callbacks.on_epoch_begin(epoch)
                guard.begin_epoch(epoch)
                totals, samples = self._train_epoch(source, guard)
                if totals is None:  # the iterable ended exactly with the previous epoch
                    break
                logs = guard.logs(totals, samples, epoch + 1 == given.epochs or model.stop_training)
                if validation is not None and (epoch + 1) % given.validation_freq == 0:
                    results = runner.evaluate(validation, self.interrupt.check, shared=True)
                    logs.update({f"val_{name}": value for name, value in results.items()})
                    guard.check_validation(logs)
                callbacks.on_epoch_end(epoch, logs)
                resume.save(model, callbacks, self.metadata, epoch)
                self.interrupt.check()
                if model.stop_training:
                    break
            guard.end()
        finally:  # not even Ctrl-C can interrupt before the call
            try:
                callbacks.on_train_end()
            finally:
                if self.iterator is not self.data.stream:  # it was made here
                    getattr(self.iterator, "close", lambda: None)()
        model.backend.synchronize(tree.leaves(model.params))

    def _train_epoch(self, source, guard: NonfiniteGuard) -> tuple[dict | None, int]:
        """Run the steps of an epoch; return the totals and the number of samples seen."""
        model, runner, callbacks = self.model, self.runner, self.callbacks
        totals, done, samples = None, 0, 0
        with contextlib.closing(source.epoch(model.step)) as epoch:
            for batches in _one_by_one(epoch) if callbacks.each_batch else epoch:
                if callbacks.each_batch:  # before the scalars, because it may set the learning rate
                    callbacks.on_train_batch_begin(done)
                if not runner.compiled.has_begun:
                    runner.begin({"number of samples": batches.batch_size})
                rows = runner.rows(batches, model.step)
                guard.before(rows, batches)
                for start, stop in runner.runs(batches.steps):
                    totals = runner.train(rows, batches, start, stop, totals, guard)
                    done, samples = done + stop - start, samples + (stop - start) * batches.batch_size
                    is_over = guard.check(totals)
                    callbacks.on_progress(done, source.steps)
                    if callbacks.each_batch:
                        callbacks.on_train_batch_end(done - 1, runner.logs(totals, samples))
                    self.interrupt.check()
                    if is_over or model.stop_training:  # another thread may set it
                        return totals, samples
        if self.data.stream is not None:
            self._check_end(done)
        return totals, samples

    def _check_end(self, done: int) -> None:
        """Raise an error or warn if the iterable of batches ended too early; end training then."""
        due = self.arguments.steps_per_epoch
        if done == 0 and (due is None or self.model.step == 0):
            raise ValueError(NO_BATCH)
        if due is not None and done < due:
            log.warn(
                f"the iterable of batches ended after {done} of {due} batches of this epoch: training stops. Give one "
                f"that yields steps_per_epoch * epochs batches"
            )
            self.model.stop_training = True

    def _continue(self, begun: dict) -> None:
        """Restore callbacks and data to the point of the interruption."""
        resume.continue_callbacks(self.model, self.callbacks, begun)
        if self.iterator is not None:  # the batches of the epochs that are done
            done = begun["epochs"] * (self.arguments.steps_per_epoch or 0)
            collections.deque(itertools.islice(self.iterator, done), maxlen=0)

    def _source(self):
        model, given, stream, samples = self.model, self.arguments, self.data.stream, self.data.samples
        communicator, steps = self.runner.communicator, given.steps_per_epoch
        if samples is not None:
            return source_of(
                model.backend, samples, given.batch_size, given.shuffle, model.seed, communicator
            )
        if steps is None:
            whole = lambda step: checked_batches(model, stream, name="steps_per_epoch")  # noqa: E731
            return Stream(model.backend, whole, None, communicator)
        self.iterator = iterator = iter_of(stream)

        def batches(step):
            return checked_batches(model, itertools.islice(iterator, steps))

        return Stream(model.backend, batches, steps, communicator)

    def _validation_source(self):
        model, given, validation = self.model, self.arguments, self.data.validation
        if validation is None:
            return None
        size, communicator = given.validation_batch_size, self.runner.communicator
        if isinstance(validation, Samples):
            return source_of(model.backend, validation, size, communicator=communicator)

        def batches(step):
            return checked_batches(model, validation, given.validation_steps, "validation_steps")

        return Stream(model.backend, batches, given.validation_steps, communicator)


def _one_by_one(epoch: Iterable[Batches]) -> Iterator[Batches]:
    for batches in epoch:
        yield from batches.one_by_one()


def _callback_list(model, callbacks, verbose) -> CallbackList:
    """Return the callbacks of `fit`, the history and the progress bar as one callback, for a model."""
    given = [callbacks] if isinstance(callbacks, Callback) else () if callbacks is None else callbacks
    if not isinstance(given, Iterable) or isinstance(given, str):
        raise TypeError(f"callbacks must be a list of nnx.callbacks.Callback objects, got {callbacks!r}")
    shown = [] if verbose == 0 else [ProgressBar(bar=False if verbose == 2 else None)]
    hooks = CallbackList([*given, model.history, *shown], ranks.rank())
    hooks.set_model(model)
    return hooks


def checked_batches(model, stream, steps: int | None = None, name: str | None = None) -> Generator[Samples]:
    """Yield the first `steps` batches of an iterable, or all, as checked samples; for `name` see `numbered`."""
    with contextlib.closing(own_exceptions(first(stream, steps))) as items:
        for number, item in numbered(items, stream, steps, name):
            yield as_part_of_stream(lambda item: prepared_for_training(model, *as_batch(item)), item, number)
