"""What a classifier and a regressor of any network have in common: a function `build` makes the network.

The function is called at each fit, so that each fold of a cross-validation starts afresh, and its
arguments are parameters of the estimator: a search over `build__units` tries widths.
"""

import copy
from inspect import signature
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nnx import losses, optimizers
from nnx.callbacks.history import History
from nnx.estimators.routing import FROM_DATA, RoutedParameters
from nnx.layers import Layer
from nnx.models.model import DTYPES, Model
from nnx.models.sequential import Sequential
from nnx.registry import init_arguments


class NetworkEstimator(RoutedParameters):
    """A scikit-learn estimator that trains what `build` returns."""

    epochs: Any
    batch_size: Any
    loss: Any
    metrics: Any
    callbacks: Any
    validation_split: Any
    shuffle: Any
    verbose: Any
    random_state: Any
    backend: Any
    dtype: Any
    model_: Model
    history_: History

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # What differs between them

    def _default_loss(self, model) -> str:
        raise NotImplementedError

    def _check_y(self, y) -> np.ndarray:
        """Return targets as an array of labels or numbers."""
        raise NotImplementedError

    def _check_network(self, model) -> None:
        """Raise a ValueError if this network cannot learn these targets."""

    def _targets(self, y) -> np.ndarray:
        """Return targets as the loss takes them."""
        return y

    def _weights(self, y, weight):
        """Return one weight a sample, or None."""
        return weight

    # Fitting

    def _check_data(self, X, y, reset: bool):
        of_y = {"ensure_2d": False, "allow_nd": True, "dtype": None, "ensure_min_samples": 0}
        separately: Any = ({"allow_nd": True}, of_y)
        checked: Any = validate_data(self, X, y, reset=reset, validate_separately=separately)
        check_consistent_length(*checked)
        return checked[0], self._check_y(checked[1])

    def _make_model(self, X, outputs: int) -> Model:
        """Return a new model for samples such as these, compiled and with fresh weights."""
        self.check_names()
        model = self._network(X, outputs)
        if self.random_state is not None:
            model.seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.dtype is not None and self.dtype != model.dtype:
            if self.dtype not in DTYPES or model.built:
                expected = f"{model.dtype}, that of its weights" if model.built else ", ".join(DTYPES)
                raise ValueError(f"dtype must be {expected}, or None; got {self.dtype!r}")
            model.dtype = self.dtype
        if self.backend is not None:
            model.to(self.backend)
        if not model.built:
            model.build(model.input_shape or X.shape[1:])
        loss = losses.get(_first(self.loss, model.loss, self._default_loss(model)))
        plain, weighted = (
            [m for m, is_weighted in model.metrics_used if is_weighted == w] for w in (False, True)
        )
        if self.metrics is not None:
            plain, weighted = self.metrics, []
        model.compile(self._optimizer(model), loss, metrics=plain, weighted_metrics=weighted)
        self._check_network(model)
        return model

    def _network(self, X, outputs) -> Model:
        """Return what `build` makes, as a model of its own; layers compute in double precision if X is that."""
        build = self.default_build if self.build is None else self.build
        if not callable(build) or isinstance(build, (Model, Layer)):
            raise TypeError(
                f"build must be a function that returns a new network at each call, got {build!r}: "
                f"write  def build(): return nnx.Sequential([...])"
            )
        data = dict(zip(FROM_DATA, (X.shape[1:], outputs), strict=True))
        wanted = {name: data[name] for name in FROM_DATA if name in signature(build).parameters}
        built = build(**wanted, **self.routed("build"))
        if isinstance(built, Model):
            return copy.deepcopy(built)  # should `build` return the same one each time
        dtype = "float64" if X.dtype == np.float64 else "float32"
        if isinstance(built, Layer):
            return Model(copy.deepcopy(built), dtype=dtype)
        if isinstance(built, (list, tuple)) and built:
            return Sequential([*copy.deepcopy(built)], dtype=dtype)
        raise TypeError(f"build must return an nnx model, a layer or a list of layers, got {built!r}")

    def _optimizer(self, model) -> optimizers.Optimizer:
        """Return a copy of the optimizer, with its routed parameters."""
        chosen = optimizers.get(_first(self.optimizer, model.optimizer, "adam"))
        settings = {name: getattr(chosen, name) for name in init_arguments(type(chosen))}
        return type(chosen)(**{**settings, **self.routed("optimizer")})

    def _train(self, X, y, sample_weight, validation_data, split, **epochs) -> None:
        weight = (
            None
            if sample_weight is None
            else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        )
        if weight is not None and not weight.any():  # older versions of scikit-learn let this pass
            raise ValueError("Sample weights must contain at least one non-zero number.")
        weight = self._weights(y, weight)
        if weight is not None:
            weight = weight * (len(weight) / weight.sum())  # only their ratios matter
        if validation_data is not None:
            validation_data = self._checked_validation(*validation_data)
        elif split:
            X, y, weight, validation_data = self._split(X, y, weight, split)
        callbacks = self.callbacks if isinstance(self.callbacks, (list, tuple)) else [self.callbacks]
        self.history_ = self.model_.fit(
            X,
            self._targets(y),
            self.batch_size,
            verbose=self.verbose,
            callbacks=[copy.copy(callback) for callback in callbacks if callback is not None],
            validation_data=validation_data,
            shuffle=self.shuffle,
            sample_weight=weight,
            **epochs,
        )

    def _checked_validation(self, X, y, sample_weight=None):
        X, y = self._check_data(X, y, reset=False)
        return (X, self._targets(y)) if sample_weight is None else (X, self._targets(y), sample_weight)

    def _split(self, X, y, weight, share):
        """Return (X, y, weight, validation_data), some samples put aside."""
        train, kept = train_test_split(
            np.arange(len(X)),
            test_size=share,
            random_state=self.model_.seed % 2**32,
            stratify=self._strata(y),
        )
        validation = (X[kept], self._targets(y[kept]))
        if weight is None:
            return X[train], y[train], None, validation
        return X[train], y[train], weight[train], (*validation, weight[kept])

    def _strata(self, y):
        """Return of which every part is to hold its share, or None."""
        return None

    def _outputs(self, X) -> np.ndarray:
        """Return the network's outputs, in double precision where X is."""
        check_is_fitted(self, "model_")
        samples: Any = validate_data(self, X, reset=False, allow_nd=True)
        outputs = self.model_.predict(samples)
        return outputs.astype(np.result_type(outputs, samples))


def _first(*values):
    """Return the first that is not None."""
    return next(value for value in values if value is not None)
