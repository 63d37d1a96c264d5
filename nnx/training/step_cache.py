"""The cache of compiled step functions: models with equal settings share them.

A grid search over learning rates compiles once, cross-validation once for each architecture.
"""

import copy

from nnx import log
from nnx.distributed.ranks import Communicator
from nnx.graph.fingerprint import Settings
from nnx.lru_cache import Recent
from nnx.training.purity import Guard
from nnx.training.step import Steps


class CompiledSteps:
    """The step functions of one model, since it was compiled or moved to another backend."""

    def __init__(self):
        self.steps_a_run = 1
        """The number of steps that a call runs; `StepRunner.runs` adjusts it."""
        self.has_begun = False
        """Whether the processes that train together have the same seed and weights."""
        self._steps: Steps | None = None
        self._settings = Settings()
        self._communicator: Communicator | None = None

    def of(self, model, communicator: Communicator | None) -> Steps:
        """Return the step functions for the current settings of the model."""
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
    """Return the step functions for a model: those of an earlier model with equal settings, if there is one.

    Parameters
    ----------
    model : Model
    settings : Settings
        The settings of `parts_of(model)`. Steps that run user code are not shared: they refer to its objects.
    communicator : Communicator, optional
        The communicator of processes that train together.
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
    """Return everything that determines a step."""
    return model.network, model.loss, model.metrics_used, model.optimizer, model.dtype


# On JAX the programs of a small network take about 25 MiB.
_remembered = Recent(few=4, most=64)
