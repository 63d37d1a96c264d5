"""A small network with every kind of layer, and random batches that fit any model."""

import numpy as np

from nnx import activations, layers
from nnx.losses.outputs import OutputLosses
from nnx.models.sequential import Sequential
from nnx.random import generator
from nnx.registry import REGISTRIES
from nnx.shapes import is_single

TRIAL = 3  # a purpose of random numbers, like those of nnx.random


def trial_model(seed: int = 0) -> Sequential:
    """Return a compiled classifier of samples of shape (4, 6) with each layer and each activation.

    >>> trial_model().output_shape
    (3,)
    """
    every = [layers.Activation(name, name=name) for name in REGISTRIES["activation"].names()]
    model = Sequential(
        [
            layers.Input((4, 6)),
            layers.Parallel(
                layers.Linear(),
                [layers.Lambda(_as_ids), layers.Embedding(4, 2), layers.Reshape((4, 12))],
                name="categories",
            ),
            layers.SinusoidalPositions(),
            layers.PositionEmbedding(5, "uniform"),
            layers.RotaryPositions(),
            layers.TransformerBlock(2, 5, 4, dropout=0.1, use_causal_mask=True, rotary=True, block_size=3),
            layers.MultiHeadAttention(2, 3, output_shape=6),
            layers.Dense(8, "gelu", kernel_regularizer="l2", activity_regularizer="l1"),
            layers.Residual([layers.Dense(8, "tanh"), layers.Dropout(0.2)]),
            layers.Reshape((8, 4)),
            layers.LayerNormalization(),
            layers.GroupNormalization(2),
            layers.RMSNormalization(),
            layers.SpatialDropout1D(0.1),
            layers.GaussianNoise(0.1),
            layers.GaussianDropout(0.1),
            layers.AlphaDropout(0.1),
            layers.Outputs([], layers.Dense(4)),
            layers.Inputs([], layers.Linear(), merge="add"),
            layers.Parallel(layers.Dense(4, "relu"), [layers.Dense(4), layers.BatchNormalization()], merge="add"),
            layers.Parallel(*every),
            layers.Permute((2, 1)),
            layers.Reshape((8, 1, -1)),
            layers.SpatialDropout2D(0.1),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(16, activations.LeakyReLU(0.1), use_bias=False),
            layers.BatchNormalization(),
            layers.Reshape((4, 4, 1)),
            layers.Parallel(
                [layers.Conv2D(2, 2, padding="same"), layers.MaxPooling2D(), layers.UpSampling2D(),
                 layers.SeparableConv2D(2, 2), layers.GlobalAveragePooling2D()],
                [layers.ZeroPadding2D(), layers.DepthwiseConv2D(2, depth_multiplier=2), layers.Cropping2D(1),
                 layers.Conv2DTranspose(2, 2, 2), layers.AveragePooling2D(2, 1, "same"),
                 layers.GlobalMaxPooling2D()],
                [layers.Reshape((8, 2)), layers.Conv1D(2, 3, padding="causal"), layers.MaxPooling1D(),
                 layers.GlobalAveragePooling1D()],
                [layers.Reshape((8, 2)), layers.ZeroPadding1D(), layers.Cropping1D((0, 2)),
                 layers.AveragePooling1D(2), layers.GlobalMaxPooling1D()],
            ),
            layers.Reshape((4, 2)),
            layers.Masking(),
            layers.Parallel(
                [layers.Bidirectional(layers.LSTM(2, return_sequences=True, dropout=0.1)), layers.GRU(2)],
                [layers.TimeDistributed(layers.Dense(2)), layers.SimpleRNN(2, recurrent_dropout=0.1)],
            ),
            layers.RepeatVector(2),
            layers.PReLU("uniform"),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ],
        seed=seed,
    )  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _as_ids(xp, x):
    return 4 * xp.abs(xp.tanh(x)), xp.zeros_like


def draw_batches(model, count: int, batch_size: int, seed: int = 0) -> list[tuple]:
    """Return batches (x, y) of normal features, or category indices, and targets that suit the loss.

    The targets are the first kind that the loss accepts: real numbers of 0 or more, one-hot labels (0 or
    1 for one output), class indices.

    Raises
    ------
    ValueError
        If the loss accepts none of them.
    """
    rng, out_shape = generator(seed, TRIAL), model.output_shape
    batches = []
    for _ in range(count):
        x = _features(rng, batch_size, model.input_shape, model.network.categories)
        if isinstance(model.loss, OutputLosses):
            y = model.loss.map(
                lambda loss, shape: _accepted(loss, _targets(rng, batch_size, shape), shape), out_shape
            )
        else:
            y = _accepted(model.loss, _targets(rng, batch_size, out_shape), out_shape)
        batches.append((x, y))
    return batches


def _features(rng, batch_size, in_shape, categories):
    if isinstance(in_shape, dict):
        each = {} if categories is None else categories
        return {name: _features(rng, batch_size, shape, each.get(name)) for name, shape in in_shape.items()}
    if not is_single(in_shape):
        each = categories or [None] * len(in_shape)
        return tuple(_features(rng, batch_size, *pair) for pair in zip(in_shape, each, strict=True))
    shape = (batch_size, *in_shape)
    return rng.standard_normal(shape) if categories is None else rng.integers(categories, size=shape)


def _targets(rng, batch_size, out_shape):
    labels = rng.integers(max(out_shape[-1], 2), size=(batch_size, *out_shape[:-1]))
    one_hot = labels[..., None] == np.arange(out_shape[-1])
    return np.abs(rng.standard_normal((batch_size, *out_shape))), one_hot, labels % out_shape[-1]


def _accepted(loss, targets, out_shape):
    refused = None
    for y in targets:
        try:
            return loss.check_target(y, out_shape)
        except ValueError as error:
            refused = error
    raise ValueError(
        f"{loss!r} takes neither real numbers, one-hot labels nor class numbers as targets ({refused}): give "
        f"batches of your own, or a script that fits the model"
    )
