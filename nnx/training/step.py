"""The training step as a pure function.

    step(carry, batch, numbers) -> (carry, sums)

The carry contains everything that changes: parameters, state, optimizer slots. The sums are those of the
loss and the metrics: they are added up on the device, and the host reads them once an epoch. `numbers`
are computed on the host for each step: the optimizer's scalars and the random key.
"""

from typing import Any, TypeGuard

from nnx import activations, layers, tree
from nnx.backend import Backend
from nnx.context import Context
from nnx.errors import raised_by
from nnx.layers.base import Layer
from nnx.losses import Loss
from nnx.losses.outputs import OutputLosses
from nnx.registry import is_builtin
from nnx.training import mixed_precision
from nnx.training.mixed_precision import run_network
from nnx.training.purity import Guard


class Steps:
    """The step functions of a network with loss, metrics and optimizer, for a backend.

    They contain no arrays, so models with equal settings share them and their compiled programs. A `guard`
    watches those that run user code.
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
        guard: Guard | None = None,
    ):
        self.backend, self.metrics, self.optimizer, self.dtype = backend, metrics, optimizer, dtype
        self.communicator = communicator
        self.network, self.loss, self.head = fuse(network, loss)
        self.links = _links(loss)
        self.penalties = list(weight_penalties(network))
        self.guard = guard
        run = backend if guard is None else guard
        self.train = run.repeat(self._train_row)
        self.evaluate = run.repeat(self._evaluate_row)
        self.output = run.compile(self._output)
        self.loss_and_gradients = run.compile(self._loss_and_gradients)

    def _train_row(self, carry, row, data):
        return self._train_step(carry, data["samples"], row)

    def _train_step(self, carry, batch, numbers):
        scalars = {name[5:]: value for name, value in numbers.items() if name.startswith("rate_")}
        xp, scale, kept = self.backend.xp, carry.get("scale"), {}
        factor = None if scale is None else scale["factor"]
        grads, state, sums = self.gradients(carry["params"], carry["state"], batch, numbers, factor)
        if self.communicator is not None:
            reduced = self.backend.all_reduce(self.communicator, [grads, state], numbers["share"])
            grads, state = reduced[0], tree.copy(reduced[1])
        if scale is not None:  # of float16, whose gradients may overflow
            scalars["finite"] = finite = mixed_precision.all_finite(xp, tree.buffers(grads))
            state = mixed_precision.keep_if(xp, finite, state, carry["state"])
            kept = {"scale": mixed_precision.next_scale(xp, scale, finite)}
        params, slots = self.optimizer.update(grads, carry["slots"], carry["params"], scalars, self.backend)
        return {"params": params, "state": state, "slots": slots, **kept}, sums

    def gradients(self, params, state, batch, numbers, loss_scale=None, observer=None) -> tuple:
        """Return the gradients of the weights, the new state, and the sums of loss and metrics.

        `observer` sees each layer and the loss; see `Context.observer`.
        """
        key = numbers["key_0"], numbers["key_1"]
        ctx = Context(self.backend, training=True, state=state, key=key, needs_input_gradient=False)
        ctx.observer = observer
        if self.communicator is not None:
            ctx.part = numbers["first"], batch["weight"].shape[0]
        output, pullback = as_columns(*run_network(self.dtype, self.network, ctx, params, batch["x"]))
        loss, pull_loss, parts = self._loss(ctx, batch, output)
        sums = self._sums(ctx, params, batch, output, loss, parts)
        dy = self._loss_gradient(pull_loss)
        if loss_scale is not None:
            dy = tree.map(lambda part: part * loss_scale, dy)
        _, grads = pullback(dy)
        if self.dtype in mixed_precision.HALF:
            scalars = {"factor": 1.0 if loss_scale is None else 1.0 / loss_scale}
            grads = self.backend.map(mixed_precision.unscale, self.backend.pack(grads), scalars=scalars)
        return self._add_penalty_gradients(params, grads, batch["weight"]), ctx.state, sums

    def _loss(self, ctx, batch, output) -> tuple:
        try:
            return self.loss.total(ctx, batch["y"], output, batch["weight"], ctx.mask)
        except Exception as error:
            raised_by(error, "loss", getattr(self.loss, "function", self.loss))
            raise

    def _loss_gradient(self, pull_loss) -> Any:
        try:
            return pull_loss()
        except Exception as error:
            raised_by(error, "loss", getattr(self.loss, "function", self.loss), ", in its pullback")
            raise

    def _loss_and_gradients(self, weights, batch):
        """Return the loss of a batch and its gradients, for a network without masks and moving averages."""
        numbers = {"key_0": 0, "key_1": 0}
        grads, _, sums = self.gradients(weights["params"], weights["state"], batch, numbers)
        return {"loss": sums["loss"]["loss"] / batch["weight"].shape[0], "gradients": grads}

    def _output(self, weights, x):
        """Return the network's output, before the activation that `fuse` took out of it (`head`)."""
        return run_network(
            self.dtype, self.network, Context(self.backend, state=weights["state"]), weights["params"], x
        )[0]

    def _evaluate_row(self, carry, row, data):
        return carry, self._evaluate_step(data["weights"], data["samples"])

    def _evaluate_step(self, weights, batch):
        ctx = Context(self.backend, state=weights["state"])
        output, _ = as_columns(*run_network(self.dtype, self.network, ctx, weights["params"], batch["x"]))
        loss, _, parts = self._loss(ctx, batch, output)
        return self._sums(ctx, weights["params"], batch, output, loss, parts)

    def _sums(self, ctx, params, batch, output, loss, parts) -> dict:
        """Return the sums of loss and metrics of a batch.

        The loss counts by samples, and under a mask by the time steps that it counts.
        """
        count = batch["weight"].shape[0]
        values = parts if isinstance(self.loss, OutputLosses) else loss
        masked = self.loss.steps_counted(ctx.xp, output, ctx.mask, values)
        loss = loss + self._penalties(ctx.xp, params, batch["weight"])
        for term in ctx.penalties:
            loss = loss + term
        sums = {"loss": {name: part * count for name, part in {**parts, "loss": loss}.items()}}
        if masked:  # their mean over an epoch is over time steps
            sums["masked"] = {
                name: {
                    "total": value * steps,
                    "steps": steps,
                    "off": factor * value * count,
                    "weighted": factor * value * steps,
                }
                for name, (factor, value, steps) in masked.items()
            }
        model_output = _apply_head(ctx.xp, self.head, output)
        probabilities = None
        for metric, weighted in self.metrics:
            predicted = model_output
            if self.links is not None and metric.takes_probabilities(model_output):
                if probabilities is None:
                    probabilities = _apply_links(ctx.xp, self.links, model_output)
                predicted = probabilities
            weight = batch["weight"] if weighted else ctx.xp.ones_like(batch["weight"])
            try:
                sums[metric.name] = metric.update_masked(ctx, batch["y"], predicted, weight, ctx.mask)
            except Exception as error:
                raised_by(error, "metric", metric)
                raise
        return sums

    def _penalties(self, xp, params, weight):
        """Return the sum of the penalties on the weights of the network."""
        total: Any = 0.0
        shared: Any = 0.0
        for path, penalty in self.penalties:
            term = penalty.penalty(xp, tree.at(params, path))
            total, shared = (total, shared + term) if penalty.per_sample else (total + term, shared)
        if any(penalty.per_sample for _, penalty in self.penalties):
            total = total + shared / self.loss.divisor(xp, weight)
        return total

    def _add_penalty_gradients(self, params, grads, weight):
        xp = self.backend.xp
        for path, penalty in self.penalties:
            share = {"share": 1.0 / self.loss.divisor(xp, weight)} if penalty.per_sample else {}
            gradient = penalty.gradient(xp, tree.at(params, path), **share)
            grads = _with_added(grads, path, gradient)
        return grads


