"""`Perceptron`, the base of `MLPClassifier` and `MLPRegressor`: from scikit-learn's parameters to a model of nnx.

`coefs_` and `intercepts_` are the weights that predictions use and from which training continues. The model
keeps the rest of the training state: the optimizer's slots, and moving averages.
"""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from sklearn import model_selection
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state, column_or_1d, validation
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight

from nnx import activations, losses, optimizers, tree
from nnx.data.samples import pad_samples
from nnx.distributed.ranks import LAUNCH
from nnx.errors import NonFiniteError
from nnx.estimators import lbfgs, perceptron, sparse
from nnx.estimators.epochs import Epochs, Order
from nnx.estimators.losses import WeightedMean
from nnx.models.sequential import Sequential
from nnx.random import WEIGHTS, generator
from nnx.registry import REGISTRIES

# Output activations are computed on the host, where the smallest probabilities are not rounded to 0.
ON_HOST = {
    activations.Sigmoid: expit,
    activations.Softmax: lambda z: softmax(z, axis=1),
    activations.Exponential: np.exp,
}
# scikit-learn has no type annotations, and the inferred types are wrong.
validate_data: Any = validation.validate_data
train_test_split: Any = model_selection.train_test_split
FLOATS = (np.float64, np.float32)
# Samples of one batch of a prediction.
PREDICTION_BATCH = 4096
# Parameters that have no meaning for L-BFGS, with their defaults.
EPOCHS_ONLY = {
    "dropout": 0.0,
    "batch_norm": False,
    "metrics": None,
    "callbacks": None,
    "optimizer": None,
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "restore_best": False,
}
NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed."
)
# Parameters of the model: if one of them has changed, `partial_fit` makes a new model.
MODEL_PARAMETERS = ("alpha", "activation", "loss", "dropout", "batch_norm", "metrics", "backend", "dtype")


