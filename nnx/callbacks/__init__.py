"""Callbacks, with Keras's names and hooks.

May import: core, saving.
"""

from nnx.callbacks.base import Callback, CallbackList, LambdaCallback
from nnx.callbacks.monitors import EarlyStopping, ModelCheckpoint
from nnx.callbacks.pruning import OptunaPruning
from nnx.callbacks.rates import LearningRateScheduler, ReduceLROnPlateau
from nnx.callbacks.reporting import CSVLogger, ProgressBar, TerminateOnNaN, format_number
from nnx.callbacks.tensorboard import TensorBoard

__all__ = [
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "OptunaPruning",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "format_number",
]
