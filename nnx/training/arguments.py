"""The checked arguments of `fit`: settings in `FitArguments`, data in `FitData`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from nnx.data.samples import Samples, check_count, check_epochs, check_shuffle, check_verbose


@dataclass(frozen=True)
class FitArguments:
    """The arguments of `fit` other than data and callbacks; see `Model.fit`.

    Raises
    ------
    ValueError
        If a value is out of range; the message names it.
    """

    batch_size: int
    """None means 32."""
    epochs: int
    initial_epoch: int
    shuffle: Any
    verbose: Any
    steps_per_epoch: int | None
    validation_steps: int | None
    validation_batch_size: int
    """None means max(batch_size, 256)."""
    validation_freq: int

    def __post_init__(self):
        def set_(name, value):
            object.__setattr__(self, name, value)  # the dataclass is frozen

        size = check_count("batch_size", 32 if self.batch_size is None else self.batch_size)
        validation_size = max(size, 256) if self.validation_batch_size is None else self.validation_batch_size
        initial_epoch, epochs = check_epochs(self.initial_epoch, self.epochs)
        check_verbose(self.verbose)
        set_("batch_size", size)
        set_("validation_freq", check_count("validation_freq", self.validation_freq))
        set_("validation_batch_size", check_count("validation_batch_size", validation_size))
        set_("initial_epoch", initial_epoch)
        set_("epochs", epochs)
        for name in ("steps_per_epoch", "validation_steps"):
            if getattr(self, name) is not None:
                set_(name, check_count(name, getattr(self, name)))
        set_("shuffle", check_shuffle(self.shuffle))


class FitData(NamedTuple):
    """The data of `fit` to train and validate on: samples on the host, or iterables of batches."""

    samples: Samples | None
    stream: Any = None
    """The iterable of batches, if `samples` is None."""
    validation: Any = None
    """Samples, an iterable of batches, or None."""
