"""scikit-learn's work at the end of an epoch: record, stop early, change the learning rate."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from nnx.callbacks import Callback


class Epochs(Callback):
    """Records each epoch in an estimator, and stops training when it no longer improves.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    samples : int
        Samples an epoch.
    score : function, optional
        Returns the score on the validation samples, which then decides when to stop, in place of the loss.
    changes_rate : bool
        Whether `learning_rate="invscaling"` and `"adaptive"` have an effect.
    once : bool
        Whether there is only one epoch, as in `partial_fit`.
    """

    schedule: str
    """"constant", "invscaling" or "adaptive"."""
    restores: bool
    """Whether the best weights are restored at the end."""
    best: dict | None
    """The best weights so far; their loss is `best_value`."""
    best_value: float

    def __init__(self, estimator, samples: int, score, changes_rate: bool, once: bool):
        super().__init__()
        self.estimator, self.samples, self.score, self.once = estimator, samples, score, once
        self.schedule = estimator.learning_rate if changes_rate else "constant"
        self.restores = self.keeps_weights = score is not None or estimator.restore_best
        self.best, self.best_value = None, np.inf

    def on_train_begin(self, logs=None):
        self.estimator.n_iter_ = 0
        if self.score is not None:
            self.best = self.model.snapshot()

    def on_epoch_end(self, epoch, logs=None):
        own = self.estimator
        own.n_iter_ += 1
        own.t_ += self.samples
        logs = logs or {}
        own.loss_ = logs["loss"]
        own.loss_curve_.append(own.loss_)
        if own.verbose:
            print(f"Iteration {own.n_iter_}, loss = {own.loss_:.8f}")
        self._compare(logs)
        optimizer = self.model.optimizer
        if self.schedule == "invscaling":
            optimizer.learning_rate = own.learning_rate_init / (own.t_ + 1) ** own.power_t
        if own._no_improvement_count > own.n_iter_no_change and self._stops(optimizer):
            self.model.stop_training = True
        elif own.n_iter_ == own.max_iter and not self.once:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({own.max_iter}) reached and the optimization "
                f"hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _compare(self, logs):
        """Count the epochs without improvement, and keep the best weights if they will be restored."""
        own, better = self.estimator, False
        if self.score is not None:
            score = self.score()
            own.validation_scores_.append(score)
            if own.verbose:
                print(f"Validation score: {score:f}")
            stalls = score < own.best_validation_score_ + own.tol
            if score > own.best_validation_score_:
                own.best_validation_score_, better = score, True
        else:
            stalls = own.loss_ > own.best_loss_ - own.tol
            own.best_loss_ = min(own.best_loss_, own.loss_)
            value = logs.get("val_loss", own.loss_)
            if value < self.best_value:
                self.best_value, better = value, True
        own._no_improvement_count = own._no_improvement_count + 1 if stalls else 0
        if better and self.restores:
            self.best = self.model.snapshot()

    def _stops(self, optimizer) -> bool:
        """Return True to stop; with an adaptive learning rate, first reduce it until it is too small."""
        own = self.estimator
        stops = self.schedule != "adaptive" or optimizer.learning_rate <= 1e-6
        if self.schedule != "adaptive":
            action = "Stopping."
        elif stops:
            action = "Learning rate too small. Stopping."
        else:
            optimizer.learning_rate /= 5.0
            action = f"Setting learning rate to {optimizer.learning_rate:f}"
            own._no_improvement_count = 0
        if own.verbose:
            what = "Training loss" if self.score is None else "Validation score"
            epochs = f"{own.n_iter_no_change} consecutive epochs"
            print(f"{what} did not improve more than tol={own.tol:f} for {epochs}. {action}")
        return stops

    def on_train_end(self, logs=None):
        if self.best is not None:
            self.model.restore(self.best)


class Order:
    """The order of the samples in each epoch, drawn from a NumPy `RandomState`."""

    def __init__(self, rng, weight, batch_size: int):
        self.rng, self.batch_size = rng, batch_size
        # Only weights of zero can make a batch without a mean.
        self.weight = weight if weight is not None and (weight == 0).any() else None
        self.current = None

    def __call__(self, indices):
        order = indices if self.current is None else self.current
        if self.rng is not None:
            drawn = np.arange(len(indices))
            self.rng.shuffle(drawn)
            order = order[drawn]
        self.current = order
        self.check(order)
        return order

    def check(self, order) -> None:
        """Raise a ZeroDivisionError if all weights of a batch are zero."""
        if self.weight is not None:
            starts = np.arange(0, len(order), self.batch_size)
            if (np.add.reduceat(np.abs(self.weight[order]), starts) == 0).any():
                raise ZeroDivisionError("Weights sum to zero, can't be normalized")