class Perceptron(BaseEstimator):
    """Base of `MLPClassifier` and `MLPRegressor`."""

    _model: Any

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a parameter, or an attribute that `fit` has set."""

    # What a subclass defines

    def _validate_input(self, X, y, incremental, reset):
        """Return checked X and y; y with a column for each output."""
        raise NotImplementedError

    def _named_loss(self) -> losses.Loss | None:
        """Return the loss called `self.loss` if only this estimator knows the name, else None."""
        raise NotImplementedError

    def _choose_out_activation(self) -> str:
        raise NotImplementedError

    def _score(self, outputs, y, sample_weight) -> float:
        """Return the score of outputs of the network."""
        raise NotImplementedError

    # Training

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Train on samples (samples, features), and return the estimator.

        Parameters
        ----------
        X : array or sparse matrix
        y : array
            Labels (samples,) or label indicators (samples, labels); of a regressor targets, (samples,) or
            (samples, outputs).
        sample_weight : array, (samples,)
        validation_data : (X, y) or (X, y, sample_weight)
            Loss and metrics on it are in `history_`, and `early_stopping` uses it.
        """
        return self._fit(X, y, sample_weight, validation_data)

    def _validate_arrays(self, X, y, reset, **settings):
        """Return X and y as arrays of numbers or labels, y without an axis of length 1."""
        X, y = validate_data(
            self, X, y, accept_sparse=["csr"], multi_output=True, dtype=FLOATS, reset=reset, **settings
        )
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _fit(self, X, y, sample_weight=None, validation_data=None, incremental=False):
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.asarray(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        self._check_solver(validation_data)
        first = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        labels = y
        X, y = self._validate_input(X, y, incremental, reset=first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        sample_weight = self._times_class_weight(labels, sample_weight, incremental)
        if validation_data is not None:
            validation_data = self._validate_validation_data(*validation_data)
        self.n_outputs_ = y.shape[1]
        self._random_state = check_random_state(self.random_state)
        sizes = [X.shape[1], *map(int, hidden), self.n_outputs_]
        if first:
            self._initialize(sizes, X.dtype)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, y, sample_weight)
        else:
            self._fit_epochs(X, y, sample_weight, validation_data, incremental)
        if not all(np.isfinite(w).all() for w in (*self.coefs_, *self.intercepts_)):
            raise ValueError(NOT_FINITE)
        return self

    def _check_solver(self, validation_data):
        """Raise a ValueError if L-BFGS is given a parameter that needs epochs."""
        if self.solver == "lbfgs":
            given = [name for name, default in EPOCHS_ONLY.items() if getattr(self, name) != default]
            given += ["validation_data"] if validation_data is not None else []
            if given or callable(self.learning_rate):
                raise ValueError(
                    f"{(*given, 'a schedule as learning_rate')[0]} needs solver='adam' or 'sgd': 'lbfgs' has no epochs"
                )

    def _times_class_weight(self, y, sample_weight, incremental):
        """Return the weights of the samples, multiplied by those of their classes if there are any."""
        return sample_weight

    def _validate_validation_data(self, X, y, sample_weight=None) -> Any:
        X = validate_data(self, X, accept_sparse=["csr"], dtype=FLOATS, reset=False)
        y = self._as_targets(np.asarray(y))
        return X, y, None if sample_weight is None else _check_sample_weight(sample_weight, X)

    def _activations(self, count: int) -> list:
        return [perceptron.activation(a) for a in perceptron.for_each(self.activation, count, "activation")]

    def _initialize(self, sizes, dtype):
        """Draw new weights, and clear the records of earlier training."""
        self.n_iter_, self.t_, self.n_layers_ = 0, 0, len(sizes)
        self.out_activation_ = self._choose_out_activation()
        chosen = self._activations(len(sizes) - 2)
        self.coefs_, self.intercepts_ = perceptron.starting_weights(self._random_state, sizes, chosen, dtype)
        self._model = None
        if self.solver != "lbfgs":
            self.loss_curve_ = []
            self._no_improvement_count = 0
            stops_early = self.early_stopping
            self.best_loss_ = None if stops_early else np.inf
            self.validation_scores_ = [] if stops_early else None
            self.best_validation_score_ = -np.inf if stops_early else None

    def _make_model(self, dtype: str) -> Sequential:
        """Return a compiled model with the current weights."""
        hidden = [len(bias) for bias in self.intercepts_[:-1]]
        layers = perceptron.layers(
            [*hidden, self.n_outputs_],
            self._activations(len(hidden)),
            perceptron.activation(self.out_activation_),
            alpha=self.alpha,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )
        # Only dropout uses the seed: without it, `random_state` draws exactly what scikit-learn draws.
        seed = int(self._random_state.randint(2**31 - 1)) if self.dropout else 0
        model = Sequential(layers, seed=seed, dtype=dtype, backend=self.backend)
        loss = self._named_loss()
        if loss is None:
            loss = WeightedMean(losses.get(self.loss))
        model.compile(self._make_optimizer(), loss, weighted_metrics=self.metrics)
        shape = (len(self.coefs_[0]),)
        params, _ = model.network.init(generator(seed, WEIGHTS), shape)
        weights = ([np.array(weight) for weight in each] for each in (self.coefs_, self.intercepts_))
        model.build_from(shape, perceptron.with_dense(params, *weights), model.network.init_state(shape))
        return model

    def _make_optimizer(self) -> optimizers.Optimizer:
        rate = self.learning_rate if callable(self.learning_rate) else self.learning_rate_init
        clips = {name: getattr(self, name) for name in ("clipnorm", "clipvalue", "global_clipnorm")}
        clips = {name: limit for name, limit in clips.items() if limit is not None}
        if isinstance(self.optimizer, str):
            return REGISTRIES["optimizer"].find(self.optimizer)(learning_rate=rate, **clips)
        if self.optimizer is not None:
            if clips:
                raise ValueError(f"give {', '.join(clips)} to the optimizer itself, {self.optimizer!r}")
            return copy.deepcopy(optimizers.get(self.optimizer))  # training may change its rate
        if self.solver == "sgd":
            return optimizers.SGD(rate, momentum=self.momentum, nesterov=self.nesterovs_momentum, **clips)
        betas = {"beta_1": self.beta_1, "beta_2": self.beta_2}
        return optimizers.Adam(rate, **betas, epsilon=self.epsilon, **clips)

    def _prepare_model(self, X, keep_optimizer: bool) -> Sequential:
        """Return the model to train, with the current weights, and with the current optimizer if asked."""
        dtype = self.dtype or str(np.result_type(X.dtype, self.coefs_[0]))
        settings = [dtype, *(getattr(self, name) for name in MODEL_PARAMETERS)]
        old = self._model
        if old is None or not keep_optimizer or settings != self._settings:
            self._model = self._make_model(dtype)
            self._settings = settings
            if old is not None and tree.paths(old.params) == tree.paths(self._model.params):
                self._copy_state(old, keep_optimizer)
        else:
            old.params = perceptron.with_dense(old.params, self.coefs_, self.intercepts_)
        model = self._model
        if model.engine.communicator is not None:
            raise ValueError(
                f"{type(self).__name__} trains on one process: run it without {LAUNCH}, or train a nnx.Sequential"
            )
        return model

    def _copy_state(self, old, keep_optimizer: bool):
        """Copy the state of a model with the same layers, except for kernels and biases."""
        with old.backend.scope(old.dtype):
            trees = [old.params, old.state, *(old.carry["slots"] if keep_optimizer else [])]
            params, state, *slots = (tree.map(old.backend.to_numpy, values) for values in trees)
        self._model.params = perceptron.with_dense(params, self.coefs_, self.intercepts_)
        self._model.state = state
        if keep_optimizer:
            self._model.optimizer, self._model.step = old.optimizer, old.step
            self._model.set_slots(slots)

    def _read_weights(self, model):
        """Set `coefs_` and `intercepts_` to the weights of the model."""
        with model.backend.scope(model.dtype):
            kernels, biases = perceptron.dense_paths(model.params)
            self.coefs_, self.intercepts_ = (
                [model.backend.to_numpy(tree.at(model.params, path)) for path in paths]
                for paths in (kernels, biases)
            )

    def _fit_lbfgs(self, X, y, weight):
        model = self._prepare_model(X, keep_optimizer=False)
        limits = {"max_iter": self.max_iter, "max_fun": self.max_fun, "tol": self.tol}
        result, self.coefs_, self.intercepts_ = lbfgs.minimize(model, sparse.dense(X), y, weight, **limits)
        self.n_iter_ = _check_optimize_result("lbfgs", result, self.max_iter)
        self.loss_ = result.fun

    def _fit_epochs(self, X, y, weight, validation, incremental):
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        model = self._prepare_model(X, keep_optimizer=incremental)
        score = None
        if self.early_stopping:
            X, y, weight, held_out = self._split(X, y, weight, validation)
            score = self._make_scorer(model, *held_out)
        samples = X.shape[0]
        batch_size = self._batch_size(samples)
        changes_rate = self.solver == "sgd" or self.optimizer is not None
        record = Epochs(self, samples, score, changes_rate, incremental)
        order = Order(self._random_state if self.shuffle else None, weight, batch_size)
        settings = {
            "epochs": 1 if incremental else self.max_iter,
            "verbose": 0,
            "callbacks": [record, *(self.callbacks or [])],
            "validation_data": validation and (sparse.dense(validation[0]), *validation[1:]),
        }
        try:
            if sparse.is_sparse(X) and not sparse.is_small(X):
                model.fit(sparse.SparseBatches(X, y, weight, batch_size, order), **settings)
            else:
                shuffle = order
                if batch_size == samples and not isinstance(self.random_state, np.random.RandomState):
                    # One batch needs no order, and nobody sees the generator that would draw it.
                    order.check(np.arange(samples))
                    shuffle = False
                model.fit(sparse.dense(X), y, batch_size, shuffle=shuffle, sample_weight=weight, **settings)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except NonFiniteError as error:
            raise ValueError(NOT_FINITE) from error
        self.history_ = model.history.history
        self._read_weights(model)

    def _batch_size(self, samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, samples)
        if self.batch_size > samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=5,
            )
        return int(min(self.batch_size, samples))

    def _strata(self, y):
        """Return the classes that training and validation samples share in proportion, or None."""
        return None

    def _split(self, X, y, weight, validation) -> Any:
        """Return (X, y, weight) to train on, and a tuple of the same to validate on."""
        if validation is not None:
            return X, y, weight, validation
        arrays = [X, y] if weight is None else [X, y, weight]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        train, held_out = parts[::2], parts[1::2]
        if held_out[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        no_weight = [None] * (weight is None)
        return *train, *no_weight, (*held_out, *no_weight)

    def _make_scorer(self, model, X, y, weight):
        """Return a function that scores the model's current weights; y has a column for each output."""
        y = self._labels(y)

        def score() -> float:
            outputs = self._outputs(X, {"params": model.params, "state": model.state})
            return self._score(outputs, y, weight) if np.isfinite(outputs).all() else np.nan

        return score

    def _labels(self, y):
        """Return targets in the form in which they are scored."""
        return y

    # Predictions

    def _outputs(self, X, weights=None) -> np.ndarray:
        """Return the outputs for checked samples, (samples, n_outputs_), with the current weights."""
        model = self._model
        backend, steps = model.backend, model.engine.steps
        dtype = str(np.result_type(X.dtype, self.coefs_[0]))
        with backend.scope(dtype):
            if weights is None:
                dense = (
                    [backend.asarray(np.asarray(array, dtype)) for array in arrays]
                    for arrays in (self.coefs_, self.intercepts_)
                )
                weights = {"params": perceptron.with_dense(model.params, *dense), "state": model.state}
            count, size = X.shape[0], PREDICTION_BATCH
            last = backend.padded((count - 1) % size + 1)
            batches = (
                pad_samples(np.asarray(sparse.dense(X[i : i + size]), dtype), last)
                for i in range(0, count, size)
            )
            outputs = [steps.output(weights, backend.asarray(batch)) for batch in batches]
            joined = np.concatenate(backend.read(outputs))[:count]
        return joined if steps.head is None else ON_HOST[type(steps.head)](joined)

    def _checked_outputs(self, X) -> np.ndarray:
        validation.check_is_fitted(self)
        return self._outputs(validate_data(self, X, accept_sparse=["csr"], reset=False))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def has_epochs(estimator) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True
