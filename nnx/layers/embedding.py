"""Embedding: each category, an index from 0 on, has a learnt vector,

    y = embeddings[x].

The gradient of a vector is the sum of dL/dy over all positions of its index.

Source: Bengio et al., "A neural probabilistic language model", JMLR 2003.
"""

import math

from nnx import initializers, regularizers
from nnx.layers.base import HALF, Layer, Weight, describe_shape, expect_features, positive_int, register

# The largest integers up to which all are exact in half precision.
_EXACT = {"float16": 2048, "bfloat16": 256}


@register("embedding")
class Embedding(Layer):
    """Turn category indices into learnt vectors: (batch, ...) -> (batch, ..., output_dim).

    As the first layer of a model it takes integers, which are checked on the host. After other layers it
    takes the integer parts of floats; an index out of range gives a vector of nan.

    Parameters
    ----------
    input_dim : int
        Number of categories: indices go from 0 to input_dim - 1.
    output_dim : int
        Length of each vector.
    embeddings_initializer : str or Initializer
        Starting vectors: embeddings (input_dim, output_dim).
    embeddings_regularizer : str or Regularizer, optional
    mask_zero : bool
        Whether index 0 is padding: later layers get the mask x != 0, (batch, time), and recurrent layers,
        attention, averages and losses ignore these steps.

    Examples
    --------
    >>> import nnx
    >>> vectors = nnx.initializers.Constant([[0.0, 1.0], [2.0, 3.0]])
    >>> nnx.apply(nnx.layers.Embedding(2, 2, vectors), [[1, 0, 1]])
    array([[[2., 3.],
            [0., 1.],
            [2., 3.]]], dtype=float32)
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer="uniform",
        embeddings_regularizer=None,
        mask_zero: bool = False,
        **settings,
    ):
        super().__init__(**settings)
        self.input_dim = positive_int(self, "input_dim", input_dim)
        self.output_dim = positive_int(self, "output_dim", output_dim)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.mask_zero = mask_zero

    @property
    def categories(self):
        return self.input_dim

    def declare_weights(self):
        yield Weight.of(self, "embeddings", (self.input_dim, self.output_dim))

    def out_shape(self, in_shape):
        expect_features(self, in_shape)
        if self.mask_zero and len(in_shape) != 1:
            raise ValueError(
                f"Embedding: mask_zero=True expects input of shape (batch, time), got {describe_shape(in_shape)}"
            )
        return (*in_shape, self.output_dim)

    def forward(self, ctx, params, x):
        xp, ids = ctx.xp, ctx.xp.reshape(x, (-1,))
        if self.mask_zero:
            ctx.mask = x != 0
        if "int" in str(x.dtype):
            vectors = xp.take(params["embeddings"], ids, axis=0)
        else:
            ids, offset = self._as_ids(xp, ids)
            vectors = xp.take(params["embeddings"], ids, axis=0) + xp.reshape(offset, (-1, 1))

        def pullback(dy):
            rows = xp.reshape(dy, (-1, self.output_dim))
            grads = {"embeddings": ctx.backend.scatter_add(ids, rows, self.input_dim)}
            return (xp.zeros_like(x) if ctx.needs_input_gradient else None), grads

        return xp.reshape(vectors, (*x.shape, self.output_dim)), pullback

    def _as_ids(self, xp, values):
        """Return the integer parts of floats, and an offset for their vectors: 0, or nan out of range."""
        if str(values.dtype) in HALF and self.input_dim > _EXACT[str(values.dtype)]:
            raise ValueError(
                f"Embedding: {self.input_dim} categories cannot be told apart as {values.dtype}: make it the first "
                f"layer, whose input stays integers, or use dtype='float32'"
            )
        inside = xp.logical_and(values >= 0, values < self.input_dim)
        zeros = values * 0.0
        return xp.astype(xp.where(inside, values, zeros), xp.int32), xp.where(inside, zeros, math.nan)
