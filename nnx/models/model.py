"""`Model`: a network with compile, fit, evaluate, predict and save."""

from typing import Any

from nnx import optimizers, tree
from nnx.callbacks import format_number
from nnx.callbacks.history import History
from nnx.context import Context
from nnx.data.classes import with_class_weights
from nnx.data.samples import Samples, check_count, check_verbose
from nnx.data.sources import on_host
from nnx.data.streams import end_of, holds_batches
from nnx.errors import explained
from nnx.interrupt import interruptible
from nnx.layers.base import Layer
from nnx.layers.containers import Chain
from nnx.losses.outputs import as_loss, as_metrics
from nnx.models.arrays import DTYPES, NetworkArrays, NotReadyError
from nnx.models.prediction import predict_samples, predict_stream
from nnx.models.summary import summary_table
from nnx.registry import suggest
from nnx.saving import model_files
from nnx.threads import alone, expect_alone, reads
from nnx.training.arguments import FitArguments
from nnx.training.batches import Stream
from nnx.training.mixed_precision import run_network
from nnx.training.preparation import fit_data, is_stream_of_batches, prepared, prepared_for_training
from nnx.training.runner import StepRunner
from nnx.training.step_cache import CompiledSteps
from nnx.training.trainer import Trainer, checked_batches

__all__ = ["DTYPES", "Model", "NotReadyError"]


