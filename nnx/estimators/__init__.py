"""scikit-learn estimators that train on nnx: multilayer perceptrons, and any network.

`MLPClassifier` and `MLPRegressor` have the interface of scikit-learn's; `Classifier` and `Regressor` train
any network. They need scikit-learn: pip install 'nnx-engine[sklearn]'. Each is imported when first used.

May import: core, activations, callbacks, data, distributed, layers, losses, models, NumPy, SciPy.
"""

import importlib
import importlib.util

if importlib.util.find_spec("sklearn") is None:
    raise ImportError("nnx.estimators needs scikit-learn: pip install 'nnx-engine[sklearn]'")

_MODULES = {
    "MLPClassifier": "mlp_classifier", "MLPRegressor": "mlp_regressor", "Classifier": "classifier",
    "Regressor": "regressor",
}  # fmt: skip

__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'nnx.estimators' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nnx.estimators.{_MODULES[name]}"), name)


def __dir__():
    return __all__
