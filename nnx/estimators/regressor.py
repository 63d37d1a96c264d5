"""Any network as a scikit-learn regressor."""

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from nnx.data.samples import check_count
from nnx.estimators.network import NetworkEstimator
from nnx.layers import Dense


class Regressor(RegressorMixin, NetworkEstimator):
    """Any network as a scikit-learn regressor.

    Parameters
    ----------
    build : function, optional
        Returns the network: an nnx model, a layer, or a list of layers. Its output has the shape of
        one target. Two arguments are filled in from the data, if it has them: `outputs`, the number of
        targets, and `input_shape`, that of one sample. All others are parameters of the regressor:
        `build__units`. By default dense layers, with `build__units=(100,)` and
        `build__activation="relu"`.
    loss : str or Loss, optional
        By default that with which `build` compiled its model, else the mean squared error.
    validation_split : float
        This share of the samples, drawn at random, is kept out of training to validate on.
    epochs, batch_size, optimizer, metrics, callbacks, shuffle, verbose, random_state, backend, dtype, **routed
        As for `Classifier`.

    Attributes
    ----------
    model_ : Model
        The trained network.
    history_ : History
        The numbers of each epoch.
    n_outputs_ : int
        The number of targets.
    n_features_in_ : int
    feature_names_in_ : array, (features,)
        If X was a data frame.

    Notes
    -----
    Bring the targets to about unit variance first: `TransformedTargetRegressor` does it.

    Examples
    --------
    >>> import nnx
    >>> from sklearn.datasets import make_regression
    >>> X, y = make_regression(200, 4, random_state=0)
    >>> regressor = nnx.estimators.Regressor(build__units=(16,), epochs=50, optimizer__learning_rate=0.01,
    ...                                      random_state=0)
    >>> bool(regressor.fit(X, y / y.std()).score(X, y / y.std()) > 0.95)
    True
    """

    def __init__(
        self,
        build=None,
        *,
        epochs=100,
        batch_size=32,
        optimizer=None,
        loss=None,
        metrics=None,
        callbacks=None,
        validation_split=0.0,
        shuffle=True,
        verbose=0,
        random_state=None,
        backend=None,
        dtype=None,
        **routed,
    ):
        self.build = build
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.loss = loss
        self.metrics = metrics
        self.callbacks = callbacks
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.verbose = verbose
        self.random_state = random_state
        self.backend = backend
        self.dtype = dtype
        vars(self).update(routed)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Train a new network, and return the regressor.

        Parameters
        ----------
        X : array, (samples, ...)
        y : array, (samples,) or (samples, targets)
        sample_weight : array, (samples,), optional
            Scaled to a mean of 1: only their ratios count.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Samples to validate on after each epoch, in place of `validation_split`.
        """
        X, y = self._check_data(X, y, reset=True)
        self._start(X, y)
        epochs = check_count("epochs", self.epochs)
        self._train(X, y, sample_weight, validation_data, self.validation_split, epochs=epochs)
        return self

    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch on these samples, from where training stands; parameters as for `fit`."""
        first = not hasattr(self, "model_")
        X, y = self._check_data(X, y, reset=first)
        if first:
            self._start(X, y)
        seen = 0 if first else self.history_.epoch[-1] + 1
        self._train(X, y, sample_weight, None, None, initial_epoch=seen, epochs=seen + 1)
        return self

    def predict(self, X) -> np.ndarray:
        """Return the predicted targets in the shape of `y`: (samples,) or (samples, targets)."""
        return self._outputs(X).reshape(-1, *self._target_shape)

    def _start(self, X, y):
        self._target_shape = y.shape[1:]
        self.n_outputs_ = y.shape[1] if y.ndim > 1 else 1
        self.model_ = self._make_model(X, self.n_outputs_)

    def _check_y(self, y):
        return check_array(y, input_name="y", ensure_2d=False, allow_nd=True, dtype="numeric")

    def default_build(self, outputs, units=(100,), activation="relu"):
        return [*(Dense(n, activation) for n in np.ravel(units).tolist()), Dense(outputs)]

    def _default_loss(self, model):
        return "mse"
