"""Losses of classes and probabilities: cross-entropies, their focal forms, hinge and divergence."""

from nnx import activations
from nnx.arguments import expect_range
from nnx.data.targets import check_classes, check_one_hot, check_probabilities
from nnx.losses.base import EPSILON, Loss, Pointwise, as_function, register


def _signs(xp, target):
    """Return labels of -1 and 1; 0 is read as -1."""
    return xp.where(target == 0, -1.0, target)


@register("hinge")
class Hinge(Pointwise):
    """mean max(1 - target * output, 0), for labels -1 (or 0) and 1."""

    power = 1

    def value(self, xp, target, output):
        return xp.maximum(1.0 - _signs(xp, target) * output, 0.0) ** self.power

    def slope(self, xp, target, output):
        signs = _signs(xp, target)
        margin = xp.maximum(1.0 - signs * output, 0.0)
        return -signs * (xp.astype(margin > 0, output.dtype) if self.power == 1 else 2 * margin)

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape, lowest=-1)


@register("squared_hinge")
class SquaredHinge(Hinge):
    """mean max(1 - target * output, 0)**2, for labels -1 (or 0) and 1."""

    power = 2


@register("kl_divergence", "kullback_leibler_divergence", "kld")
class KLDivergence(Loss):
    """sum target * log(target / output), of two distributions over the last axis."""

    def forward(self, ctx, target, output):
        xp = ctx.xp
        target = clip(xp, target, EPSILON, 1.0)
        kept = clip(xp, output, EPSILON, 1.0)

        def pullback(dvalues):
            return -target * self._slope_of_log(xp, output, 1.0) * dvalues[..., None]

        return xp.sum(target * xp.log(target / kept), axis=-1), pullback

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape)


class _CrossEntropy(Loss):
    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0):
        expect_range(self, at_least=0, at_most=1, label_smoothing=label_smoothing)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing


@register("binary_crossentropy", "bce")
class BinaryCrossentropy(_CrossEntropy):
    """mean -(target * log(output) + (1 - target) * log(1 - output)), of probabilities or logits."""

    fused_activation = "sigmoid"

    def forward(self, ctx, target, output):
        xp = ctx.xp
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        values, slope = self._elements(xp, target, output)

        def pullback(dvalues):
            return slope() * (dvalues / output.shape[-1])[..., None]

        return xp.mean(values, axis=-1), pullback

    def _elements(self, xp, target, output):
        """Return the loss of each element, and a function that returns its derivative."""
        if self.from_logits:
            values = xp.maximum(output, 0.0) - output * target + xp.log1p(xp.exp(-xp.abs(output)))
            return values, lambda: activations.sigmoid.forward(xp, output) - target
        p = clip(xp, output, EPSILON, 1 - EPSILON)
        values = -target * xp.log(p) - (1.0 - target) * xp.log1p(-p)

        def slope():
            right, wrong = self._slope_of_log(xp, output), self._slope_of_log(xp, 1.0 - output)
            return (1.0 - target) * wrong - target * right

        return values, slope

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape)


