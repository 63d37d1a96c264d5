"""A network and its arrays on one backend: weights, state and optimizer slots."""

import functools
from typing import Any, Self

import numpy as np

from nnx import losses, optimizers, tree
from nnx.backend import Backend, BackendError, as_backend
from nnx.callbacks.history import History
from nnx.context import Context
from nnx.data.samples import as_inputs
from nnx.errors import explained
from nnx.interrupt import undivided
from nnx.layers.base import Layer
from nnx.layers.containers import as_layer
from nnx.losses.outputs import as_loss
from nnx.metrics import Metric
from nnx.models import ownership
from nnx.models.prediction import CompiledForward
from nnx.random import WEIGHTS, generator, next_seed, step_keys
from nnx.registry import Strict
from nnx.shapes import Shape, as_shapes
from nnx.threads import alone, expect_alone, expect_readable, reads
from nnx.training import mixed_precision
from nnx.training.mixed_precision import run_network
from nnx.training.step_cache import CompiledSteps

DTYPES = (*mixed_precision.HALF, "float32", "float64")


class NotReadyError(RuntimeError):
    """The model is not yet built or compiled."""


class NetworkArrays(Strict):
    """Base of `Model`: everything except training."""

    name: str
    network: Any
    """The layer that it runs; a `Chain` in a `Sequential`."""
    input_shape: Shape | None
    history: History
    """The history of the last `fit`."""
    stop_training: bool
    """A callback sets it to end training with this step or epoch."""
    optimizer: optimizers.Optimizer | None
    loss: losses.Loss | None
    metrics_used: list[tuple[Metric, bool]]
    """Each metric, and whether it uses sample weights."""
    step: int
    """Steps taken since `compile`."""
    loss_scale: dict | None
    """In float16, the factor of the loss and the number of finite steps since it last changed."""
    trained_in: int | None
    """The identifier of the thread that trains it now."""
    _loss_is_checked = False
    """Whether `nnx.inspect.suitability` has compared output and loss."""
    _owns_layers = True
    """Whether its layers must not have weights in another model."""

    def __init__(
        self, network, input_shape=None, *, seed: int | None = None, dtype: str = "float32", backend=None
    ):
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.name = "model"
        self.network = as_layer(network)
        if self._owns_layers:
            ownership.check(self, self.network)
        self.input_shape = input_shape
        self.seed = next_seed() if seed is None else int(seed)
        self._drawn_seed = self.seed if seed is None else None
        self.dtype = dtype
        self.stop_training = False
        self.history = History()
        self.step = 0
        self.trained_in = None
        self._backend: Backend | None = None if backend is None else as_backend(backend)
        self._forget()
        self.optimizer = None
        self.loss = None
        self.metrics_used = []

    @property
    def _seed_is_given(self) -> bool:
        """Whether the program chose the seed; else it was drawn."""
        return self.seed != self._drawn_seed

    def __setattr__(self, name, value):
        if name == "optimizer" and isinstance(value, str):
            value = optimizers.get(value)
        if name == "loss" and isinstance(value, (str, dict, list)):
            value = as_loss(value)
        super().__setattr__(name, value)

    def _forget(self):
        """Drop all arrays and compiled functions."""
        self._paths: list[tuple[str, tuple[str, ...]]] = []
        self._params: Any = None
        self._state: Any = None
        self._slots: list | None = None
        self._slot_names: tuple[str, ...] = ()
        self.loss_scale = None
        self._compiled_steps = CompiledSteps()
        self._compiled_forward = CompiledForward()

    @reads
    def __getstate__(self):
        """Return the state for `pickle` and `copy.deepcopy`: arrays on the host, no compiled functions."""
        kept = {**vars(self), "trained_in": None}
        kept |= {"_compiled_steps": CompiledSteps(), "_compiled_forward": CompiledForward()}
        kept["loss_scale"] = self._to_host(self.loss_scale or {})
        if self.built:
            kept["_params"], kept["_state"] = self._to_host(self._params), self._to_host(self._state)
            kept["_slots"] = None if self._slots is None else [self._to_host(slot) for slot in self._slots]
        return kept

    def __setstate__(self, kept):
        vars(self).update(kept)
        if self.built:
            ownership.claim(self, self._params, self._state)
            try:
                self.backend.scope(self.dtype)
            except (
                BackendError
            ):  # raised at the first use: a worker that cannot unpickle its task fails silently
                return
            self._params = self._to_device(self._params)
            self._state = self._to_device(self._state, packed=False)
            if self._slots is not None:
                self.set_slots(self._slots)
            self.set_loss_scale(self.loss_scale)

    @property
    def trainable(self) -> bool:
        """True: models cannot be frozen yet."""
        return True

    @trainable.setter
    def trainable(self, value: bool):
        if not value:
            raise ValueError(
                f"the model {self.name!r} cannot be frozen yet (trainable=False): all weights are trained"
            )

    # Building

    @property
    def backend(self) -> Backend:
        """The backend it runs on, chosen when it is built; `to` changes it."""
        if self._backend is None:
            self._backend = as_backend(None)
        return self._backend

    @property
    def weight_dtype(self) -> str:
        """The dtype of weights, inputs and predictions: float32 if layers compute in half precision."""
        return mixed_precision.weight_dtype(self.dtype)

    @property
    def built(self) -> bool:
        """Whether the weights exist."""
        return self._params is not None

    def init(self, seed: int | None = None, input_shape=None) -> tuple[Any, Any]:
        """Return new starting (params, state) on the backend, without changing the model."""
        shape = self._built_shape() if input_shape is None else as_shapes(input_shape)
        params, _ = self.network.init(generator(self.seed if seed is None else seed, WEIGHTS), shape)
        return self._to_device(params), self._to_device(self.network.init_state(shape), packed=False)

    def _to_device(self, host, packed=True):
        mixed_precision.check_dtype(self.backend, self.dtype)
        with self.backend.scope(self.dtype):
            arrays = tree.map(lambda a: self.backend.asarray(np.asarray(a, dtype=self.weight_dtype)), host)
            return self.backend.pack(arrays) if packed else arrays

    def as_input(self, x, in_shape) -> Any:
        """Return checked samples as host arrays in the form that the network expects, or raise a ValueError."""
        return as_inputs(x, in_shape, self.weight_dtype, self.network.categories)

    @explained
    @alone
    def build(self, input_shape) -> None:
        """Make the starting weights for samples of this shape, without the batch axis."""
        self._make_weights(input_shape)

    @functools.partial(explained, name="build")
    @undivided
    def _make_weights(self, input_shape) -> None:
        """Do the same as `build`; it may also run in a thread that prefetches data for the training thread."""
        if self._owns_layers:
            ownership.check(self, self.network)
        shape = as_shapes(input_shape, batch_axis=True)  # Keras writes the batch axis as None
        params, _ = self.network.init(generator(self.seed, WEIGHTS), shape)
        self.build_from(shape, params, self.network.init_state(shape))

    def build_from(self, shape: Shape, params, state) -> None:
        """Use these trees of host arrays as the weights for samples of this shape."""
        paths = list(_ordered_paths(self.network, params, state))
        arrays = self._to_device(params), self._to_device(state, packed=False)
        self._paths, self.input_shape, (self._params, self._state) = paths, shape, arrays
        self._slots, self._slot_names, self.loss_scale, self.step = None, (), None, 0
        if self._owns_layers:
            ownership.claim(self, params, state)

    def _unbuild(self, input_shape) -> None:
        """Drop weights that were made for invalid data, and restore the declared shape."""
        self._forget()
        ownership.release(self)
        self.input_shape = input_shape

    def expect_same_weights(self) -> None:
        """Raise a ValueError if changed settings of the layers need weights of other shapes."""
        fresh, _ = self.network.init(generator(self.seed, WEIGHTS), self._built_shape())
        shapes = [{path: tree.at(t, path).shape for path in tree.paths(t)} for t in (fresh, self._params)]
        for path in shapes[0].keys() | shapes[1].keys():
            asked, present = (each.get(path) for each in shapes)
            if asked != present:
                raise ValueError(
                    f"a layer's settings have changed since the model was built: weight {'/'.join(path)} would have "
                    f"shape {asked} and has {present}. Build the model anew: model.build({self.input_shape})"
                )

    def _built_shape(self) -> Shape:
        """Return the shape of one sample; make the weights if there are none."""
        if self.input_shape is None:
            raise NotReadyError(
                "the model is not built: the shape of its input is not known. Give the first layer "
                "input_shape=(features,), call model.build((features,)), or fit it on data"
            )
        if not self.built:
            self._make_weights(self.input_shape)
        return self.input_shape

    @property
    def params(self):
        """The weights: a tree of arrays of the backend. Training consumes them: copy what you keep."""
        expect_readable(self)
        self._built_shape()
        return self._params

    @params.setter
    @alone
    def params(self, params):
        self._params = self._copied(params, self.params, packed=True)

    @property
    def state(self):
        """Arrays that change without a gradient, such as moving averages: a tree."""
        expect_readable(self)
        self._built_shape()
        return self._state

    @state.setter
    @alone
    def state(self, state):
        self._state = self._copied(state, self.state, packed=False)

    def _copied(self, new, present, packed: bool):
        """Return a copy of the tree `new`, or raise a ValueError unless it has the shapes of `present`."""
        shapes = [{p: np.shape(tree.at(t, p)) for p in tree.paths(t) if p} for t in (new, present)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"expected arrays of shapes {shapes[1]}, got {shapes[0]}")
        with self.backend.scope(self.dtype):
            arrays = tree.map(lambda a: self.backend.asarray(a, dtype=self.weight_dtype), new)
            copied = self.backend.copy(arrays)
            return self.backend.pack(copied) if packed else copied

    @property
    def output_shape(self) -> Shape:
        """The shape of one output."""
        return self.network.out_shape(self._built_shape())

    @explained
    @alone
    @undivided
    def to(self, backend) -> Self:
        """Move weights, state and optimizer to another backend, and return the model.

        Training can continue there, with the same shuffles and dropout masks.
        """
        target = as_backend(backend)
        if self.built:
            host = [self._to_host(t) for t in (self._params, self._state)]
            slots = [self._to_host(slot) for slot in self._slots or []]
            scale = self._to_host(self.loss_scale or {})
            self._backend = target
            self._params, self._state = self._to_device(host[0]), self._to_device(host[1], packed=False)
            if self._slots is not None:
                self.set_slots(slots)
            self.set_loss_scale(scale)
        self._backend = target
        self._compiled_steps, self._compiled_forward = CompiledSteps(), CompiledForward()
        return self

    def _to_host(self, arrays):
        with self.backend.scope(self.dtype):
            return tree.map(self.backend.to_numpy, arrays)

    # The functional core

    def context(self, training: bool = False, state=None, step: int = 0) -> Context:
        """Return the context of one pass; in training, dropout masks are those of `fit` at `step`."""
        key = self.backend.device_put({"key": step_keys(self.seed, step, step + 1)[0]})["key"]
        state = self.state if state is None else state
        return Context(self.backend, training=training, state=state, key=(key[0], key[1]))

    def apply(self, params, x, ctx: Context | None = None):
        """Return the output for `x` and the pullback: `dx, grads = pullback(dy)`.

        By default a pass for inference, with the model's own state. To train, give
        `model.context(training=True, step=...)`; afterwards its `state` is the new state.
        """
        ctx = ctx or self.context()
        with self.backend.scope(self.dtype):
            output, pullback = run_network(self.dtype, self.network, ctx, params, x)

        def pullback_in_scope(dy):
            with self.backend.scope(self.dtype):
                return pullback(dy)

        return output, pullback_in_scope

    # Optimizer

    def _require_compiled(self) -> optimizers.Optimizer:
        if self.optimizer is None:
            raise NotReadyError(
                "the model is not compiled: call model.compile(optimizer='adam', loss=...) before training or "
                "evaluating it"
            )
        return self.optimizer

    @property
    def carry(self) -> dict:
        """All that a training step changes."""
        expect_readable(self)
        optimizer = self._require_compiled()
        if self._slots is None or self._slot_names != optimizer.slots:  # momentum may have been switched on
            kept = dict(zip(self._slot_names, self._slots or [], strict=True))
            with self.backend.scope(self.dtype):
                fresh = zip(optimizer.slots, optimizer.init(self.params, self.backend), strict=True)
                self._slots = [kept.get(name, slot) for name, slot in fresh]
            self._slot_names = optimizer.slots
        if self.dtype == "float16" and self.loss_scale is None:
            self.loss_scale = mixed_precision.first_scale(self.backend)
        scale = {} if self.loss_scale is None else {"scale": self.loss_scale}
        return {"params": self.params, "state": self.state, "slots": self._slots, **scale}

    @property
    def slots(self) -> dict[str, Any]:
        """The optimizer's slots: a tree of arrays for each name."""
        return dict(zip(self.optimizer.slots, self.carry["slots"], strict=True)) if self.optimizer else {}

    @alone
    def set_slots(self, slots: list) -> None:
        """Set the optimizer's slots, from trees of host arrays."""
        self._slots = [self._to_device(slot) for slot in slots]
        self._slot_names = self._require_compiled().slots

    @alone
    def set_loss_scale(self, scale: dict | None) -> None:
        """Set the loss scale of float16, from host arrays."""
        self.loss_scale = self._to_device(scale, packed=False) if scale else None

    @undivided
    def set_carry(self, carry: dict, steps: int) -> None:
        """Use the carry that `steps` training steps returned."""
        expect_alone(self)
        self._params, self._state, self._slots = carry["params"], carry["state"], carry["slots"]
        self.loss_scale = carry.get("scale")
        self.step += steps

    # Weights

    def weight_paths(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return ("params" or "state", path) of each weight array, layer by layer, as Keras orders them."""
        self._built_shape()
        return self._paths

    @reads
    def get_weights(self) -> list[np.ndarray]:
        """Return all weights and moving averages as NumPy arrays, layer by layer."""
        arrays = {"params": self.params, "state": self.state}
        with self.backend.scope(self.dtype):
            return [self.backend.to_numpy(tree.at(arrays[kind], path)) for kind, path in self.weight_paths()]

    @alone
    @undivided
    def set_weights(self, weights) -> None:
        """Set all weights and moving averages, in the order of `get_weights`."""
        paths, old = self.weight_paths(), self.get_weights()
        if len(weights) != len(old):
            raise ValueError(f"the model has {len(old)} weight arrays, got {len(weights)}")
        for (_, path), own, new in zip(paths, old, weights, strict=True):
            if np.shape(new) != own.shape:
                raise ValueError(f"weight {'/'.join(path)} has shape {own.shape}, got {np.shape(new)}")
        for kind in ("params", "state"):
            chosen = [(path, np.asarray(w)) for (k, path), w in zip(paths, weights, strict=True) if k == kind]
            arrays = tree.from_paths([p for p, _ in chosen], [w for _, w in chosen])
            setattr(self, f"_{kind}", self._to_device(arrays, packed=kind == "params"))

    @reads
    def snapshot(self) -> dict:
        """Return a copy of weights and state on the device, for `restore`."""
        with self.backend.scope(self.dtype):
            return self.backend.copy({"params": self.params, "state": self.state})

    @alone
    def restore(self, snapshot: dict) -> None:
        """Restore weights and state from a snapshot."""
        with self.backend.scope(self.dtype):
            copied = self.backend.copy(snapshot)
            self._params, self._state = self.backend.pack(copied["params"]), copied["state"]

    def count_params(self) -> int:
        """Return the number of parameters, moving averages included."""
        self._built_shape()
        return sum(int(np.prod(w.shape)) for w in tree.leaves(self._params) + tree.leaves(self._state))


def _ordered_paths(layer: Layer, params, state, prefix=()):
    """Yield ("params" or "state", path) of a layer's own arrays, then of those of its inner layers."""
    inner = layer.sublayers()
    for kind, arrays in (("params", params), ("state", state)):
        own = {name: array for name, array in arrays.items() if name not in inner}
        yield from ((kind, (*prefix, *path)) for path in tree.paths(own) if path)
    for key, sublayer in inner.items():
        yield from _ordered_paths(sublayer, params.get(key, {}), state.get(key, {}), (*prefix, key))