def as_columns(output, pullback) -> tuple:
    """Return outputs of shape (batch,) as (batch, 1), and the pullback from there.

    Losses and metrics average over the last axis, which must not be that of the samples.
    """
    if all(array.ndim > 1 for array in tree.leaves(output)):
        return output, pullback

    def pullback_of_columns(dy):
        return pullback(tree.map(lambda part, array: part[:, 0] if array.ndim == 1 else part, dy, output))

    return tree.map(lambda array: array[:, None] if array.ndim == 1 else array, output), pullback_of_columns


def _with_added(grads, path, gradient):
    """Return a copy of `grads` with `gradient` added at `path`."""
    if not path:
        return grads + gradient
    return {**grads, path[0]: _with_added(grads[path[0]], path[1:], gradient)}


def weight_penalties(layer: Layer, path=()):
    """Yield (path of a weight, its regularizer) of a layer and all inside it."""
    for name, penalty in layer.regularizers().items():
        yield (*path, *name.split("/")), penalty
    for key, inner in layer.sublayers().items():
        yield from weight_penalties(inner, (*path, key))


# Layers whose last operation is their activation.
_ENDS_IN_ACTIVATION = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
    layers.Activation,
    layers.Softmax,
    layers.Sigmoid,
)


def fuse(network: Layer, loss: Loss) -> tuple[Layer, Loss, Any]:
    """Return network, loss and head, with a final softmax or sigmoid moved from the network into the loss.

    A probability that is rounded to 0 or 1 has no gradient, but its logit has one. The activation may be
    inside chains and TimeDistributed, and before layers that only rearrange values. If a loss still gets
    probabilities, its gradient is not zero where they are clipped.

    The head is the activation that converts the network's output into the model's, or None if nothing was
    moved; for several outputs, a dict or a tuple of heads. Only classes of nnx are changed: others may
    behave differently.
    """
    if isinstance(loss, OutputLosses):
        if type(network) is layers.Outputs:
            return _fuse_each(network, loss)
        if _is_chain(network) and network.layers:
            last, loss, head = fuse(network.layers[-1], loss)
            return network.with_layer(-1, last), loss, head
    if loss.from_logits or not is_builtin(loss):
        return network, loss, None
    activation = None if loss.fused_activation is None else activations.get(loss.fused_activation)
    changed = None if activation is None else _without_last(network, activation)
    return (network, loss.unclipped(), None) if changed is None else (changed, loss.with_logits(), activation)


