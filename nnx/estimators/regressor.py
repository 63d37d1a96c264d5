"""Any network as a scikit-learn regressor."""

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from nnx.estimators.network import NetworkEstimator
from nnx.estimators.routing import keep_arguments
from nnx.layers import Dense


class Regressor(RegressorMixin, NetworkEstimator):
    """Any network as a scikit-learn regressor.

    Parameters
    ----------
    build : function, optional
        Returns the network: an nnx model, a layer, or a list of layers. Its output has the shape of
        one target. If the function has the arguments `outputs` and `input_shape`, it gets the number of
        targets and the shape of one sample. Its other arguments are parameters of the regressor:
        `build__units`. By default dense layers, with `build__units=(100,)` and
        `build__activation="relu"`.
    loss : str or Loss, optional
        By default the one with which `build` compiled its model, else the mean squared error.
    validation_split : float
        The share of the samples that is held out for validation, drawn at random.
    epochs, batch_size, optimizer, metrics, callbacks, shuffle, verbose, random_state, backend, dtype, **routed
        As for `Classifier`.

    Attributes
    ----------
    model_ : Model
        The trained network.
    history_ : History
        Loss and metrics of each epoch.
    n_outputs_ : int
        The number of targets.
    n_features_in_ : int
    feature_names_in_ : array, (features,)
        If X was a data frame.

    Notes
    -----
    Scale the targets to about unit variance first, for example with `TransformedTargetRegressor`.

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

    def __init__(self, build=None, *, epochs=100, batch_size=32, optimizer=None, loss=None, metrics=None,
                 callbacks=None, validation_split=0.0, shuffle=True, verbose=0, random_state=None,
                 backend=None, dtype=None, **routed):  # fmt: skip
        keep_arguments(self, locals())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X, y, sample_weight=None):
        """Continue training for one epoch on these samples; parameters as for `fit`."""
        return self._fit_epoch(X, y, sample_weight)

    def predict(self, X) -> np.ndarray:
        """Return the predicted targets in the shape of `y`: (samples,) or (samples, targets)."""
        return self._outputs(X).reshape(-1, *self._target_shape)

    def _count_outputs(self, y):
        self._target_shape = y.shape[1:]
        self.n_outputs_ = y.shape[1] if y.ndim > 1 else 1
        return self.n_outputs_

    def _check_y(self, y):
        return check_array(y, input_name="y", ensure_2d=False, allow_nd=True, dtype="numeric")

    def default_build(self, outputs, units=(100,), activation="relu"):
        return [*(Dense(n, activation) for n in np.ravel(units).tolist()), Dense(outputs)]

    def _default_loss(self, model):
        return "mse"