@register("binary_focal_crossentropy")
class BinaryFocalCrossentropy(BinaryCrossentropy):
    """Binary cross-entropy times (1 - p)**gamma, p the probability of the true label.

    With `apply_class_balancing` also times alpha where the label is 1, 1 - alpha where it is 0.
    Source: Lin et al., "Focal Loss", 2017 (arXiv:1708.02002).
    """

    def __init__(
        self, apply_class_balancing: bool = False, alpha: float = 0.25, gamma: float = 2.0, **settings
    ):
        super().__init__(**settings)
        self.apply_class_balancing = apply_class_balancing
        expect_range(self, at_least=0, alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma

    def _elements(self, xp, target, output):
        entropy, entropy_slope = super()._elements(xp, target, output)
        p = activations.sigmoid.forward(xp, output) if self.from_logits else output
        wrong = xp.maximum(1.0 - (target * p + (1.0 - target) * (1.0 - p)), 0.0)
        weight = 1.0
        if self.apply_class_balancing:
            weight = target * self.alpha + (1.0 - target) * (1 - self.alpha)

        def slope():
            dwrong = (1.0 - 2.0 * target) * (p * (1.0 - p) if self.from_logits else 1.0)
            dfactor = _power_slope(xp, wrong, self.gamma) * dwrong
            return weight * (dfactor * entropy + wrong**self.gamma * entropy_slope())

        return weight * wrong**self.gamma * entropy, slope


@register("categorical_crossentropy", "cce")
class CategoricalCrossentropy(_CrossEntropy):
    """-sum target * log(output) over classes, of probabilities or logits; target one-hot.

    Probabilities are first divided by their sum, as in Keras.
    """

    fused_activation = "softmax"

    def forward(self, ctx, target, output):
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / output.shape[-1]
        logs, pull_logs = self._logs(ctx.xp, output)
        values, slope = self._classes(ctx.xp, target, logs)

        def pullback(dvalues):
            return pull_logs(slope() * dvalues[..., None])

        return values, pullback

    def _logs(self, xp, output):
        """Return the logarithms of the probabilities, and the pullback."""
        if self.from_logits:
            logs = activations.log_softmax.forward(xp, output)
            return logs, lambda dlogs: activations.log_softmax.gradient(xp, dlogs, logs)
        total = xp.sum(output, axis=-1, keepdims=True)
        share = output / total
        kept = clip(xp, share, EPSILON, 1 - EPSILON)

        def pullback(dlogs):
            dshare = dlogs * self._slope_of_log(xp, share)
            return (dshare - xp.sum(dshare * share, axis=-1, keepdims=True)) / total

        return xp.log(kept), pullback

    def _classes(self, xp, target, logs):
        """Return the loss of each sample, and a function that returns its gradient with respect to the logs."""
        return -xp.sum(target * logs, axis=-1), lambda: -target

    def check_target(self, y, out_shape):
        return check_one_hot(y, out_shape)


@register("categorical_focal_crossentropy")
class CategoricalFocalCrossentropy(CategoricalCrossentropy):
    """Categorical cross-entropy with each class's term times alpha * (1 - p)**gamma.

    Source: Lin et al., "Focal Loss", 2017 (arXiv:1708.02002).
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, **settings):
        super().__init__(**settings)
        expect_range(self, at_least=0, alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma

    def _classes(self, xp, target, logs):
        p = xp.exp(logs)
        wrong = xp.maximum(1.0 - p, 0.0)
        scaled = self.alpha * target

        def slope():
            return scaled * (_power_slope(xp, wrong, self.gamma) * p * logs - wrong**self.gamma)

        return -xp.sum(scaled * wrong**self.gamma * logs, axis=-1), slope


@register("sparse_categorical_crossentropy", "scce")
class SparseCategoricalCrossentropy(CategoricalCrossentropy):
    """Categorical cross-entropy of class indices: target (batch, ...), whole numbers from 0.

    Examples
    --------
    >>> import nnx
    >>> loss = nnx.losses.SparseCategoricalCrossentropy()
    >>> round(float(loss([1], [[0.25, 0.75]])), 4)
    0.2877
    """

    def __init__(self, from_logits: bool = False):
        super().__init__(from_logits)

    def forward(self, ctx, target, output):
        classes = ctx.arange(output.shape[-1], "int32")
        one_hot = ctx.xp.astype(target[..., None] == classes, output.dtype)
        return super().forward(ctx, one_hot, output)

    def check_target(self, y, out_shape):
        return check_classes(y, out_shape)


def clip(xp, values, lowest, highest):
    return xp.minimum(xp.maximum(values, lowest), highest)


def _power_slope(xp, values, power):
    """Return the derivative of values**power, limited at 0, where it is infinite for powers below 1."""
    if power < 1:
        values = xp.maximum(values, EPSILON)
    return power * values ** (power - 1)


hinge = as_function(Hinge, "hinge")
squared_hinge = as_function(SquaredHinge, "squared_hinge")
kl_divergence = as_function(KLDivergence, "kl_divergence")
binary_crossentropy = as_function(BinaryCrossentropy, "binary_crossentropy")
binary_focal_crossentropy = as_function(BinaryFocalCrossentropy, "binary_focal_crossentropy")
categorical_crossentropy = as_function(CategoricalCrossentropy, "categorical_crossentropy")
categorical_focal_crossentropy = as_function(CategoricalFocalCrossentropy, "categorical_focal_crossentropy")
sparse_categorical_crossentropy = as_function(
    SparseCategoricalCrossentropy, "sparse_categorical_crossentropy"
)
