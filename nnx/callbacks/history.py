"""`History`, the result of `fit`: loss and metrics of each epoch."""

from nnx.callbacks import Callback
from nnx.interrupt import undivided


class History(Callback):
    """Loss and metrics of each epoch, by name.

    Attributes
    ----------
    history : dict of str to list of float
        For example `history["loss"]` and `history["val_accuracy"]`, one entry an epoch.
    epoch : list of int
        The epochs, counted from 0.
    """

    keeps_weights = False
    keeps = ("history", "epoch")

    history: dict[str, list[float]]
    epoch: list[int]

    def __init__(self):
        super().__init__()
        self.history = {}
        self.epoch = []

    @undivided
    def on_epoch_end(self, epoch, logs=None):
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self):
        last = ", ".join(f"{name}={_short(values[-1])}" for name, values in self.history.items())
        return f"<History of {len(self.epoch)} epochs: {last}>"


def _short(value) -> str:
    return f"[{' '.join(map(_short, value))}]" if isinstance(value, list) else f"{value:.4g}"
