"""The training step: one pure function, and what belongs to it.

    step(carry, batch, numbers) -> (carry, sums)

The carry holds all that changes: parameters, state, optimizer slots. The sums are those of the
loss and the metrics: batches add to them on the device, and the host reads them once an epoch.
`numbers` are computed on the host for each step: the optimizer's scalars and the random key.
"""

from typing import Any

from nnx import activations, layers, precision, tree
from nnx.backend import Backend
from nnx.context import Context
from nnx.layers.base import Layer, run
from nnx.losses import Loss
from nnx.registry import is_own


class Steps:
    """The step functions of a network with loss, metrics and optimizer, made for a backend.

    They hold no arrays, so models of equal settings share them, and what was compiled for one is
    there for the next.
    """

    def __init__(
        self,
        backend: Backend,
        network: Layer,
        loss: Loss,
        metrics,
        optimizer,
        dtype="float32",
        communicator=None,
    ):
        self.backend, self.metrics, self.optimizer, self.dtype = backend, metrics, optimizer, dtype
        self.communicator = communicator
        self.network, self.loss, self.head = fuse(network, loss)
        self.penalties = list(weight_penalties(network))
        self.train = backend.repeat(self._train_row)
        self.train_one = backend.one_step(self._train_row)
        self.evaluate = backend.repeat(self._evaluate_row)
        self.evaluate_one = backend.one_step(self._evaluate_row)
        self.output = backend.compile(self._output)
        self.loss_and_gradients = backend.compile(self._loss_and_gradients)

    def _train_row(self, carry, row, data):
        return self._train_step(carry, self._take(row, data), row)

    def _train_step(self, carry, batch, numbers):
        scalars = {name[5:]: value for name, value in numbers.items() if name.startswith("rate_")}
        xp, scale, kept = self.backend.xp, carry.get("scale"), {}
        factor = None if scale is None else scale["factor"]
        grads, state, sums = self.gradients(carry["params"], carry["state"], batch, numbers, factor)
        if self.communicator is not None:
            reduced = self.backend.all_reduce(self.communicator, [grads, state], numbers["share"])
            grads, state = reduced[0], tree.copy(reduced[1])
        if scale is not None:  # of float16, whose gradients may overflow
            scalars["finite"] = finite = precision.all_finite(xp, self.backend.flat(grads))
            state = precision.keep_if(xp, finite, state, carry["state"])
            kept = {"scale": precision.next_scale(xp, scale, finite)}
        params, slots = self.optimizer.update(grads, carry["slots"], carry["params"], scalars, self.backend)
        return {"params": params, "state": state, "slots": slots, **kept}, sums

    def gradients(self, params, state, batch, numbers, loss_scale=None) -> tuple:
        """Return the gradients of the weights, the new state, and the sums of loss and metrics."""
        ctx = Context(
            self.backend,
            training=True,
            state=state,
            key=(numbers["key_0"], numbers["key_1"]),
            needs_input_gradient=False,
        )
        if self.communicator is not None:
            ctx.part = numbers["first"], batch["x"].shape[0]
        output, pullback = self._run(ctx, params, batch["x"])
        values, pull_loss = self.loss.forward(ctx, batch["y"], output)
        sums = self._sums(ctx, params, batch, output, values)
        dy = pull_loss(_spread(batch["weight"], values) / self._divisor(ctx.xp, batch, values))
        _, grads = pullback(dy if loss_scale is None else dy * loss_scale)
        if self.dtype in precision.HALF:
            factor = 1.0 if loss_scale is None else 1.0 / loss_scale
            grads = self.backend.map_kernel(precision.unscale, self.backend.pack(grads), factor)
        return self._add_penalty_gradients(params, grads, batch), ctx.state, sums

    def _loss_and_gradients(self, weights, batch):
        """Return the loss of a batch and its gradients, for a network without masks and moving averages."""
        numbers = {"key_0": 0, "key_1": 0}
        grads, _, sums = self.gradients(weights["params"], weights["state"], batch, numbers)
        return {"loss": sums["loss"]["total"] / batch["x"].shape[0], "gradients": grads}

    def _output(self, weights, x):
        """Return the network's output, before the activation that `fuse` took out of it (`head`)."""
        return self._run(Context(self.backend, state=weights["state"]), weights["params"], x)[0]

    def _run(self, ctx, params, x):
        if self.dtype in precision.HALF:
            return precision.run_half(self.dtype, self.network, ctx, params, x)
        return run(self.network, ctx, params, x)

    def _evaluate_row(self, carry, row, data):
        return carry, self._evaluate_step(data["weights"], self._take(row, data["samples"]))

    def _evaluate_step(self, weights, batch):
        ctx = Context(self.backend, state=weights["state"])
        output, _ = self._run(ctx, weights["params"], batch["x"])
        values, _ = self.loss.forward(ctx, batch["y"], output)
        return self._sums(ctx, weights["params"], batch, output, values)

    def _take(self, row, data):
        """Return the batch that a row asks for; without an index the data is the batch."""
        if "index" not in row:
            return data
        return {name: self.backend.gather(array, row["index"]) for name, array in data.items()}

    def _sums(self, ctx, params, batch, output, values) -> dict:
        """Return the sums of loss and metrics of a batch. The loss counts by samples."""
        xp, count = ctx.xp, batch["x"].shape[0]
        loss = xp.sum(values * _spread(batch["weight"], values)) / self._divisor(xp, batch, values)
        shared: Any = 0.0
        for path, penalty in self.penalties:
            term = penalty.penalty(xp, tree.at(params, path))
            if penalty.per_sample:
                shared = shared + term
            else:
                loss = loss + term
        if any(penalty.per_sample for _, penalty in self.penalties):
            loss = loss + shared / self._divisor(xp, batch)
        for term in ctx.penalties:
            loss = loss + term
        sums = {"loss": {"total": loss * count}}
        predicted = self.head.forward(xp, output)
        for metric, weighted in self.metrics:
            weight = batch["weight"] if weighted else xp.ones_like(batch["weight"])
            sums[metric.name] = metric.update(ctx, batch["y"], predicted, weight)
        return sums

    def _divisor(self, xp, batch, values=None):
        """Return what the sum of a batch's values, by default one a sample, is divided by."""
        count = batch["x"].shape[0]
        if not self.loss.weighted_mean:
            return count if values is None else values_count(values)
        total = xp.sum(batch["weight"])
        return total if values is None or values.ndim == 1 else total * (values_count(values) // count)

    def _add_penalty_gradients(self, params, grads, batch):
        xp = self.backend.xp
        for path, penalty in self.penalties:
            share = {"share": 1.0 / self._divisor(xp, batch)} if penalty.per_sample else {}
            gradient = penalty.gradient(xp, tree.at(params, path), **share)
            grads = _with_added(grads, path, gradient)
        return grads


def values_count(values) -> int:
    """Return the number of elements of an array, from its shape alone."""
    count = 1
    for length in values.shape:
        count *= length
    return count


def _spread(weight, values):
    """Return one weight a sample in a shape that multiplies values of (batch, ...)."""
    return weight[(slice(None), *(None,) * (values.ndim - 1))] if values.ndim > 1 else weight


def _with_added(grads, path, gradient):
    """Return `grads` with `gradient` added at `path`, without writing into it."""
    if not path:
        return grads + gradient
    return {**grads, path[0]: _with_added(grads[path[0]], path[1:], gradient)}


def weight_penalties(layer: Layer, path=()):
    """Yield (path of a weight, its regularizer) of a layer and all inside it."""
    for name, penalty in layer.regularizers().items():
        yield (*path, name), penalty
    for key, inner in layer.sublayers().items():
        yield from weight_penalties(inner, (*path, key))


# Layers whose last operation is their activation, and nothing else looks at it.
_ENDS_IN_ACTIVATION = (layers.Dense, layers.Activation, layers.Softmax, layers.Sigmoid)


def fuse(network: Layer, loss: Loss) -> tuple[Layer, Loss, activations.Activation]:
    """Take a final softmax or sigmoid out of the network and into a cross-entropy that follows it.

    Returns the network, the loss, and the activation that turns the network's output into the
    model's (linear if nothing was taken out). Only what nnx itself defines is taken apart: a class
    of one's own may mean something else.
    """
    nothing = network, loss, activations.linear
    if not isinstance(network, layers.Chain) or not network.layers or loss.from_logits or not is_own(loss):
        return nothing
    last = network.layers[-1]
    if type(last) not in _ENDS_IN_ACTIVATION or getattr(last, "activity_regularizer", None) is not None:
        return nothing
    activation = vars(last)["activation"]
    fused = loss.fused_activation
    if fused is None or type(activation) is not type(activations.get(fused)):
        return nothing
    return network.with_last(last.without_activation()), loss.with_logits(), activation
