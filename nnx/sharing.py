"""Models of equal settings share their step functions, so that only the first of them is compiled.

A grid search over learning rates compiles once, and cross-validation once for each architecture.
"""

import copy
import functools

from nnx.backend import Backend
from nnx.registry import Configurable, init_arguments, is_own
from nnx.step import Steps


def shared_steps(model, communicator=None) -> Steps:
    """Return the step functions for `model`: those of an earlier model of equal settings, if any.

    The settings are those of now: changing a layer later has no effect until the next `compile`.
    """
    parts = (model.network, model.loss, model.metrics_used, model.optimizer, model.dtype)
    try:
        key = _settings(parts)
    except TypeError:  # something that cannot be compared, such as a layer of one's own
        return Steps(model.backend, *parts, communicator=communicator)
    return _remembered(key, model.backend, communicator, _NotCompared(parts))


class _NotCompared(tuple):
    """Arguments that do not count when an earlier call is looked up."""

    def __eq__(self, other):
        return isinstance(other, _NotCompared)

    def __hash__(self):
        return 0


@functools.lru_cache(maxsize=64)
def _remembered(key: tuple, backend: Backend, communicator, parts: _NotCompared) -> Steps:
    return Steps(backend, *copy.deepcopy(tuple(parts)), communicator=communicator)


def _settings(value) -> tuple:
    """Return what decides about a step, in a form that can be compared: classes and arguments."""
    if isinstance(value, Configurable) and is_own(value):
        # The learning rate is an argument of the step.
        names = [name for name in init_arguments(type(value)) if name != "learning_rate"]
        return (type(value), *(_settings(getattr(value, name)) for name in names))
    if isinstance(value, (list, tuple)):
        return tuple(_settings(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _settings(item)) for name, item in value.items())
    if value is None or isinstance(value, (bool, int, float, str)):
        return (type(value), value)
    raise TypeError(f"cannot compare {value!r}")
