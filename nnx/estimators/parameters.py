"""Constraints on the parameters of the estimators: scikit-learn's, and those of the parameters that nnx adds."""

from numbers import Real

from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils._param_validation import Interval, StrOptions

from nnx import activations, losses, optimizers
from nnx.backend import Backend
from nnx.estimators.perceptron import NAMES
from nnx.models.model import DTYPES
from nnx.registry import REGISTRIES

_limit = [None, Interval(Real, 0, None, closed="neither")]

ADDED = {
    "activation": [StrOptions({*NAMES, *activations.names()}), list, tuple, activations.Activation],
    "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"}), callable],
    "dropout": [Interval(Real, 0, 1, closed="left"), list, tuple],
    "batch_norm": ["boolean"],
    "metrics": [None, list, tuple],
    "callbacks": [None, list, tuple],
    "optimizer": [None, StrOptions(set(REGISTRIES["optimizer"].names())), optimizers.Optimizer],
    "clipnorm": _limit,
    "clipvalue": _limit,
    "global_clipnorm": _limit,
    "restore_best": ["boolean"],
    "backend": [None, str, Backend],
    "dtype": [None, StrOptions(set(DTYPES))],
}

_names = set(REGISTRIES["loss"].names())

CLASSIFIER = {
    **MLPClassifier._parameter_constraints,
    **ADDED,
    "loss": [StrOptions({"log_loss", "focal", *_names}), losses.Loss, callable],
    "class_weight": [None, StrOptions({"balanced"}), dict, list],
}
REGRESSOR = {
    **MLPRegressor._parameter_constraints,
    **ADDED,
    "loss": [StrOptions({"squared_error", "absolute_error", *_names}), losses.Loss, callable],
}
