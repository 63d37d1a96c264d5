"""What classifier and regressor share: from scikit-learn's parameters to a model of nnx and back.

`coefs_` and `intercepts_` are the truth: predictions are made with them, and training goes on from
them. The model beside them holds what else goes on: the optimizer's slots, and moving averages.
"""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from sklearn import model_selection
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, validation
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight

from nnx import activations, losses, optimizers, tree
from nnx.data.samples import with_rows
from nnx.distributed.ranks import LAUNCH
from nnx.errors import NonFiniteError
from nnx.estimators import lbfgs, perceptron, sparse
from nnx.estimators.epochs import Epochs, Order
from nnx.estimators.losses import WeightedMean
from nnx.models.sequential import Sequential
from nnx.random import WEIGHTS, generator
from nnx.registry import REGISTRIES

# Output activations are applied on the host: there the smallest probabilities are not rounded to 0.
ON_HOST = {
    activations.Sigmoid: expit,
    activations.Softmax: lambda z: softmax(z, axis=1),
    activations.Exponential: np.exp,
}
# scikit-learn has no types; those that are guessed are wrong.
validate_data: Any = validation.validate_data
train_test_split: Any = model_selection.train_test_split
# Samples computed at a time in predictions.
ROWS = 4096
# What has no meaning for L-BFGS, and its default.
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
# Parameters that the model is made of: where one is changed, `partial_fit` makes it anew.
OF_MODEL = ("alpha", "activation", "loss", "dropout", "batch_norm", "metrics", "backend", "dtype")


