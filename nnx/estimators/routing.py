"""Arguments of functions as parameters of an estimator: `build__units`, `optimizer__learning_rate`.

scikit-learn searches over the parameters that `get_params` returns. Here they include each argument of
the function that builds the network, and of the optimizer.
"""

import inspect
from typing import Any

from sklearn.base import BaseEstimator

from nnx.optimizers import Optimizer
from nnx.registry import REGISTRIES, init_arguments, suggest

FROM_DATA = ("input_shape", "outputs")
"""Arguments of `build` that the estimator derives from the data."""


def keep_arguments(estimator, arguments: dict[str, Any]) -> None:
    """Store the arguments of `__init__`, given as its `locals()`, as attributes of the same names."""
    routed = arguments.pop("routed", {})
    vars(estimator).update({**arguments, **routed})
    del estimator.self


class RoutedParameters(BaseEstimator):
    """A scikit-learn estimator whose parameters include those of `build` and `optimizer`."""

    build: Any
    optimizer: Any

    def default_build(self, outputs):
        """Return the layers of the network if no `build` was given."""
        raise NotImplementedError

    def routed(self, to: str) -> dict:
        """Return the arguments for `to`, "build" or "optimizer"."""
        prefix = f"{to}__"
        return {name.removeprefix(prefix): v for name, v in vars(self).items() if name.startswith(prefix)}

    def check_names(self) -> None:
        """Raise a ValueError if a parameter is unknown; scikit-learn forbids `__init__` to do it."""
        known = [*self._get_param_names(), *self._arguments()]
        for name in self.get_params(deep=False):
            if name not in known and not (name.startswith("build__") and self._takes_any()):
                raise ValueError(suggest(f"parameter of {type(self).__name__}", name, known))

    def get_params(self, deep=True):
        """Return the parameters; if deep, also the defaults of those of `build` and `optimizer`."""
        given = {name: v for name, v in vars(self).items() if not name.startswith("_") and name[-1] != "_"}
        return {**super().get_params(deep), **(self._arguments() if deep else {}), **given}

    def set_params(self, **params):
        """Set parameters, including those of `build` and `optimizer`, and return the estimator."""
        routed = {name: v for name, v in params.items() if name.startswith(("build__", "optimizer__"))}
        super().set_params(**{name: value for name, value in params.items() if name not in routed})
        vars(self).update(routed)
        if routed:
            self.check_names()
        return self

    def _arguments(self) -> dict[str, Any]:
        """Return the default of each argument of `build` and `optimizer`."""
        defaults = {}
        for p in self._signature():
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in FROM_DATA:
                defaults[f"build__{p.name}"] = None if p.default is p.empty else p.default
        optimizer: Any = "adam" if self.optimizer is None else self.optimizer
        if isinstance(optimizer, str):
            optimizer = REGISTRIES["optimizer"].known(optimizer)
        optimizer = optimizer() if isinstance(optimizer, type) else optimizer
        if isinstance(optimizer, Optimizer):
            for name in init_arguments(type(optimizer)):
                defaults[f"optimizer__{name}"] = getattr(optimizer, name)
        return defaults

    def _signature(self) -> list:
        """Return the arguments of `build`; none if it is not a function, an error that `fit` reports."""
        build = self.default_build if self.build is None else self.build
        return list(inspect.signature(build).parameters.values()) if callable(build) else []

    def _takes_any(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in self._signature())
