"""`Sequential`: layers one after another, with everything to train and use them."""

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
    """Layers one after another, with everything to train and use them.

    Parameters
    ----------
    layers : list of Layer, optional
        More can be added with `add`. The first may say `input_shape=`, or be an `Input`; else the
        shape is found from the first data.
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
        """A network, the shape of its input, and that of its output, from which `add` goes on."""
        self._take([as_layer(layer) for layer in layers or []])
        ownership.check(self, self.network)

    @property
    def _chain(self) -> Chain:
        """The network, which is a chain here."""
        return cast(Chain, self.network)

    @alone
    def add(self, layer) -> None:
        """Put a layer at the end."""
        added = as_layer(layer)
        present = self._chain.layers
        if added in present and any(added is other for other in present):
            raise ValueError(f"{added!r} is already in this model: a Sequential holds each layer once")
        ownership.check(self, added)
        if self.built:
            shape = self._built_shape()
            network = self._chain if isinstance(added, Input) else self._chain.extended(added)
            network.out_shape(shape)  # a layer that does not fit is reported here
            self._change_network(network, shape)
        else:
            self._take([added])

    def _take(self, added: list[Layer]) -> None:
        """Put layers at the end of a model without weights; one that does not fit is reported here."""
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
        """Take another network, and keep the weights of the layers that are in both."""
        kept = (self._params, self._state) if self.built else None
        self.network, self.input_shape = network, shape
        self._forget()
        if kept is None:
            return
        self.build(shape)
        for name, old in zip(("params", "state"), kept, strict=True):
            new = getattr(self, name)
            common = {
                key: old[key] if key in old and _same_shapes(old[key], new[key]) else new[key] for key in new
            }
            setattr(self, name, common)

    @alone
    def pop(self) -> Layer:
        """Take off and return the last layer; the others keep their weights."""
        *rest, last = self.layers
        self._change_network(Chain(rest), self.input_shape)
        return last


def _same_shapes(a, b) -> bool:
    return [np.shape(leaf) for leaf in tree.leaves(a)] == [np.shape(leaf) for leaf in tree.leaves(b)]


def load(path, backend=None, check_finite: bool = True) -> Model:
    """Load a model that `model.save` wrote, on any backend whatever it was saved on.

    Takes time and memory in proportion to the size of the file, and runs no code from it.

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
