"""Any network as a scikit-learn classifier."""

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from nnx import activations, losses
from nnx.estimators import class_weights
from nnx.estimators.network import NetworkEstimator
from nnx.estimators.routing import keep_arguments
from nnx.layers import Dense
from nnx.layers.base import describe_shape


class Classifier(ClassifierMixin, NetworkEstimator):
    """Any network as a scikit-learn classifier.

    Parameters
    ----------
    build : function, optional
        Returns the network: an nnx model, a layer, or a list of layers. Its last layer has as many
        outputs as there are classes, with softmax; for two classes also one, with sigmoid. If the
        function has the arguments `outputs` and `input_shape`, it gets the number of classes and the
        shape of one sample. Its other arguments are parameters of the classifier: `build__units`.
        By default dense layers, with `build__units=(100,)` and `build__activation="relu"`.
    epochs, batch_size : int
        Passes over the samples, and samples a step.
    optimizer : str or Optimizer, optional
        By default the one with which `build` compiled its model, else Adam. Its arguments are
        parameters too: `optimizer__learning_rate`.
    loss : str or Loss, optional
        By default the one with which `build` compiled its model, else cross-entropy.
    metrics : list, optional
        Metrics for the history.
    callbacks : Callback or list of Callback, optional
        Each fit uses copies of them.
    class_weight : dict of label to weight, or "balanced", optional
        "balanced" gives each class the same total weight; samples count by their own weights.
    validation_split : float
        The share of each class that is held out for validation, drawn at random.
    shuffle : bool
        Whether each epoch visits the samples in a new order.
    verbose : int or "auto"
        As for `Model.fit`.
    random_state : int, RandomState instance or None
        Seed of starting weights, shuffles, dropout masks and the choice of validation samples.
    backend : str, optional
        By default the current backend of the process that fits.
    dtype : str, optional
        By default that of the model that `build` returns; if it returns layers, that of X: float32 samples
        are computed in float32, about twice as fast.
    **routed
        `build__…` and `optimizer__…`, see above.

    Attributes
    ----------
    classes_ : array, (classes,)
    model_ : Model
        The trained network.
    history_ : History
        Loss and metrics of each epoch.
    n_features_in_ : int
    feature_names_in_ : array, (features,)
        If X was a data frame.

    Examples
    --------
    >>> import nnx
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> def build(outputs, units=8):
    ...     return [nnx.layers.Dense(units, "relu"), nnx.layers.Dense(outputs, "softmax")]
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = nnx.estimators.Classifier(build, epochs=50, optimizer__learning_rate=0.01, random_state=0)
    >>> search = GridSearchCV(classifier, {"build__units": [1, 16]}, cv=3).fit(X, y)
    >>> search.best_params_, bool(search.best_score_ > 0.9)
    ({'build__units': 16}, True)
    """

    def __init__(self, build=None, *, epochs=100, batch_size=32, optimizer=None, loss=None, metrics=None,
                 callbacks=None, class_weight=None, validation_split=0.0, shuffle=True, verbose=0,
                 random_state=None, backend=None, dtype=None, **routed):  # fmt: skip
        keep_arguments(self, locals())

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Continue training for one epoch on these samples, and return the classifier.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array, optional
            All labels; needed in the first call if `y` lacks some.
        """
        return self._fit_epoch(X, y, sample_weight, None if classes is None else np.asarray(classes))

    def predict_proba(self, X) -> np.ndarray:
        """Return the probability of each class, (samples, classes), in the order of `classes_`."""
        p = self._outputs(X)
        loss = self._loss
        if loss.from_logits:
            link = activations.softmax if loss.fused_activation == "softmax" else activations.sigmoid
            p = link.forward(np, p)
        if p.min() < 0 or p.max() > 1:
            raise ValueError(
                f"the network's outputs are no probabilities, they go from {p.min():.4g} to {p.max():.4g}: end it in "
                f"softmax or sigmoid, or use predict alone"
            )
        return np.hstack([1 - p, p]) if p.shape[1] == 1 else p / p.sum(axis=1, keepdims=True)

    def predict(self, X) -> np.ndarray:
        """Return the most probable label of each sample, (samples,)."""
        outputs, loss = self._outputs(X), self._loss
        if outputs.shape[1] > 1:
            return self.classes_[outputs.argmax(axis=1)]
        signed = loss.from_logits or isinstance(loss, losses.Hinge)
        return self.classes_[(outputs[:, 0] > (0 if signed else 0.5)).astype(int)]

    @property
    def _loss(self) -> losses.Loss:
        return losses.get(self.model_.loss)

    def _check_y(self, y):
        labels: Any = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        return labels

    def _count_outputs(self, y):
        self._encoder = LabelEncoder().fit(y)
        self.classes_ = np.asarray(self._encoder.classes_)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least two classes, got 1 class")
        return len(self.classes_)

    def _encode(self, y) -> np.ndarray:
        return np.asarray(self._encoder.transform(y))

    def default_build(self, outputs, units=(100,), activation="relu"):
        return [*(Dense(n, activation) for n in np.ravel(units).tolist()), Dense(outputs, "softmax")]

    def _default_loss(self, model):
        return "binary_crossentropy" if model.output_shape == (1,) else "sparse_categorical_crossentropy"

    def _check_network(self, model):
        classes, shape = len(self.classes_), model.output_shape
        if shape != (classes,) and (shape, classes) != ((1,), 2):
            raise ValueError(
                f"y has {classes} classes, but the output of the network that build returned has shape "
                f"{describe_shape(shape)}: end it in Dense({classes}, 'softmax'), or let build take the number as its "
                f"argument `outputs`"
            )
        last = getattr(model.layers[-1], "activation", None)
        link = model.loss.fused_activation
        if link is None or model.loss.from_logits or not isinstance(last, activations.Activation):
            return
        if type(last) is activations.Linear or (shape == (1,) and type(last) is activations.Softmax):
            raise ValueError(
                f"{type(model.loss).__name__} takes probabilities, but build's network ends in {model.layers[-1]!r}: "
                f"give that activation={'sigmoid' if shape == (1,) else link!r}, or the loss from_logits=True"
            )

    def _targets(self, y):
        loss, (width,) = self._loss, self.model_.output_shape
        return y if width == 1 or isinstance(loss, losses.SparseCategoricalCrossentropy) else np.eye(width)[y]

    def _weights(self, y, weight):
        if self.class_weight is None:
            return weight
        labels, weight = self.classes_[y], np.ones(len(y)) if weight is None else weight
        if isinstance(self.class_weight, dict):
            return weight * class_weights.named(self.class_weight, labels, self.classes_)
        return weight * class_weights.balanced(self.class_weight, labels, weight)

    def _strata(self, y):
        return y