class Perceptron(BaseEstimator):
    """Base of `MLPClassifier` and `MLPRegressor`."""

    _model: Any

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a parameter, or what `fit` has set."""

    # What a subclass says

    def _validate_input(self, X, y, incremental, reset):
        """Return checked X and y; y with a column for each output."""
        raise NotImplementedError

    def _named_loss(self) -> losses.Loss | None:
        """Return the loss that the name `self.loss` has here alone, or None."""
        raise NotImplementedError

    def _choose_out_activation(self) -> str:
        raise NotImplementedError

    def _score(self, outputs, y, sample_weight) -> float:
        """Return the score of outputs of the network."""
        raise NotImplementedError

    # Training

    def _fit(self, X, y, sample_weight=None, validation_data=None, incremental=False):
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.asarray(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        self._check_solver_takes(validation_data)
        first = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        labels = y
        X, y = self._validate_input(X, y, incremental, reset=first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        sample_weight = self._weighted_classes(labels, sample_weight, incremental)
        if validation_data is not None:
            validation_data = self._checked_validation(*validation_data)
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

    def _check_solver_takes(self, validation_data):
        if self.solver == "lbfgs":
            given = [name for name, default in EPOCHS_ONLY.items() if getattr(self, name) != default]
            given += ["validation_data"] if validation_data is not None else []
            if given or callable(self.learning_rate):
                raise ValueError(
                    f"{(*given, 'a schedule as learning_rate')[0]} needs solver='adam' or 'sgd': 'lbfgs' has no epochs"
                )

    def _weighted_classes(self, y, sample_weight, incremental):
        """Return the weights with those of the classes; only the classifier has any."""
        return sample_weight

    def _checked_validation(self, X, y, sample_weight=None) -> Any:
        X = validate_data(self, X, accept_sparse=["csr"], dtype=(np.float64, np.float32), reset=False)
        y = self._as_targets(np.asarray(y))
        return X, y, None if sample_weight is None else _check_sample_weight(sample_weight, X)

    def _activations(self, count: int) -> list:
        return [perceptron.activation(a) for a in perceptron.for_each(self.activation, count, "activation")]

    def _initialize(self, sizes, dtype):
        """Forget all that was learnt, and draw the starting weights."""
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
        """Return a compiled model with the present weights."""
        hidden = [len(bias) for bias in self.intercepts_[:-1]]
        layers = perceptron.layers(
            [*hidden, self.n_outputs_],
            self._activations(len(hidden)),
            perceptron.activation(self.out_activation_),
            alpha=self.alpha,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )
        # Nothing but dropout draws from it: by default not a number more is drawn than scikit-learn draws.
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

    def _dtype(self, X) -> str:
        """Return what is computed in."""
        return self.dtype or str(np.result_type(X.dtype, self.coefs_[0]))

    def _prepared(self, dtype: str, goes_on: bool) -> Sequential:
        """Return the model to train, with the present weights; if it goes on, with the present optimizer."""
        settings = [dtype, *(getattr(self, name) for name in OF_MODEL)]
        old = self._model
        if old is None or not goes_on or settings != self._settings:
            self._model = self._make_model(dtype)
            self._settings = settings
            if old is not None and tree.paths(old.params) == tree.paths(self._model.params):
                self._take_over(old, with_optimizer=goes_on)
        else:
            old.params = perceptron.with_dense(old.params, self.coefs_, self.intercepts_)
        model = self._model
        if model.engine.communicator is not None:
            raise ValueError(
                f"{type(self).__name__} trains on one process: run it without {LAUNCH}, or train a nnx.Sequential"
            )
        return model

    def _take_over(self, old, with_optimizer: bool):
        """Let the new model go on from another of the same layers, but for the kernels and biases."""
        with old.backend.scope(old.dtype):
            trees = [old.params, old.state, *(old.carry["slots"] if with_optimizer else [])]
            params, state, *slots = (tree.map(old.backend.to_numpy, values) for values in trees)
        self._model.params = perceptron.with_dense(params, self.coefs_, self.intercepts_)
        self._model.state = state
        if with_optimizer:
            self._model.optimizer, self._model.step = old.optimizer, old.step
            self._model.set_slots(slots)

    def _keep_weights(self, model):
        """Let `coefs_` and `intercepts_` be the weights of the model."""
        with model.backend.scope(model.dtype):
            kernels, biases = perceptron.dense_paths(model.params)
            self.coefs_, self.intercepts_ = (
                [model.backend.to_numpy(tree.at(model.params, path)) for path in paths]
                for paths in (kernels, biases)
            )

    def _fit_lbfgs(self, X, y, weight):
        model = self._prepared(self._dtype(X), goes_on=False)
        dense = X.toarray() if sparse.is_sparse(X) else X
        limits = {"max_iter": self.max_iter, "max_fun": self.max_fun, "tol": self.tol}
        found, self.coefs_, self.intercepts_ = lbfgs.minimize(model, dense, y, weight, **limits)
        self.n_iter_ = _check_optimize_result("lbfgs", found, self.max_iter)
        self.loss_ = found.fun

    def _fit_epochs(self, X, y, weight, validation, incremental):
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        model = self._prepared(self._dtype(X), goes_on=incremental)
        score = None
        if self.early_stopping:
            X, y, weight, held_out = self._split(X, y, weight, validation)
            score = self._scorer(model, *held_out)
        samples = X.shape[0]
        batch_size = self._batch_size(samples)
        changes_rate = self.solver == "sgd" or self.optimizer is not None
        record = Epochs(self, samples, score, changes_rate, incremental)
        order = Order(self._random_state if self.shuffle else None, weight, batch_size)
        settings = {
            "epochs": 1 if incremental else self.max_iter,
            "verbose": 0,
            "callbacks": [record, *(self.callbacks or [])],
            "validation_data": self._dense_validation(validation),
        }
        try:
            if sparse.is_sparse(X) and not sparse.is_small(X):
                model.fit(sparse.SparseBatches(X, y, weight, batch_size, order), **settings)
            else:
                dense, shuffle = X.toarray() if sparse.is_sparse(X) else X, order
                if batch_size == samples and not isinstance(self.random_state, np.random.RandomState):
                    # There is no order in one batch, and what it would be drawn from is not seen again.
                    order.check(np.arange(samples))
                    shuffle = False
                model.fit(dense, y, batch_size, shuffle=shuffle, sample_weight=weight, **settings)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except NonFiniteError as error:
            raise ValueError(NOT_FINITE) from error
        self.history_ = model.history.history
        self._keep_weights(model)

    def _batch_size(self, samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, samples)
        if self.batch_size > samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=5,
            )
        return int(min(self.batch_size, samples))

    def _dense_validation(self, validation: Any):
        if validation is None:
            return None
        X, y, weight = validation
        return X.toarray() if sparse.is_sparse(X) else X, y, weight

    def _stratified(self, y):
        """Return what the validation samples are drawn in equal shares of; None for nothing."""
        return None

    def _split(self, X, y, weight, validation) -> Any:
        """Return the samples to train on, and those to validate on."""
        if validation is not None:
            return X, y, weight, validation
        arrays = [X, y] if weight is None else [X, y, weight]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._stratified(y),
        )
        trained, held_out = parts[::2], parts[1::2]
        if held_out[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        none = [None] * (weight is None)
        return *trained, *none, (*held_out, *none)

    def _scorer(self, model, X, y, weight):
        """Return a function that scores the weights of the moment; y has a column for each output."""
        y = self._labels(y)

        def score() -> float:
            outputs = self._outputs(X, {"params": model.params, "state": model.state})
            return self._score(outputs, y, weight) if np.isfinite(outputs).all() else np.nan

        return score

    def _labels(self, y):
        """Return targets as they are scored."""
        return y

    # Predictions

    def _outputs(self, X, weights=None) -> np.ndarray:
        """Return the outputs for checked samples, (samples, n_outputs_), of the present weights."""
        model = self._model
        backend, steps = model.backend, model.engine.steps
        dtype = str(np.result_type(X.dtype, self.coefs_[0]))
        with backend.scope(dtype):
            if weights is None:
                dense = (
                    [backend.asarray(np.asarray(w, dtype)) for w in ws]
                    for ws in (self.coefs_, self.intercepts_)
                )
                weights = {"params": perceptron.with_dense(model.params, *dense), "state": model.state}
            count = X.shape[0]
            last = backend.padded((count - 1) % ROWS + 1)
            batches = (
                with_rows(np.asarray(sparse.rows(X, i, i + ROWS), dtype), last) for i in range(0, count, ROWS)
            )
            parts = [steps.output(weights, backend.asarray(batch)) for batch in batches]
            found = np.concatenate(backend.read(parts))[:count]
        return found if steps.head is None else ON_HOST[type(steps.head)](found)

    def _checked_outputs(self, X) -> np.ndarray:
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