class Model(NetworkArrays):
    """A network and its arrays on one backend.

    Parameters
    ----------
    network : Layer
    input_shape : tuple of int, optional
        The shape of one sample; by default that of the first data.
    seed : int, optional
        Seed of starting weights, shuffles and dropout masks. By default from `nnx.utils.set_random_seed`,
        else random.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Precision of parameters and computation. With 16 bits the parameters stay in float32 and the layers
        compute in half precision, which many GPUs do faster: see `nnx.training.mixed_precision`.
    backend : str or Backend, optional
        By default the current backend when the model is built.
    """

    @property
    def layers(self) -> list[Layer]:
        """The layers of a Sequential, else the network as a list of one."""
        return self.network.layers if isinstance(self.network, Chain) else [self.network]

    # Training

    @alone
    def compile(
        self, optimizer: Any = "rmsprop", loss=None, loss_weights=None, metrics=None, weighted_metrics=None
    ) -> None:
        """Set optimizer, loss and metrics, by name or object, and reset the optimizer's state.

        For a model of several outputs (`layers.Outputs`): dicts by output, or lists in their order.
        """
        if loss is None:
            raise ValueError("compile needs a loss, such as loss='mse' or loss='categorical_crossentropy'")
        new_optimizer, new_loss = optimizers.get(optimizer), as_loss(loss, loss_weights)
        used = as_metrics(metrics, False) + as_metrics(weighted_metrics, True)
        names = ["loss", *new_loss.parts] + [metric.name for metric, _ in used]
        if len(set(names)) < len(names):
            raise ValueError(f"two metrics have the same name: {names}; give one of them name=...")
        self.optimizer, self.loss, self.metrics_used = new_optimizer, new_loss, used
        self._slots, self._slot_names, self.loss_scale, self.step = None, (), None, 0
        self._compiled_steps = CompiledSteps()
        self._loss_is_checked = False

    @property
    def metrics_names(self) -> list[str]:
        """The names of the results of `evaluate`, in order."""
        parts = () if self.loss is None else self.loss.parts
        return ["loss", *parts] + [metric.name for metric, _ in self.metrics_used]

    @property
    def engine(self) -> StepRunner:
        """The runner of its steps, on the current backend."""
        return StepRunner(self)

    def check_batch(self, batch) -> Samples:
        """Return one checked batch, `(x, y, sample_weight)`."""
        return prepared(self, *batch)

    @explained
    @interruptible
    @alone
    def fit(self, x, y=None, batch_size: Any = 32, epochs: int = 1, verbose="auto", callbacks=None,
            validation_split: float = 0.0, validation_data=None, shuffle: Any = True, class_weight=None,
            sample_weight=None, initial_epoch: int = 0, steps_per_epoch: int | None = None,
            validation_steps: int | None = None, validation_batch_size: Any = None, validation_freq: int = 1,
            resume=None) -> History:  # fmt: skip
        """Train, and return the history.

        Parameters
        ----------
        x : array, (samples, ...), or iterable of batches `(x, y)` or `(x, y, sample_weight)`
            Also tables, tensors, and HDF5 or Zarr files, which may be larger than memory: see docs/data.md.
        y : array, (samples, ...)
        batch_size : int
            Samples a step; the last batch of an epoch may be smaller.
        epochs : int
            Passes over the data, including those before `initial_epoch`.
        verbose : {"auto", 0, 1, 2}
            0 silent, 1 progress bar and a line an epoch, 2 a line an epoch; "auto" is 1 on a
            terminal, else 2.
        callbacks : list of Callback
        validation_split : float
            The last share of the samples is held out for validation. There is a warning if only it has some
            of the classes, as happens if samples are sorted by class.
        validation_data : (x, y), (x, y, sample_weight) or iterable of batches
            A generator is used up after one pass: to validate more than once, give `validation_steps`, or a list.
        shuffle : bool or function
            Whether each epoch visits the samples in a new order. A function gets the sample indices at each
            epoch, and returns them in the order to use.
        class_weight : dict of class index to weight
            Factor of the loss of the samples of each class, by default 1. Samples must have one label each:
            a class index, a one-hot label, or 0 and 1 (or -1 and 1) for a single output.
        sample_weight : array, (samples,)
        steps_per_epoch : int
            Batches an epoch, for an endless iterable.
        validation_steps : int
            Batches a validation: an iterator continues each time, other iterables start again.
        resume : str or Path, optional
            A folder in which `ModelCheckpoint(..., save_state=True)` saved the state of an interrupted
            training: continue from there, with the same result. See docs/reliability.md.

        Raises
        ------
        ValueError
            If the data does not fit the model; the message names value, expectation and remedy.
        KeyboardInterrupt
            On Ctrl-C, when weights and history are consistent: the model stays usable.
        """
        self._require_compiled()
        arguments = FitArguments(
            batch_size, epochs, initial_epoch, shuffle, verbose, steps_per_epoch, validation_steps,
            validation_batch_size, validation_freq,
        )  # fmt: skip
        data = fit_data(self, arguments, x, y, sample_weight, class_weight, validation_split, validation_data)
        return Trainer(self, arguments, data).fit(callbacks, resume)

    @explained
    @alone
    def train_on_batch(self, x, y, sample_weight=None, class_weight=None, return_dict: bool = False):
        """Run one step on these samples; return its loss and metrics. The arguments are those of `fit`."""
        runner = self.engine
        samples = prepared_for_training(self, x, y, sample_weight)
        samples = with_class_weights(samples, class_weight, self.output_shape)
        with self.backend.scope(self.dtype):
            logs = runner.logs(runner.train_on_batch(samples), len(samples))
        return _as_result(logs, return_dict)

    @explained
    def test_on_batch(self, x, y, sample_weight=None, return_dict: bool = False):
        """Return loss and metrics on these samples, as one batch."""
        runner = self.engine
        expect_alone(self)
        samples = prepared(self, x, y, sample_weight)
        with self.backend.scope(self.dtype):
            logs = runner.evaluate_samples(samples, len(samples))
        return _as_result(logs, return_dict)

    @explained
    @reads
    def evaluate(
        self,
        x,
        y=None,
        batch_size: int | None = 256,
        verbose: Any = "auto",
        sample_weight=None,
        steps: int | None = None,
        return_dict: bool = False,
    ):
        """Return the loss, or a list of loss and metrics, on samples or an iterable of batches.

        With `steps`, only so many batches are used; an iterator continues at the next call.
        """
        runner = self.engine
        check_verbose(verbose)
        size = check_count("batch_size", 256 if batch_size is None else batch_size)
        steps = None if steps is None else check_count("steps", steps)
        with self.backend.scope(self.dtype):
            if is_stream_of_batches(x, y):
                if sample_weight is not None:
                    raise ValueError(
                        "sample_weight needs arrays: an iterable of batches gives (x, y, sample_weight)"
                    )
                batches = Stream(self.backend, lambda step: checked_batches(self, x, steps, "steps"))
                logs = runner.evaluate(batches)
            else:
                samples = prepared(self, x, y, sample_weight)
                stop = end_of("steps", steps, size, len(samples))
                samples = samples.part(0, stop) if stop < len(samples) else samples
                logs = runner.evaluate_samples(samples, size)
        if verbose:
            print("  ".join(f"{name} {format_number(value)}" for name, value in logs.items()))
        return _as_result(logs, return_dict)

    @explained
    @reads
    def predict(self, x, batch_size: int | None = 1024, verbose=0, steps: int | None = None) -> Any:
        """Return the outputs for `x` as a NumPy array, (samples, ...), or as a dict or tuple of them.

        Parameters
        ----------
        x : array, (samples, ...), or iterable of batches
            Batches are x, (x,), (x, y) or (x, y, sample_weight); only x is used.
        batch_size : int
            Samples computed at a time; ignored for an iterable of batches.
        steps : int, optional
            Number of batches, by default all. An iterator continues at the next call.
        """
        check_verbose(verbose)
        size = check_count("batch_size", 1024 if batch_size is None else batch_size)
        steps = None if steps is None else check_count("steps", steps)
        shape = self._built_shape()
        if holds_batches(x, shape):
            return predict_stream(self, x, shape, steps)
        return predict_samples(self, x, shape, size, steps)

    @explained
    @reads
    def __call__(self, x) -> Any:
        """Return the outputs for `x` as an array of the backend."""
        x = self.as_input(on_host(x, "X", self.backend), self.input_shape)
        with self.backend.scope(self.dtype):
            placed = tree.map(lambda a: self.backend.asarray(a[:]), x)
            ctx = Context(self.backend, state=self.state)
            return run_network(self.dtype, self.network, ctx, self.params, placed)[0]

    # Layers and files

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """Return a layer by its name, as in `summary`, or by its index."""
        if index is not None:
            return self.layers[index]
        present = self.network.sublayers()
        if name not in present:
            raise ValueError(suggest("layer", str(name), present))
        return present[name]

    def summary(self, print_fn=print) -> None:
        """Print a table: each layer's output shape, parameters, operations and memory."""
        self._built_shape()
        print_fn(summary_table(self))

    @reads
    def save(self, path, include_optimizer: bool = True) -> None:
        """Save architecture, weights and, if compiled, loss, metrics and optimizer to one file.

        The file is safetensors with a JSON description. It appears whole or not at all.
        """
        model_files.save(self, path, include_optimizer)

    @reads
    def to_numpy_function(self, path=None) -> str:
        """Return the text of a Python module with the same predictions, which needs only NumPy.

        Its function `predict(x)` has the input of `Model.predict`, and shows the computation in plain lines.
        The text includes the weights; with `path`, "net.py", text and weights are written to net.py and
        net.npz. A model in half precision computes in float32 there.

        Raises
        ------
        nnx.onnx.ExportError
            If a layer cannot be exported; the message names it.

        Examples
        --------
        >>> import nnx
        >>> model = nnx.Sequential([nnx.layers.Dense(2, "relu", input_shape=(3,))], seed=0)
        >>> print(model.to_numpy_function().partition("def predict")[2])
        (x):
            \"\"\"Return the outputs for x: (batch, 3) -> (batch, 2).\"\"\"
            x = checked(x, 'x', (3,), np.float32)
            # dense
            dense = np.maximum(x @ weights['dense/kernel'] + weights['dense/bias'], 0.0)
            return dense
        """
        from nnx.export import numpy_module

        self._built_shape()
        return numpy_module.source(self) if path is None else numpy_module.write(self, path)

    @reads
    def save_weights(self, path) -> None:
        """Save only the weights and moving averages."""
        model_files.save_weights(self, path)

    @alone
    def load_weights(self, path, check_finite: bool = True) -> None:
        """Load weights from a file of `save_weights` or `save` into a model of the same architecture."""
        model_files.load_weights(self, path, check_finite)


def _as_result(logs: dict, return_dict: bool):
    if return_dict:
        return logs
    values = list(logs.values())
    return values if len(values) > 1 else values[0]
