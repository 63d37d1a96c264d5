"""Compiled step functions: kept while no setting changes, and shared by models of equal settings.

A grid search over learning rates compiles once, and cross-validation once for each architecture.
"""

import copy

from nnx import log
from nnx.distributed.ranks import Communicator
from nnx.graph.fingerprint import Settings
from nnx.lru_cache import Recent
from nnx.training.purity import Guard
from nnx.training.step import Steps


class CompiledSteps:
    """The step functions of one model since it was compiled, or moved to another backend."""

    def __init__(self):
        self.steps_a_run = 1
        """How many steps a call runs at a time; `StepRunner.runs` adjusts it."""
        self.has_begun = False
        """Whether the processes that train together have agreed on seed and weights."""
        self._steps: Steps | None = None
        self._settings = Settings()
        self._communicator: Communicator | None = None

    def of(self, model, communicator: Communicator | None) -> Steps:
        """Return the step functions for the settings that the model has now."""
        have_changed = self._settings.have_changed(parts_of(model))
        if self._steps is None or have_changed or communicator is not self._communicator:
            guard = None if self._steps is None else self._steps.guard
            if self._steps is not None and have_changed:
                if guard is None:
                    model.expect_same_weights()
                if guard is None or guard.reason is None:
                    log.info("settings have changed since the last step: steps are compiled anew")
            reason = None if guard is None else guard.reason
            self._steps = shared_steps(model, self._settings, communicator, reason)
            self._communicator = communicator
        return self._steps


def shared_steps(model, settings: Settings, communicator=None, reason: str | None = None) -> Steps:
    """Return the step functions for `model`: those of an earlier model of equal settings, if any.

    Parameters
    ----------
    model : Model
    settings : Settings
        Those of `parts_of(model)`. Steps that run user code are not shared, as they refer to the user's objects.
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
