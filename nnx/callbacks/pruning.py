"""A callback that ends a hopeless trial of an Optuna study early."""

import copy

from nnx.callbacks.monitors import Monitor


class OptunaPruning(Monitor):
    """Report a metric to an Optuna trial after each epoch, and end the trial when its study prunes it.

    Parameters
    ----------
    trial : optuna.Trial
    monitor : str
        The metric to report, a key of the history. It must suit the direction of the study: a loss for
        one that minimises, `val_accuracy` for one with direction="maximize".

    Raises
    ------
    optuna.TrialPruned
        From `fit`; the study catches it as the end of the trial.

    Examples
    --------
    The objective of a study, for `study.optimize(objective, n_trials=50)`:

    >>> import nnx
    >>> def objective(trial):
    ...     model = nnx.Sequential([nnx.layers.Dense(trial.suggest_int("units", 4, 64)), nnx.layers.Dense(1)])
    ...     model.compile("adam", "mse")
    ...     pruning = nnx.callbacks.OptunaPruning(trial)
    ...     history = model.fit(X, y, epochs=30, validation_split=0.2, callbacks=[pruning], verbose=0)
    ...     return min(history.history["val_loss"])
    """

    keeps_weights = False

    def __init__(self, trial, monitor: str = "val_loss"):
        super().__init__(monitor, mode="auto")
        self.trial = trial

    def on_epoch_end(self, epoch, logs=None):
        value = self.value(epoch, logs)
        if value is None:
            return
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned(f"{self.monitor} {value:.4g} in epoch {epoch + 1}")

    def __deepcopy__(self, memo):
        return copy.copy(self)  # a scikit-learn clone reports to the same trial
