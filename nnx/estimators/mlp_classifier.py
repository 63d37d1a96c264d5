"""`MLPClassifier`: scikit-learn's multilayer perceptron for classes, trained by nnx.

Parameters, attributes, methods, warnings and errors are those of `sklearn.neural_network`. With the
same `random_state` they start from the same weights and visit the samples in the same order. What
nnx adds are further keywords, which do nothing by default.
"""

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d, compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted

from nnx import losses
from nnx.data.classes import check_weight
from nnx.estimators import parameters
from nnx.estimators.base import Perceptron, has_epochs, validate_data
from nnx.estimators.losses import (
    ClassLogLoss,
    LabelLogLoss,
    WeightedMean,
)


def _balanced(y, sample_weight) -> np.ndarray:
    """Return what scikit-learn does for "balanced", each sample counted by its weight: for labels, their product."""
    found, counts = np.ones(len(y)), sample_weight > 0  # no class of samples that do not count
    for labels in y.reshape(len(y), -1).T:
        classes = np.unique(labels[counts])
        each = compute_class_weight(
            "balanced", classes=classes, y=labels[counts], sample_weight=sample_weight[counts]
        )
        found[counts] *= each[np.searchsorted(classes, labels[counts])]
    return found


class MLPClassifier(ClassifierMixin, Perceptron):
    """scikit-learn's `MLPClassifier`, trained by nnx: softmax over classes, sigmoid of two classes or labels.

    Parameters
    ----------
    hidden_layer_sizes, solver, alpha, batch_size, learning_rate_init, power_t, max_iter, shuffle, random_state, tol,
    verbose, warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon,
    n_iter_no_change, max_fun
        As scikit-learn's.
    activation : str, Activation, or list of these
        scikit-learn's names or any of nnx's; a list has one for each hidden layer.
    learning_rate : {"constant", "invscaling", "adaptive"} or function of the step
        As scikit-learn's, or a schedule such as `nnx.schedules.CosineDecay`.
    loss : str, Loss or function
        "log_loss", "focal" (a focal loss with nnx's defaults), or any loss of nnx of probabilities.
    class_weight : dict, "balanced" or None
        Weights of the classes, by label. "balanced" gives each class the same total weight, those of the samples
        included.
    dropout : float or list
        Share of each hidden layer's outputs that is dropped in training.
    batch_norm : bool
        Whether batch normalisation stands before each hidden activation.
    metrics : list of str or Metric
        Computed beside the loss in each epoch; see `history_`.
    callbacks : list of Callback
        Of nnx; called as in `nnx.Model.fit`.
    optimizer : str or Optimizer
        Any of nnx's, in place of the solver's. A name is given `learning_rate_init`.
    clipnorm, clipvalue, global_clipnorm : float
        Limits of the gradients; see `nnx.optimizers.Optimizer`.
    restore_best : bool
        Whether the weights of the epoch of least loss are put back at the end: of the validation data, if given.
    backend : str or Backend
        "numpy", "jax", "cupy"; by default the current backend.
    dtype : {"float32", "float64", "float16", "bfloat16"}
        Of the computation; by default that of `X`.

    Attributes
    ----------
    classes_, loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_, t_, coefs_, intercepts_,
    n_features_in_, feature_names_in_, n_iter_, n_layers_, n_outputs_, out_activation_
        As scikit-learn's.
    history_ : dict of str to list of float
        Loss and metrics of each epoch of the last fit, as `nnx.Model.fit` records them.

    Examples
    --------
    >>> from nnx.estimators import MLPClassifier
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], ["no", "yes", "yes", "no"]
    >>> MLPClassifier((8,), solver="lbfgs", random_state=1).fit(X, y).predict(X)
    array(['no', 'yes', 'yes', 'no'], dtype='<U3')
    """

    _parameter_constraints: dict = parameters.CLASSIFIER

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        loss="log_loss",
        class_weight=None,
        dropout=0.0,
        batch_norm=False,
        metrics=None,
        callbacks=None,
        optimizer=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        restore_best=False,
        backend=None,
        dtype=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.loss = loss
        self.class_weight = class_weight
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.metrics = metrics
        self.callbacks = callbacks
        self.optimizer = optimizer
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.restore_best = restore_best
        self.backend = backend
        self.dtype = dtype

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Train on samples (samples, features) with labels (samples,) or label indicators (samples, labels).

        Parameters
        ----------
        X : array or sparse matrix
        y : array
        sample_weight : array, (samples,)
        validation_data : (X, y) or (X, y, sample_weight)
            Loss and metrics on it are in `history_`, and `early_stopping` is decided on it.
        """
        return self._fit(X, y, sample_weight, validation_data)

    @available_if(has_epochs)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch, from the present weights and optimizer on; the first call names all classes."""
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = validate_data(
            self, X, y, accept_sparse=["csr"], multi_output=True, dtype=(np.float64, np.float32), reset=reset
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(unique_labels(y))
        return X, self._as_targets(y) if y.ndim == 2 else self._indicators(y)

    def _check_classes(self, classes):
        """Raise a ValueError if these are not the classes of before, or in `partial_fit` not among them."""
        if self.warm_start and set(classes) != set(self.classes_):
            raise ValueError(
                f"warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {classes}"
            )
        if not np.isin(classes, self.classes_).all():
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _indicators(self, y):
        """Return what `_as_targets` does, of labels that were checked before: in a tenth of the time."""
        found = y[:, None] == self.classes_
        if len(self.classes_) > 2:
            return found
        # One column: whether it is the second class, if there is one.
        return found[:, 1:] if len(self.classes_) == 2 else np.zeros_like(found)

    def _as_targets(self, y):
        return self._label_binarizer.transform(y).astype(bool)

    def _labels(self, y):
        return self._label_binarizer.inverse_transform(y)

    def _weighted_classes(self, y, sample_weight, incremental):
        if self.class_weight is None:
            return sample_weight
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' needs all labels at once, which partial_fit does not see: give a dict"
            )
        if isinstance(self.class_weight, dict) and np.ndim(y) == 1:
            weight = self._named_weights(self.class_weight, y)
        elif self.class_weight == "balanced" and sample_weight is not None:
            weight = _balanced(np.asarray(y), sample_weight)
        else:
            weight = compute_sample_weight(self.class_weight, y)
        return weight if sample_weight is None else weight * sample_weight

    def _named_weights(self, class_weight: dict, y) -> np.ndarray:
        """Return the weight of each label's class, 1 for a class not named."""
        if unknown := [label for label in class_weight if label not in self.classes_]:
            raise ValueError(
                f"class_weight names {unknown[0]!r}, which is not one of the classes {self.classes_}"
            )
        found = np.ones(len(y))
        for label, weight in class_weight.items():
            found[np.asarray(y) == label] = check_weight(label, weight)
        return found

    def _choose_out_activation(self):
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _named_loss(self):
        exclusive = self.out_activation_ == "softmax"
        if self.loss == "log_loss":
            return ClassLogLoss() if exclusive else LabelLogLoss()
        if self.loss == "focal":
            return WeightedMean(
                losses.CategoricalFocalCrossentropy() if exclusive else losses.BinaryFocalCrossentropy()
            )
        return None

    def _stratified(self, y):
        return y if self.n_outputs_ == 1 else None

    def _score(self, outputs, y, sample_weight):
        return accuracy_score(y, self._predicted(outputs), sample_weight=sample_weight)

    def _predicted(self, outputs):
        return self._labels(outputs.ravel() if self.n_outputs_ == 1 else outputs)

    def predict(self, X):
        """Return the class of each sample, (samples,), or its labels, (samples, labels)."""
        check_is_fitted(self)
        return self._predicted(self._checked_outputs(X))

    def predict_proba(self, X):
        """Return the probabilities of the classes in the order of `classes_`, (samples, classes)."""
        check_is_fitted(self)
        found = self._checked_outputs(X)
        return np.hstack([1 - found, found]) if self.n_outputs_ == 1 else found

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities, (samples, classes)."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
