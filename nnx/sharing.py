"""Models of equal settings share their step functions, so that only the first of them is compiled.

A grid search over learning rates compiles once, and cross-validation once for each architecture.
"""

import copy
import functools

from nnx.backend import Backend
from nnx.fingerprint import Settings
from nnx.purity import Guard
from nnx.step import Steps


def shared_steps(model, settings: Settings, communicator=None, reason: str | None = None) -> Steps:
    """Return the step functions for `model`: those of an earlier model of equal settings, if any.

    Parameters
    ----------
    model : Model
    settings : Settings
        Those of `parts_of(model)`. Steps that run code of the user's are not shared, as they refer to the
        user's own objects.
    communicator : Communicator, optional
        Of processes that train together.
    reason : str, optional
        Why earlier steps of the model were not compiled; see `Guard`.
    """
    parts = parts_of(model)
    if settings.is_users:
        guard = Guard(model.backend, parts[:-1], reason)
        return Steps(model.backend, *parts, communicator=communicator, guard=guard)
    return _remembered(settings.key, model.backend, communicator, _NotCompared(parts))


def parts_of(model) -> tuple:
    """Return all that decides what a step does."""
    return model.network, model.loss, model.metrics_used, model.optimizer, model.dtype


class _NotCompared(tuple):
    """Arguments that do not count when an earlier call is looked up."""

    def __eq__(self, other):
        return isinstance(other, _NotCompared)

    def __hash__(self):
        return 0


@functools.lru_cache(maxsize=64)
def _remembered(key: tuple, backend: Backend, communicator, parts: _NotCompared) -> Steps:
    return Steps(backend, *copy.deepcopy(tuple(parts)), communicator=communicator)
