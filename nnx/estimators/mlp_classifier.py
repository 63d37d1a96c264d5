"""`MLPClassifier`: scikit-learn's multilayer perceptron for classes, trained by nnx.

Parameters, attributes, methods, warnings and errors are those of `sklearn.neural_network`. With the
same `random_state` both start from the same weights and visit the samples in the same order. The
parameters that nnx adds have no effect by default.
"""

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels

from nnx import losses
from nnx.estimators import class_weights, parameters
from nnx.estimators.base import Perceptron, has_epochs
from nnx.estimators.losses import ClassLogLoss, LabelLogLoss, WeightedMean
from nnx.estimators.routing import keep_arguments


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
        "log_loss", "focal" (a focal loss with nnx's defaults), or any loss of nnx that takes probabilities.
    class_weight : dict, "balanced" or None
        Weights of the classes, by label. "balanced" gives each class the same total weight; samples count by their
        own weights.
    dropout : float or list
        Share of each hidden layer's outputs that is dropped in training.
    batch_norm : bool
        Whether each hidden activation follows a batch normalisation.
    metrics : list of str or Metric
        Reported after each epoch in `history_`.
    callbacks : list of Callback
        Callbacks of nnx, as for `nnx.Model.fit`.
    optimizer : str or Optimizer
        Any of nnx's, in place of the solver's. One given by name uses `learning_rate_init`.
    clipnorm, clipvalue, global_clipnorm : float
        Limits of the gradients; see `nnx.optimizers.Optimizer`.
    restore_best : bool
        Whether training ends with the weights of the epoch of the lowest loss: on the validation data, if given.
    backend : str or Backend
        "numpy", "jax", "cupy"; by default the current backend.
    dtype : {"float32", "float64", "float16", "bfloat16"}
        Precision of the computation; by default that of `X`.

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

    def __init__(self, hidden_layer_sizes=(100,), activation="relu", *, solver="adam", alpha=0.0001,
                 batch_size="auto", learning_rate="constant", learning_rate_init=0.001, power_t=0.5,
                 max_iter=200, shuffle=True, random_state=None, tol=1e-4, verbose=False, warm_start=False,
                 momentum=0.9, nesterovs_momentum=True, early_stopping=False, validation_fraction=0.1,
                 beta_1=0.9, beta_2=0.999, epsilon=1e-8, n_iter_no_change=10, max_fun=15000, loss="log_loss",
                 class_weight=None, dropout=0.0, batch_norm=False, metrics=None, callbacks=None,
                 optimizer=None, clipnorm=None, clipvalue=None, global_clipnorm=None, restore_best=False,
                 backend=None, dtype=None):  # fmt: skip
        keep_arguments(self, locals())

    @available_if(has_epochs)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Continue training for one epoch; the first call needs all classes."""
        if _check_partial_fit_first_call(self, classes):
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def _validate_input(self, X, y, incremental, reset):
        X, y = self._validate_arrays(X, y, reset)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(unique_labels(y))
        return X, self._as_targets(y) if y.ndim == 2 else self._indicators(y)

    def _check_classes(self, classes):
        """Raise a ValueError unless these are the known classes, or for `partial_fit` some of them."""
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
        """Return the same as `_as_targets`, of labels that were checked, in a tenth of the time."""
        one_hot = y[:, None] == self.classes_
        if len(self.classes_) > 2:
            return one_hot
        # One column: whether the label is the second class, if there is one.
        return one_hot[:, 1:] if len(self.classes_) == 2 else np.zeros_like(one_hot)

    def _as_targets(self, y):
        return self._label_binarizer.transform(y).astype(bool)

    def _labels(self, y):
        return self._label_binarizer.inverse_transform(y)

    def _times_class_weight(self, y, sample_weight, incremental):
        if self.class_weight is None:
            return sample_weight
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' needs all labels at once, which partial_fit does not see: give a dict"
            )
        if isinstance(self.class_weight, dict) and np.ndim(y) == 1:
            weight = class_weights.named(self.class_weight, y, self.classes_)
        elif self.class_weight == "balanced" and sample_weight is not None:
            weight = class_weights.balanced(self.class_weight, np.asarray(y), sample_weight)
        else:
            weight = compute_sample_weight(self.class_weight, y)
        return weight if sample_weight is None else weight * sample_weight

    def _choose_out_activation(self):
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _named_loss(self):
        exclusive = self.out_activation_ == "softmax"
        if self.loss == "log_loss":
            return ClassLogLoss() if exclusive else LabelLogLoss()
        if self.loss == "focal":
            focal = losses.CategoricalFocalCrossentropy if exclusive else losses.BinaryFocalCrossentropy
            return WeightedMean(focal())
        return None

    def _strata(self, y):
        return y if self.n_outputs_ == 1 else None

    def _score(self, outputs, y, sample_weight):
        return accuracy_score(y, self._predicted(outputs), sample_weight=sample_weight)

    def _predicted(self, outputs):
        return self._labels(outputs.ravel() if self.n_outputs_ == 1 else outputs)

    def predict(self, X):
        """Return the class of each sample, (samples,), or its labels, (samples, labels)."""
        return self._predicted(self._checked_outputs(X))

    def predict_proba(self, X):
        """Return the probabilities of the classes in the order of `classes_`, (samples, classes)."""
        p = self._checked_outputs(X)
        return np.hstack([1 - p, p]) if self.n_outputs_ == 1 else p

    def predict_log_proba(self, X):
        """Return the logarithms of the probabilities, (samples, classes)."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
