"""`NetworkEstimator`, the base of `Classifier` and `Regressor`: a function `build` makes the network.

Each fit calls the function, so that each fold of a cross-validation trains a new network. Its
arguments are parameters of the estimator: a search over `build__units` tries widths.
"""

import copy
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nnx import losses, optimizers
from nnx.callbacks.history import History
from nnx.data.samples import check_count
from nnx.estimators.routing import FROM_DATA, RoutedParameters
from nnx.layers import Layer
from nnx.models.model import DTYPES, Model
from nnx.models.sequential import Sequential
from nnx.registry import init_arguments


class NetworkEstimator(RoutedParameters):
    """A scikit-learn estimator that trains what `build` returns."""

    model_: Model
    history_: History

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a parameter, or an attribute that `fit` has set."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # What a subclass defines

    def _default_loss(self, model) -> str:
        raise NotImplementedError

    def _check_y(self, y) -> np.ndarray:
        """Return y as an array of labels or numbers."""
        raise NotImplementedError

    def _count_outputs(self, y) -> int:
        """Return how many outputs the network needs, and keep what later calls need to know about y."""
        raise NotImplementedError

    def _check_network(self, model) -> None:
        """Raise a ValueError if this network cannot learn these targets."""

    def _encode(self, y) -> np.ndarray:
        """Return y as numbers."""
        return y

    def _targets(self, y) -> np.ndarray:
        """Return encoded y as the loss expects it."""
        return y

    def _weights(self, y, weight):
        """Return one weight a sample, or None."""
        return weight

    # Fitting

    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Train a new network, and return the estimator.

        Parameters
        ----------
        X : array, (samples, ...)
        y : array, (samples,) or (samples, targets)
            Labels of any kind, such as text, for a classifier; numbers for a regressor.
        sample_weight : array, (samples,), optional
            Scaled to a mean of 1: only their ratios count.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Samples to validate on after each epoch, in place of `validation_split`.
        """
        X, y = self._check_data(X, y, reset=True)
        self.model_ = self._make_model(X, self._count_outputs(y))
        epochs = check_count("epochs", self.epochs)
        self._train(X, self._encode(y), sample_weight, validation_data, self.validation_split, epochs=epochs)
        return self

    def _fit_epoch(self, X, y, sample_weight, classes=None):
        """Continue training for one epoch; the first call makes the network."""
        first = not hasattr(self, "model_")
        X, y = self._check_data(X, y, reset=first)
        if first:
            self.model_ = self._make_model(X, self._count_outputs(y if classes is None else classes))
        done = 0 if first else self.history_.epoch[-1] + 1
        self._train(X, self._encode(y), sample_weight, None, None, initial_epoch=done, epochs=done + 1)
        return self

    def _check_data(self, X, y, reset: bool):
        y_settings = {"ensure_2d": False, "allow_nd": True, "dtype": None, "ensure_min_samples": 0}
        settings: Any = ({"allow_nd": True}, y_settings)
        arrays: Any = validate_data(self, X, y, reset=reset, validate_separately=settings)
        check_consistent_length(*arrays)
        return arrays[0], self._check_y(arrays[1])

    def _make_model(self, X, outputs: int) -> Model:
        """Return a new compiled model for samples like X, with starting weights."""
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
        """Return a new model of the network that `build` makes; layers alone take their precision from X."""
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
            return copy.deepcopy(built)  # `build` may return the same one each time
        dtype = "float64" if X.dtype == np.float64 else "float32"
        if isinstance(built, Layer):
            return Model(copy.deepcopy(built), dtype=dtype)
        if isinstance(built, (list, tuple)) and built:
            return Sequential([*copy.deepcopy(built)], dtype=dtype)
        raise TypeError(f"build must return an nnx model, a layer or a list of layers, got {built!r}")

    def _optimizer(self, model) -> optimizers.Optimizer:
        """Return a new optimizer with the settings of the chosen one and its routed parameters."""
        chosen = optimizers.get(_first(self.optimizer, model.optimizer, "adam"))
        settings = {name: getattr(chosen, name) for name in init_arguments(type(chosen))}
        return type(chosen)(**{**settings, **self.routed("optimizer")})

    def _train(self, X, y, sample_weight, validation_data, split, **epochs) -> None:
        weight = sample_weight
        if weight is not None:
            weight = _check_sample_weight(weight, X, ensure_non_negative=True)
            if not weight.any():  # older versions of scikit-learn let this pass
                raise ValueError("Sample weights must contain at least one non-zero number.")
        weight = self._weights(y, weight)
        if weight is not None:
            weight = weight * (len(weight) / weight.sum())  # only their ratios matter
        if validation_data is not None:
            validation_data = self._validate_validation_data(*validation_data)
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

    def _validate_validation_data(self, X, y, sample_weight=None):
        X, y = self._check_data(X, y, reset=False)
        return X, self._targets(self._encode(y)), sample_weight

    def _split(self, X, y, weight, share):
        """Return (X, y, weight, validation_data), with a share of the samples held out."""
        train, held_out = train_test_split(
            np.arange(len(X)),
            test_size=share,
            random_state=self.model_.seed % 2**32,
            stratify=self._strata(y),
        )
        validation = (X[held_out], self._targets(y[held_out]))
        if weight is None:
            return X[train], y[train], None, validation
        return X[train], y[train], weight[train], (*validation, weight[held_out])

    def _strata(self, y):
        """Return the classes that training and validation samples share in proportion, or None."""
        return None

    def _outputs(self, X) -> np.ndarray:
        """Return the network's outputs, in float64 if X is."""
        check_is_fitted(self, "model_")
        samples: Any = validate_data(self, X, reset=False, allow_nd=True)
        outputs = self.model_.predict(samples)
        return outputs.astype(np.result_type(outputs, samples))


def _first(*values):
    """Return the first value that is not None."""
    return next(value for value in values if value is not None)
