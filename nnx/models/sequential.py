"""`Sequential`: a model of layers that run one after another."""

from typing import cast

import numpy as np

from nnx import initializers, tree
from nnx.layers.base import Layer, Shape
from nnx.layers.containers import Chain, as_layer
from nnx.layers.reshape import Input
from nnx.models import ownership
from nnx.models.model import Model
from nnx.registry import decode
from nnx.saving import files, model_files
from nnx.threads import alone


class Sequential(Model):
    """A model of layers that run one after another.

    Parameters
    ----------
    layers : list of Layer, optional
        `add` adds more. The first may have `input_shape=`, or be an `Input`; by default the shape is that
        of the first data.
    name : str, optional
    seed, dtype, backend
        See `Model`.

    Examples
    --------
    >>> import numpy as np, nnx
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> y = np.array([0, 1, 1, 0])
    >>> model = nnx.Sequential([nnx.layers.Dense(8, "tanh"), nnx.layers.Dense(1, "sigmoid")], seed=0)
    >>> model.compile(optimizer=nnx.optimizers.Adam(0.1), loss="binary_crossentropy")
    >>> history = model.fit(X, y, epochs=100, verbose=0)
    >>> model.predict(X).round().ravel()
    array([0., 1., 1., 0.], dtype=float32)
    """

    def __init__(self, layers: list | None = None, name: str | None = None, *, seed: int | None = None,
                 dtype: str = "float32", backend=None):  # fmt: skip
        super().__init__(Chain([]), seed=seed, dtype=dtype, backend=backend)
        self.name = name or "sequential"
        self._reached: tuple = None, None, None
        """The network, its input shape and its output shape after the last `add`."""
        self._append([as_layer(layer) for layer in layers or []])
        ownership.check(self, self.network)

    @property
    def _chain(self) -> Chain:
        """The network, which is always a chain."""
        return cast(Chain, self.network)

    @alone
    def add(self, layer) -> None:
        """Add a layer at the end."""
        added = as_layer(layer)
        present = self._chain.layers
        if added in present and any(added is other for other in present):
            raise ValueError(f"{added!r} is already in this model: a Sequential holds each layer once")
        ownership.check(self, added)
        if self.built:
            shape = self._built_shape()
            network = self._chain if isinstance(added, Input) else self._chain.extended(added)
            network.out_shape(shape)  # raises an error if the layer does not fit
            self._change_network(network, shape)
        else:
            self._append([added])

    def _append(self, added: list[Layer]) -> None:
        """Add layers to a model without weights, or raise a ValueError if one does not fit."""
        network, shape, new = self._chain, self.input_shape, []
        known, known_shape, last = self._reached
        if shape is not None and (known is not network or known_shape != shape):
            last = network.out_shape(shape)
        for layer in added:
            if shape is None and not network.layers and not new:
                shape = last = layer.input_shape
            if isinstance(layer, Input):
                continue
            if shape is not None:
                last = layer.out_shape(last)
            new.append(layer)
        if len(new) == 1:
            network = network.extended(new[0])
        elif new:
            network = Chain([*network.layers, *new])
        self.network, self.input_shape, self._reached = network, shape, (network, shape, last)
        self._forget()

    def _change_network(self, network: Chain, shape: Shape | None) -> None:
        """Replace the network, and keep the weights of the layers that are in both."""
        before = {"params": self._params, "state": self._state} if self.built else {}
        self.network, self.input_shape = network, shape
        self._forget()
        if before:
            self.build(shape)
        for name, old in before.items():
            new = getattr(self, name)
            kept = {key: old[key] for key in new if key in old and _same_shapes(old[key], new[key])}
            setattr(self, name, {**new, **kept})

    @alone
    def pop(self) -> Layer:
        """Remove and return the last layer; the others keep their weights."""
        *rest, last = self.layers
        self._change_network(Chain(rest), self.input_shape)
        return last


def _same_shapes(a, b) -> bool:
    return [np.shape(leaf) for leaf in tree.leaves(a)] == [np.shape(leaf) for leaf in tree.leaves(b)]


def load(path, backend=None, check_finite: bool = True) -> Model:
    """Return a model from a file that `model.save` wrote, on any backend.

    Time and memory are proportional to the size of the file, and no code from it runs.

    Parameters
    ----------
    path : str or Path
    backend : str or Backend, optional
    check_finite : bool
        Whether weights that are infinite or not a number are an error.

    Raises
    ------
    ValueError
        If the file is broken, of a newer format, or names a class that is not registered.
    """
    arrays, description = files.read(path)
    model_files.check_description(path, description)
    with model_files.errors_name(path):
        ownership.make_room(model_files.nesting(description["network"]))
    with (
        model_files.errors_name(path),
        initializers.only_shapes(most=sum(array.size for array in arrays.values())),
    ):
        network = decode(description["network"])
        settings = {"seed": description["seed"], "dtype": description["dtype"]}
        sequential = isinstance(network, Chain)
        model = Sequential(network.layers, **settings) if sequential else Model(network, **settings)
        model.name = description["name"]
    if backend is not None:
        model.to(backend)
    model_files.restore(model, path, arrays, description, check_finite)
    return model
