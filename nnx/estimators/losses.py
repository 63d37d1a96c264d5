"""scikit-learn's losses of a multilayer perceptron, and its L2 penalty.

Each is a negative log-likelihood, so its gradient with respect to the logits is prediction - target:

    squared_error   half the squared error; its mean over the outputs is reported
    poisson         half the Poisson deviance, of exp(output)
    log_loss        cross-entropy of softmax or sigmoid; sum over classes or labels

The loss of a batch is the weighted mean, and the penalty alpha / 2 * sum w**2 is divided by the
same sum of weights.
"""

import copy

from nnx import activations, regularizers
from nnx.losses import Loss
from nnx.registry import REGISTRIES, is_builtin
from nnx.regularizers import Regularizer

_register = REGISTRIES["loss"].register


class _Mean(Loss):
    """A loss whose value for a batch is the weighted mean, sum(weight * value) / sum(weight)."""

    def divisor(self, xp, weight):
        return xp.sum(weight)

    def total(self, ctx, target, output, weight, mask=None):
        values, pullback = self.run(ctx, target, output)
        share = weight / self.divisor(ctx.xp, weight)
        return ctx.xp.sum(values * share), lambda: pullback(share), {}


class _Likelihood(_Mean):
    """A loss whose gradient with respect to the logits is prediction - target for every output."""

    def values(self, xp, target, output):
        """Return the loss of each sample, and the prediction."""
        raise NotImplementedError

    def forward(self, ctx, target, output):
        values, prediction = self.values(ctx.xp, target, output)

        def pullback(dvalues):
            return (prediction - target) * dvalues[..., None]

        return values, pullback


@_register()
class HalfSquaredError(_Likelihood):
    """Mean over the outputs of (output - target)**2 / 2.

    The gradient is that of the sum over the outputs, as in scikit-learn.

    >>> float(HalfSquaredError()([[1.0]], [[3.0]]))
    2.0
    """

    def values(self, xp, target, output):
        return 0.5 * xp.mean((output - target) ** 2, axis=-1), output


@_register()
class HalfPoissonDeviance(_Likelihood):
    """Sum over the outputs of target * log(target / exp(output)) - target + exp(output)."""

    fused_activation = "exponential"

    def values(self, xp, target, output):
        prediction = xp.exp(output)
        entropy = target * xp.log(xp.where(target == 0, 1.0, target))
        return xp.sum(entropy - target * output - target + prediction, axis=-1), prediction


def _clipped(xp, p):
    """Return probabilities at least the dtype's epsilon away from 0 and 1, for their logarithm."""
    epsilon = float(xp.finfo(p.dtype).eps)
    return xp.minimum(xp.maximum(p, epsilon), 1.0 - epsilon)


@_register()
class LabelLogLoss(_Likelihood):
    """Sum over the labels of the cross-entropy of sigmoid(output), for targets of 0 and 1."""

    fused_activation = "sigmoid"

    def values(self, xp, target, output):
        # Logits would be more exact, but probabilities near 1 must round as scikit-learn's do.
        p = 1.0 / (1.0 + xp.exp(-output))
        return -xp.sum(xp.log(xp.abs(1.0 - target - _clipped(xp, p))), axis=-1), p


@_register()
class ClassLogLoss(_Likelihood):
    """Cross-entropy of softmax(output), for one-hot targets."""

    fused_activation = "softmax"

    def values(self, xp, target, output):
        p = activations.softmax.forward(xp, output)
        return -xp.log(_clipped(xp, xp.sum(target * p, axis=-1))), p


@_register()
class WeightedMean(_Mean):
    """The weighted mean of another loss over the samples of a batch."""

    def __init__(self, loss: Loss):
        self.loss = loss
        self.from_logits = loss.from_logits
        self.fused_activation = loss.fused_activation if is_builtin(loss) else None

    def with_logits(self):
        fused = copy.copy(self)
        fused.loss, fused.from_logits = self.loss.with_logits(), True
        return fused

    def unclipped(self):
        changed = copy.copy(self)
        changed.loss = self.loss.unclipped()
        return changed

    def forward(self, ctx, target, output):
        return self.loss.forward(ctx, target, output)

    def check_target(self, y, out_shape):
        return self.loss.check_target(y, out_shape)


@REGISTRIES["regularizer"].register()
class L2PerSample(Regularizer):
    """alpha / 2 * sum w**2, divided by the number of samples of the batch, or the sum of their weights."""

    per_sample = True

    def __init__(self, alpha: float = 0.0001):
        self.alpha = alpha

    def penalty(self, xp, w):
        flat = xp.reshape(w, (-1,))
        return 0.5 * self.alpha * xp.matmul(flat, flat)

    def gradient(self, xp, w, share=1.0):
        return (share * self.alpha) * w


def penalty(alpha: float) -> regularizers.Regularizer | None:
    """Return the L2 penalty of strength `alpha`; None for 0."""
    return L2PerSample(alpha) if alpha else None
