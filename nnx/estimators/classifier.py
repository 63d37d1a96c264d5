"""Any network as a scikit-learn classifier."""

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from nnx import activations, losses
from nnx.data.classes import check_weight
from nnx.data.samples import check_count
from nnx.estimators.network import NetworkEstimator
from nnx.layers import Dense
from nnx.layers.base import describe_shape


class Classifier(ClassifierMixin, NetworkEstimator):
    """Any network as a scikit-learn classifier.

    Parameters
    ----------
    build : function, optional
        Returns the network: an nnx model, a layer, or a list of layers. Its last layer has as many
        outputs as there are classes, with softmax; for two classes also one, with sigmoid. Two
        arguments are filled in from the data, if it has them: `outputs`, the number of classes, and
        `input_shape`, that of one sample. All others are parameters of the classifier: `build__units`.
        By default dense layers, with `build__units=(100,)` and `build__activation="relu"`.
    epochs, batch_size : int
        Passes over the samples, and samples a step.
    optimizer : str or Optimizer, optional
        By default that with which `build` compiled its model, else Adam. Its arguments are
        parameters too: `optimizer__learning_rate`.
    loss : str or Loss, optional
        By default that with which `build` compiled its model, else cross-entropy.
    metrics : list, optional
        Metrics for the history.
    callbacks : Callback or list of Callback, optional
        Each fit works on copies of them.
    class_weight : dict of label to weight, or "balanced", optional
        "balanced" gives each class the same total weight, those of the samples included.
    validation_split : float
        This share of the samples, drawn at random class by class, is kept out of training to
        validate on.
    shuffle : bool
        Whether the samples are visited in a new order each epoch.
    verbose : int or "auto"
        As of `Model.fit`.
    random_state : int, RandomState instance or None
        Decides starting weights, shuffles, masks and the validation samples.
    backend : str, optional
        Where it runs; by default the current backend of the process that fits.
    dtype : str, optional
        By default that of the model that `build` returns; if it returns layers, that of X: give float32 samples
        to compute in float32, which is about twice as fast.
    **routed
        `build__…` and `optimizer__…`, see above.

    Attributes
    ----------
    classes_ : array, (classes,)
    model_ : Model
        The trained network.
    history_ : History
        The numbers of each epoch.
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
        class_weight=None,
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
        self.class_weight = class_weight
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.verbose = verbose
        self.random_state = random_state
        self.backend = backend
        self.dtype = dtype
        vars(self).update(routed)

    def fit(self, X, y, sample_weight=None, validation_data=None):
        """Train a new network, and return the classifier.

        Parameters
        ----------
        X : array, (samples, ...)
        y : array, (samples,)
            Labels of any kind: numbers, text, booleans.
        sample_weight : array, (samples,), optional
            Scaled to a mean of 1: only their ratios count.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Samples to validate on after each epoch, in place of `validation_split`.
        """
        X, y = self._check_data(X, y, reset=True)
        self._learn_classes(y)
        self.model_ = self._make_model(X, len(self.classes_))
        self._train(
            X, self._encode(y), sample_weight, validation_data, self.validation_split,
            epochs=check_count("epochs", self.epochs),
        )  # fmt: skip
        return self

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train for one epoch on these samples, from where training stands.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array, optional
            All labels that will ever come; for the first call, if `y` lacks some.
        """
        first = not hasattr(self, "model_")
        X, y = self._check_data(X, y, reset=first)
        if first:
            self._learn_classes(y if classes is None else np.asarray(classes))
            self.model_ = self._make_model(X, len(self.classes_))
        seen = 0 if first else self.history_.epoch[-1] + 1
        self._train(X, self._encode(y), sample_weight, None, None, initial_epoch=seen, epochs=seen + 1)
        return self

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

    def _learn_classes(self, labels):
        self._encoder = LabelEncoder().fit(labels)
        self.classes_ = np.asarray(self._encoder.classes_)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least two classes, got 1 class")

    def _encode(self, y) -> np.ndarray:
        return np.asarray(self._encoder.transform(y))

    def _checked_validation(self, X, y, sample_weight=None):
        X, y = self._check_data(X, y, reset=False)
        return (X, self._targets(self._encode(y)), *([] if sample_weight is None else [sample_weight]))

    def default_build(self, outputs, units=(100,), activation="relu"):
        return [*(Dense(n, activation) for n in np.ravel(units).tolist()), Dense(outputs, "softmax")]

    def _default_loss(self, model):
        return "binary_crossentropy" if model.output_shape == (1,) else "sparse_categorical_crossentropy"

    def _check_network(self, model):
        classes, found = len(self.classes_), model.output_shape
        if found != (classes,) and (found, classes) != ((1,), 2):
            raise ValueError(
                f"y has {classes} classes, but the output of the network that build returned has shape "
                f"{describe_shape(found)}: end it in Dense({classes}, 'softmax'), or let build take the number as its "
                f"argument `outputs`"
            )
        last = getattr(model.layers[-1], "activation", None)
        link = model.loss.fused_activation
        if link is None or model.loss.from_logits or not isinstance(last, activations.Activation):
            return
        if type(last) is activations.Linear or (found == (1,) and type(last) is activations.Softmax):
            raise ValueError(
                f"{type(model.loss).__name__} takes probabilities, but build's network ends in {model.layers[-1]!r}: "
                f"give that activation={'sigmoid' if found == (1,) else link!r}, or the loss from_logits=True"
            )

    def _targets(self, y):
        loss, (width,) = self._loss, self.model_.output_shape
        return y if width == 1 or isinstance(loss, losses.SparseCategoricalCrossentropy) else np.eye(width)[y]

    def _weights(self, y, weight):
        if self.class_weight is None:
            return weight
        given = self.class_weight
        if isinstance(given, dict) and (unknown := [label for label in given if label not in self.classes_]):
            raise ValueError(
                f"class_weight names {unknown[0]!r}, which is not one of the classes {self.classes_}"
            )
        factors = np.ones(len(self.classes_))
        counted = slice(None) if weight is None else weight > 0  # no class of samples that do not count
        present = np.unique(y[counted])
        if isinstance(given, dict):
            for label, factor in given.items():
                factors[self._encode([label])] = check_weight(label, factor)
        else:
            factors[present] = compute_class_weight(
                given,
                classes=self.classes_[present],
                y=self.classes_[y][counted],
                sample_weight=None if weight is None else weight[counted],
            )
        return factors[y] if weight is None else weight * factors[y]

    def _strata(self, y):
        return y
