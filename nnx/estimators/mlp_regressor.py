"""`MLPRegressor`: scikit-learn's multilayer perceptron for regression, trained by nnx; see `MLPClassifier`."""

from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from nnx import losses
from nnx.estimators import parameters
from nnx.estimators.base import Perceptron, has_epochs
from nnx.estimators.losses import HalfPoissonDeviance, HalfSquaredError, WeightedMean
from nnx.estimators.routing import keep_arguments


class MLPRegressor(RegressorMixin, Perceptron):
    """scikit-learn's `MLPRegressor`, trained by nnx.

    Parameters
    ----------
    loss : str, Loss or function
        "squared_error" (half of it), "poisson" (half the deviance, of exp(output)), "absolute_error", "huber",
        "quantile", or any loss of nnx: `nnx.losses.Quantile(0.9)` for the quantile 0.9.
    hidden_layer_sizes, solver, alpha, batch_size, learning_rate_init, power_t, max_iter, shuffle, random_state, tol,
    verbose, warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon,
    n_iter_no_change, max_fun
        As scikit-learn's.
    activation, learning_rate, dropout, batch_norm, metrics, callbacks, optimizer, clipnorm, clipvalue,
    global_clipnorm, restore_best, backend, dtype
        As for `MLPClassifier`.

    Attributes
    ----------
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, t_, coefs_, intercepts_,
    n_features_in_, feature_names_in_, n_iter_, n_layers_, n_outputs_, out_activation_
        As scikit-learn's.
    history_ : dict of str to list of float
        Loss and metrics of each epoch of the last fit.

    Examples
    --------
    >>> from nnx.estimators import MLPRegressor
    >>> X, y = [[0.0], [1.0], [2.0]], [0.0, 2.0, 4.0]
    >>> model = MLPRegressor(hidden_layer_sizes=(8,), solver="lbfgs", random_state=1).fit(X, y)
    >>> [round(float(value), 1) for value in model.predict([[0.5]])]
    [1.0]
    """

    _parameter_constraints: dict = parameters.REGRESSOR

    def __init__(self, loss="squared_error", hidden_layer_sizes=(100,), activation="relu", *, solver="adam",
                 alpha=0.0001, batch_size="auto", learning_rate="constant", learning_rate_init=0.001,
                 power_t=0.5, max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False,
                 warm_start=False, momentum=0.9, nesterovs_momentum=True, early_stopping=False,
                 validation_fraction=0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8, n_iter_no_change=10,
                 max_fun=15000, dropout=0.0, batch_norm=False, metrics=None, callbacks=None, optimizer=None,
                 clipnorm=None, clipvalue=None, global_clipnorm=None, restore_best=False, backend=None,
                 dtype=None):  # fmt: skip
        keep_arguments(self, locals())

    @available_if(has_epochs)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Continue training for one epoch."""
        return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = self._validate_arrays(X, y, reset, y_numeric=True)
        return X, self._as_targets(y)

    def _as_targets(self, y):
        return y[:, None] if y.ndim == 1 else y

    def _choose_out_activation(self):
        poisson = self.loss == "poisson" or isinstance(self.loss, losses.Poisson)
        return "exp" if poisson else "identity"

    def _named_loss(self):
        if self.loss == "absolute_error":
            return WeightedMean(losses.MeanAbsoluteError())
        own = {"squared_error": HalfSquaredError, "poisson": HalfPoissonDeviance}
        return own[self.loss]() if isinstance(self.loss, str) and self.loss in own else None

    def _score(self, outputs, y, sample_weight):
        return r2_score(y, outputs, sample_weight=sample_weight)

    def predict(self, X):
        """Return the predictions, (samples,), or (samples, outputs) if there are several."""
        outputs = self._checked_outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs
