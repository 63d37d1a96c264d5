"""Models to export, which together have every layer, and batches for them."""

import copy

import numpy as np

import nnx
from nnx import layers, tree
from nnx.compare.trial import _features
from nnx.registry import REGISTRIES

IMAGE, SEQUENCE = (7, 6, 4), (5, 3)


class Shifted(layers.Layer):
    """A layer of one's own: x and its mean, one above the other, in calls that nnx's layers do not make."""

    def forward(self, ctx, params, x):
        xp = ctx.xp
        mean = xp.expand_dims(xp.sum(x, axis=-1) / x.shape[-1], axis=-1)
        top = xp.stack([xp.squeeze(mean, axis=-1), -x[:, 0]], axis=1)
        top = xp.matrix_transpose(top[..., None])[:, 0]
        kept = xp.where((x > 0) & ~(x > 1), xp.clip(x, -0.5, 0.5), 1 / (abs(x) + 2) ** 2)
        last = xp.astype(xp.argmax(x, axis=-1), x.dtype)
        return xp.concat([kept, x[:, ::-2], top, last[:, None], x // 0.3, xp.square(x[..., -1:])], axis=1)

    def out_shape(self, in_shape):
        (n,) = in_shape
        return (2 * n + (n + 1) // 2 + 4,)


class Decayed:
    """One step of `FromTheEnd`."""

    join = (1, 2)

    def arguments(self, backend, fixed, carry, x):
        return (*carry, *x, *fixed)

    def __call__(self, xp, total, x, factor):
        return (total * factor + x, x, x * x)


DECAYED = Decayed()


class FromTheEnd(layers.Layer):
    """A recurrence of one's own, read from the end: (batch, time) -> (time, batch, 3), with the batch put first."""

    def forward(self, ctx, params, x):
        rows = ctx.xp.permute_dims(x, (1, 0))[:, :, None]
        totals, pairs = ctx.backend.scan(
            DECAYED, (rows[0, ...] * 0.0,), (rows,), (rows[1, ...],), reverse=True
        )
        return ctx.xp.permute_dims(ctx.xp.concat([totals, pairs], axis=-1), (1, 0, 2))

    def out_shape(self, in_shape):
        return (*in_shape, 3)


class First(layers.Layer):
    """The first of several arrays."""

    def forward(self, ctx, params, x):
        return x["a"] * 2

    def out_shape(self, in_shape):
        return in_shape["a"]


def chain(shape, *made, **settings):
    return lambda: nnx.Sequential([layers.Input(shape), *copy.deepcopy(made)], seed=0, **settings)


def classes(name):
    return getattr(layers, name)


# Each is made when it is used.
MODELS = {
    "dense": chain((4,), layers.Dense(5, "relu"), layers.Dense(3, use_bias=False)),
    "dense over time": chain(SEQUENCE, layers.Dense(5, "tanh")),
    **{name: chain((4,), layers.Activation(name)) for name in REGISTRIES["activation"].names()},
    **{
        name: chain((4,), classes(name)())
        for name in (
            "ELU", "GELU", "HardSigmoid", "LeakyReLU", "Linear", "LogSoftmax", "Mish", "ReLU", "SELU", "SiLU",
            "Sigmoid", "Softmax", "Softplus", "Softsign", "Tanh", "PReLU",
            "RMSNormalization", "LayerNormalization", "BatchNormalization",
        )
    },
    "dropout": chain(
        IMAGE, layers.SpatialDropout2D(0.5), layers.Reshape((42, 4)), layers.SpatialDropout1D(0.5), layers.Dropout(0.5),
        layers.AlphaDropout(0.5), layers.GaussianDropout(0.5), layers.GaussianNoise(0.5),
    ),
    "batch normalization of channels": chain(IMAGE, layers.BatchNormalization(axis=1)),
    "group normalization": chain(IMAGE, layers.GroupNormalization(2)),
    "layer normalization of two axes": chain(IMAGE, layers.LayerNormalization(axis=(2, 3))),
    "shapes": chain(
        IMAGE, layers.Permute((3, 1, 2)), layers.Reshape((4, -1)), layers.Flatten(), layers.RepeatVector(3)
    ),
    "conv1d, causal": chain(SEQUENCE, layers.Conv1D(2, 3, padding="causal", dilation_rate=2)),
    "conv1d, strides": chain(SEQUENCE, layers.Conv1D(2, 2, 2, padding=(2, 1), activation="relu")),
    "conv2d": chain(IMAGE, layers.Conv2D(3, (2, 3), activation="relu")),
    "conv2d, 1x1": chain(IMAGE, layers.Conv2D(3, 1)),
    "conv2d, same": chain(IMAGE, layers.Conv2D(3, (3, 2), strides=2, padding="same", use_bias=False)),
    "conv2d, pairs": chain(IMAGE, layers.Conv2D(3, 3, (1, 2), padding=((0, 1), (3, 2)), dilation_rate=(2, 1))),
    "conv2d, groups": chain(IMAGE, layers.Conv2D(4, 3, groups=2, padding="same")),
    "conv2d, twice": chain(IMAGE, layers.Conv2D(3, 3, activation="relu"), layers.Conv2D(2, 2)),
    "depthwise": chain(IMAGE, layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, activation="relu")),
    "separable": chain(IMAGE, layers.SeparableConv2D(3, 2, dilation_rate=2, depth_multiplier=2)),
    **{
        f"transposed, {padding}, {size}, {strides}, {extra}, {dilation}": chain(
            IMAGE, layers.Conv2DTranspose(3, size, strides, padding, extra, dilation_rate=dilation)
        )
        for padding in ("valid", "same")
        for size, strides, extra, dilation in ((3, 2, None, 1), (2, 3, None, 1), ((2, 3), 2, 1, 1), (2, 1, None, 2))
    },
    **{
        f"{name}{rank}D, {settings}": chain(IMAGE if rank == 2 else SEQUENCE, classes(f"{name}{rank}D")(**settings))
        for name in ("MaxPooling", "AveragePooling")
        for rank in (1, 2)
        for settings in ({"pool_size": 2}, {"pool_size": 3, "strides": 2, "padding": "same"}, {"pool_size": 1})
    },
    **{
        f"{name}{rank}D, {keepdims}": chain(
            IMAGE if rank == 2 else SEQUENCE, classes(f"{name}{rank}D")(keepdims=keepdims)
        )
        for name in ("GlobalMaxPooling", "GlobalAveragePooling")
        for rank in (1, 2)
        for keepdims in (False, True)
    },
    "sizes of images": chain(
        IMAGE, layers.UpSampling2D((2, 3)), layers.ZeroPadding2D(((1, 2), (0, 3))), layers.Cropping2D((3, 4))
    ),
    "sizes of sequences": chain(SEQUENCE, layers.ZeroPadding1D((2, 1)), layers.Cropping1D((1, 2))),
    "embedding": chain((5,), layers.Embedding(9, 4), layers.Flatten()),
    "embedding, masked": chain((5,), layers.Embedding(4, 3, mask_zero=True), layers.LSTM(2)),
    "embedding behind a function": chain(
        (5,), layers.Lambda(lambda xp, x: xp.abs(x) * 2), layers.Embedding(9, 4), layers.GlobalAveragePooling1D()
    ),
    "residual": chain((4,), layers.Residual([layers.Dense(4, "relu"), layers.Dense(4)])),
    **{
        f"parallel, {merge}": chain(
            (4,), layers.Parallel(layers.Dense(3), [layers.Dense(3), layers.Softmax()], merge=merge)
        )
        for merge in ("concat", "add", "multiply", "average", "maximum", "minimum")
    },
    "chain": chain((4,), layers.Chain([layers.Dense(3), layers.Dense(2)])),
    "inputs, outputs": chain(
        {"numbers": (4,), "city": (2,)},
        layers.Inputs({"numbers": [], "city": [layers.Embedding(5, 3), layers.Flatten()]}),
        layers.Outputs({"price": layers.Dense(1), "as it was": [], "kind": layers.Dense(3, "softmax")}),
    ),
    "inputs, outputs in order": chain(
        ((4,), (3,)),
        layers.Inputs(layers.Dense(3), [], merge="add"),
        layers.Outputs(layers.Dense(2), layers.Dense(1)),
    ),
    "an input that does not count": chain(
        {"a": (4,), "b": (3,)}, layers.Inputs({"a": [], "b": layers.Dense(2)}, merge=None), First()
    ),
    "outputs in outputs": chain(
        {"b": (4,), "a": (4,)},
        layers.Inputs({"b": layers.Dense(2), "a": []}),
        layers.Outputs({"y": layers.Outputs({"q": layers.Dense(2), "p": []}), "b": layers.Outputs([], layers.ReLU())}),
    ),
    **{
        f"{name}, {settings}": chain(SEQUENCE, classes(name)(3, **settings))
        for name in ("SimpleRNN", "LSTM", "GRU")
        for settings in (
            {},
            {"return_sequences": True, "go_backwards": True},
            {"use_bias": False, "activation": "gelu", "dropout": 0.2, "recurrent_dropout": 0.2},
        )
    },
    "GRU, reset first": chain(SEQUENCE, layers.GRU(3, reset_after=False)),
    "states": chain(SEQUENCE, layers.LSTM(3, return_state=True)),
    "states given": chain((SEQUENCE, (3,), (3,)), layers.LSTM(3, return_sequences=True)),
    "masked": chain(
        SEQUENCE, layers.Lambda(lambda xp, x: xp.where(x > 0, x, 0.0)), layers.Masking(),
        layers.SimpleRNN(2, return_sequences=True), layers.GlobalAveragePooling1D(),
    ),
    "both ways": chain(
        SEQUENCE, layers.Masking(), layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.Bidirectional(layers.GRU(2), "mul"),
    ),
    "over time": chain((3, *IMAGE), layers.TimeDistributed([layers.Conv2D(2, 3), layers.Flatten()])),
    "attention": chain(SEQUENCE, layers.MultiHeadAttention(2, 4, rotary=True, use_causal_mask=True, block_size=2)),
    "attention, masked": chain((5,), layers.Embedding(3, 4, mask_zero=True), layers.MultiHeadAttention(2, 3)),
    "cross attention": chain(
        ((5, 4), (6, 3)), layers.Inputs([], layers.Dense(4), merge=None), layers.MultiHeadAttention(2, 3)
    ),
    "transformer": chain(
        (5, 4), layers.SinusoidalPositions(), layers.PositionEmbedding(7), layers.RotaryPositions(),
        layers.TransformerBlock(2, 6, activation="gelu", norm_first=True), layers.TransformerBlock(2, 6),
    ),
    "one's own": chain((4,), layers.Dense(6), Shifted(), layers.Dense(2)),
    "one's own recurrence": chain((4,), FromTheEnd()),
    "a lambda": chain((4,), layers.Lambda(lambda x: (x * 2 - 1) / 3)),
}  # fmt: skip


def build(name: str) -> nnx.Model:
    """Return the model of this name, all of whose weights are random numbers."""
    model, rng = MODELS[name](), np.random.default_rng(1)
    model.set_weights(
        [rng.uniform(0.2, 1.0, w.shape) * rng.choice([-1, 1]) ** (w.ndim > 1) for w in model.get_weights()]
    )
    return model


def samples(model, count: int):
    """Return what the model predicts of."""
    x = _features(np.random.default_rng(count), count, model.input_shape, model.network.categories)
    x = tree.map(lambda a: a.astype(np.int32 if a.dtype.kind == "i" else model.weight_dtype), x)
    return x


def named(value, name: str) -> dict:
    """Return the arrays of a dict or tuple by the names that an exported model gives them."""
    if not isinstance(value, (dict, tuple)):
        return {name: value}
    is_top = name in ("input", "output")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, part in items:
        own = f"{name}_{key}" if isinstance(value, tuple) else str(key) if is_top else f"{name}/{key}"
        found |= named(part, own)
    return found


def kinds(layer):
    """Yield the classes of a layer and of all inside it."""
    yield type(layer)
    for inner in layer.sublayers().values():
        yield from kinds(inner)
