"""Models of equal settings share their step functions, so that only the first of them is compiled.

A grid search over learning rates compiles once, and cross-validation once for each architecture.
"""

import copy

from nnx.graph.fingerprint import Settings
from nnx.lru_cache import Recent
from nnx.training.purity import Guard
from nnx.training.step import Steps


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
    return _remembered.get(
        (settings.key, model.backend, communicator),
        lambda: Steps(model.backend, *copy.deepcopy(parts), communicator=communicator),
    )


def parts_of(model) -> tuple:
    """Return all that decides what a step does."""
    return model.network, model.loss, model.metrics_used, model.optimizer, model.dtype


# On JAX the programs of a small network take about 25 MiB.
_remembered = Recent(few=4, most=64)
