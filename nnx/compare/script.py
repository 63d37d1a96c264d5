"""The model to compare, given on the command line: a saved model, a function, or a script that calls `fit`."""

import contextlib
import itertools
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnx.compare.trial import trial_model
from nnx.data.samples import batch_indices
from nnx.data.streams import as_batch
from nnx.models.model import Model
from nnx.models.sequential import load
from nnx.random import SHUFFLE, generator
from nnx.training.trainer import NO_BATCH, fit_override


class SourceError(ValueError):
    """The source on the command line gives no model to compare."""


def load_source(
    source: str | None, arguments=(), steps: int = 3, batch_size: int | None = None, seed: int = 0
):
    """Return (model, batches); the batches are None if the source has no data.

    Parameters
    ----------
    source : str, optional
        A file that `model.save` wrote; `file.py:function`, a function that returns a compiled
        model; or `file.py`, a script, which is run until it first calls `fit`. By default the
        built-in network.
    arguments : list of str
        The arguments of the script, in `sys.argv`.
    steps, batch_size : int
        Number and size of the batches to take from a script; the size by default that of its `fit`.
    seed : int
        The seed of the built-in network.

    Raises
    ------
    SourceError
    """
    if arguments and not (source or "").endswith(".py"):
        raise SourceError(f"arguments after -- are for a script, and {source or 'nothing'} is none")
    if source is None:
        return trial_model(seed), None
    path, colon, function = source.rpartition(":")
    if colon and path.endswith(".py"):
        return _call_function(Path(path), function), None
    if not Path(source).is_file():
        raise SourceError(f"there is no file {source}: expected a saved model, script.py or file.py:function")
    if source.endswith(".py"):
        return _first_fit(Path(source), arguments, steps, batch_size)
    try:
        return load(source), None
    except (ValueError, OSError) as error:
        raise SourceError(str(error)) from None


def _call_function(path: Path, name: str) -> Model:
    """Return the result of the function called `name` in a file."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    with _running(path, ()):
        names = runpy.run_path(str(path), run_name=path.stem)
        if not callable(names.get(name)):
            known = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
            raise SourceError(f"{path} has no function {name!r}: it has {', '.join(known) or 'none'}")
        return names[name]()


class _FirstFit(BaseException):
    """Ends a script at its first `fit`; not an Exception, so that the script does not catch it."""

    def __init__(self, model: Model, batches: list):
        self.model, self.batches = model, batches


def _first_fit(path: Path, arguments, steps: int, batch_size: int | None) -> tuple[Model, list]:
    """Run a script; return the model and the first batches of its first `fit`."""

    def stop(trainer):
        model, samples, arguments = trainer.model, trainer.data.samples, trainer.arguments
        if samples is None:
            batches = [as_batch(item) for item in itertools.islice(iter(trainer.data.stream), steps)]
        else:
            order = np.arange(len(samples))
            if arguments.shuffle:
                generator(model.seed, SHUFFLE, model.step).shuffle(order)
            indices = [i for part in batch_indices(order, batch_size or arguments.batch_size) for i in part]
            batches = [(samples.x[i], samples.y[i], samples.weight[i]) for i in indices]
        if not batches:
            raise ValueError(NO_BATCH)
        raise _FirstFit(model, list(itertools.islice(itertools.cycle(batches), steps)))

    token = fit_override.set(stop)
    try:
        with _running(path, arguments):
            runpy.run_path(str(path), run_name="__main__")
    except _FirstFit as first:
        return first.model, first.batches
    finally:
        fit_override.reset(token)
    raise SourceError(
        f"{path} ran to its end without calling fit: name a function in it that returns a compiled model, as in "
        f"{path}:build"
    )


@contextlib.contextmanager
def _running(path: Path, arguments) -> Iterator[None]:
    """Run the code of a file inside a `with` block as `python file` does; its output goes to stderr."""
    argv, folder = sys.argv, str(path.parent.resolve())
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise SourceError(f"{path} exited with code {error.code} before it called fit") from None
    except SourceError:
        raise
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise SourceError(f"{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = argv
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