def _without_last(layer: Layer, activation) -> Layer | None:
    """Return a layer without a given activation at its end, or None if it ends differently."""
    if type(layer) in _ENDS_IN_ACTIVATION:
        matches = type(vars(layer)["activation"]) is type(activation)
        penalised = getattr(layer, "activity_regularizer", None) is not None
        return layer.without_activation() if matches and not penalised else None
    if type(layer) is layers.TimeDistributed:
        inner = _without_last(layer.layer, activation)
        return None if inner is None else layer.with_layer(inner)
    if type(layer) is layers.Parallel and layer.merge == "concat" and activation.elementwise:
        branches = [_without_last(branch, activation) for branch in layer.layers]
        return None if None in branches else layer.with_layers(branches)
    if _is_chain(layer):
        for index in reversed(range(len(layer.layers))):
            changed = _without_last(layer.layers[index], activation)
            if changed is not None:
                return layer.with_layer(index, changed)
            if not _commutes(layer.layers[index], activation):
                return None
    return None


def _commutes(layer: Layer, activation) -> bool:
    """Whether an activation has the same result before and after a layer."""
    if type(layer) is layers.TimeDistributed:
        return _commutes(layer.layer, activation)
    if _is_chain(layer):
        return all(_commutes(inner, activation) for inner in layer.layers)
    if not is_builtin(layer):
        return False
    if isinstance(layer, layers.Dropout):
        return layer.rate == 0
    if isinstance(layer, (layers.Activation, layers.Linear)):
        return isinstance(layer.activation, activations.Linear)
    if isinstance(layer, layers.Permute) and not activation.elementwise:
        return layer.dims[-1] == len(layer.dims)
    # After Reshape or Flatten a softmax may sum over other values.
    keeps_rows = isinstance(layer, (layers.Input, layers.Permute, layers.RepeatVector))
    return layer.rearranges and (activation.elementwise or keeps_rows)


def _is_chain(layer: Layer) -> TypeGuard[layers.Chain]:
    """Whether a layer only runs others one after another."""
    return isinstance(layer, layers.Chain) and type(layer).forward is layers.Chain.forward


def _fuse_each(outputs: layers.Outputs, loss: OutputLosses) -> tuple:
    """Return `outputs`, losses and heads, with each branch fused with its loss; see `fuse`."""
    branches, each, heads = [], {}, []
    for key, branch in zip(outputs.places, outputs.layers, strict=True):
        head = None
        if key in loss.each:
            branch, each[key], head = fuse(branch, loss.each[key])
        branches.append(branch)
        heads.append(head)
    return outputs.with_layers(branches), loss.with_each(each), outputs.together(heads)


def _links(loss: Loss) -> Any:
    """Return the sigmoid or softmax that turns logits into probabilities for metrics, or None.

    For several outputs, a dict by output name.
    """
    if isinstance(loss, OutputLosses):
        links = {key: _links(each) for key, each in loss.each.items()}
        return {key: link for key, link in links.items() if link is not None} or None
    takes_logits = loss.from_logits and loss.fused_activation is not None
    return activations.get(loss.fused_activation) if takes_logits else None


def _apply_links(xp, links, output):
    """Return the probabilities of the model's outputs; see `_links`."""
    if not isinstance(links, dict):
        return links.forward(xp, output)
    keys = output if isinstance(output, dict) else range(len(output))
    p = {key: links[key].forward(xp, output[key]) if key in links else output[key] for key in keys}
    return p if isinstance(output, dict) else tuple(p.values())


def _apply_head(xp, head, output):
    """Return the model's output from the network's; see `fuse`."""
    if head is None:
        return output
    if isinstance(head, dict):
        return {key: _apply_head(xp, head[key], output[key]) for key in output}
    if isinstance(head, tuple):
        return tuple(_apply_head(xp, *pair) for pair in zip(head, output, strict=True))
    return head.forward(xp, output)
