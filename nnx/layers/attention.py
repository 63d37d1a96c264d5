"""Multi-head attention: each time step gets a weighted mean of all time steps, in several heads at once,

    head = softmax(q @ k.T / sqrt(key_dim)) @ v      with  q = x @ query, k = z @ key, v = z @ value
    y = concatenate(heads) @ attention_output

where z is x itself (self-attention) or another sequence (cross-attention).

Source: Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762), section 3.2.
"""

import functools
import math
from typing import Any

from nnx import initializers, kernels, regularizers
from nnx.layers.base import Layer, Weight, describe_shape, positive_int, register
from nnx.layers.dot_product import attend
from nnx.layers.positions import rotate
from nnx.shapes import is_single


@register("multi_head_attention")
class MultiHeadAttention(Layer):
    """Multi-head attention: (batch, time, features) -> (batch, time, features).

    A tuple of arrays means cross-attention: (query, value), or (query, value, key) as in Keras; the query
    may have another length. Masked steps (`ctx.mask`) neither attend nor are attended to: the output of a
    step that may attend to no step is the bias alone.

    Parameters
    ----------
    num_heads : int
        Number of heads.
    key_dim : int, optional
        Length of a head's query and key vectors, by default features / num_heads.
    value_dim : int, optional
        Length of a head's value vectors, by default `key_dim`.
    dropout : float
        Share of the attention weights that are zeroed while training.
    use_bias : bool
        Whether biases are added.
    output_shape : int or tuple of int, optional
        Shape of each step's output, by default that of the query.
    kernel_initializer, bias_initializer : str or Initializer
        Starting weights: kernels (features, heads, dim) of query, key and value, biases (heads, dim);
        of attention_output (heads, value_dim, features) and (features,).
    kernel_regularizer, bias_regularizer : str or Regularizer, optional
    seed : int, optional
        Makes its dropout differ from that of another layer with the same name.
    use_causal_mask : bool
        Whether no step attends to a later one. In Keras an argument of the call.
    rotary : bool
        Whether queries and keys are rotated by their position; see `RotaryPositions`.
    max_wavelength : float
        As for `RotaryPositions`.
    block_size : int, optional
        Process so many queries at a time. The attention weights, (batch, heads, time, time), are then never
        in memory as a whole, and are recomputed for the pullback. The results are the same.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.MultiHeadAttention(1, 1, kernel_initializer="ones", use_causal_mask=True)
    >>> nnx.apply(layer, [[[0.0], [1.0], [2.0]]])[0].round(2)
    array([[0.  ],
           [0.73],
           [1.85]], dtype=float32)
    """

    supports_masking = True

    _fixed = ("output_shape",)

    def __init__(
        self,
        num_heads: int,
        key_dim: int | None = None,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed: int | None = None,
        use_causal_mask: bool = False,
        rotary: bool = False,
        max_wavelength: float = 10000.0,
        block_size: int | None = None,
        **settings,
    ):
        super().__init__(**settings)
        self.num_heads = positive_int(self, "num_heads", num_heads)
        self.key_dim = None if key_dim is None else positive_int(self, "key_dim", key_dim)
        self.value_dim = None if value_dim is None else positive_int(self, "value_dim", value_dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"MultiHeadAttention: dropout must be at least 0 and below 1, got {dropout}")
        self.dropout = dropout
        self.use_bias = use_bias
        self.output_shape = output_shape
        lengths = (output_shape,) if isinstance(output_shape, int) else output_shape or ()
        self._output_shape = tuple(positive_int(self, "output_shape", length) for length in lengths)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.seed = seed
        self.use_causal_mask = use_causal_mask
        self.rotary = rotary
        self.max_wavelength = max_wavelength
        self.block_size = None if block_size is None else positive_int(self, "block_size", block_size)

    def declare_weights(self):
        for name in ("query", "key", "value", "attention_output"):
            yield Weight.of(self, f"{name}/kernel", functools.partial(self._kernel_shape, name), "kernel")
            if self.use_bias:
                yield Weight.of(self, f"{name}/bias", functools.partial(self._bias_shape, name), "bias")

    def _kernel_shape(self, name: str, in_shape) -> tuple[int, ...]:
        (query, value, key), key_dim, value_dim = self._dims(in_shape)
        shapes = {
            "query": (query, self.num_heads, key_dim),
            "key": (key, self.num_heads, key_dim),
            "value": (value, self.num_heads, value_dim),
            "attention_output": (self.num_heads, value_dim, *self.out_shape(in_shape)[1:]),
        }
        return shapes[name]

    def _bias_shape(self, name: str, in_shape) -> tuple[int, ...]:
        summed_axes = 2 if name == "attention_output" else 1
        return self._kernel_shape(name, in_shape)[summed_axes:]

    def out_shape(self, in_shape: Any):
        self._dims(in_shape)
        query = in_shape if is_single(in_shape) else in_shape[0]
        return (query[0], *(self._output_shape or query[1:]))

    def _dims(self, in_shape):
        """Return the features of query, value and key, key_dim and value_dim, or raise a ValueError."""
        shapes: Any = [in_shape] * 3 if is_single(in_shape) else in_shape
        if isinstance(shapes, dict) or len(shapes) not in (2, 3) or any(len(shape) != 2 for shape in shapes):
            raise ValueError(
                f"MultiHeadAttention expects input of shape (batch, time, features), or a tuple of two or three such, "
                f"(query, value[, key]), got {describe_shape(in_shape)}"
            )
        query, value, key = (*shapes, shapes[1])[:3]
        if value[0] != key[0]:
            raise ValueError(
                f"MultiHeadAttention: value and key must have the same time steps, got {describe_shape(value)} and "
                f"{describe_shape(key)}"
            )
        key_dim = self.key_dim
        if key_dim is None:
            if query[1] % self.num_heads:
                raise ValueError(
                    f"MultiHeadAttention: {query[1]} features cannot be divided among {self.num_heads} heads: give "
                    f"key_dim, or choose num_heads that divides {query[1]}"
                )
            key_dim = query[1] // self.num_heads
        if self.rotary and key_dim % 2:
            raise ValueError(f"MultiHeadAttention: rotary=True needs an even key_dim, got {key_dim}")
        return (query[1], value[1], key[1]), key_dim, self.value_dim or key_dim

    def forward(self, ctx, params, x):
        xp, several = ctx.xp, isinstance(x, tuple)
        query, value, key = (*x, x[1])[:3] if several else (x, x, x)
        query_mask, key_mask = self._masks(ctx, several)
        q, pull_q = _project(ctx, params["query"], query)
        k, pull_k = _project(ctx, params["key"], key)
        v, pull_v = _project(ctx, params["value"], value)
        scale = 1 / math.sqrt(q.shape[-1])
        q = ctx.kernel(kernels.multiply, q, scale, overwrite=0)
        if self.rotary:
            (q, rotate_q_back), (k, rotate_k_back) = (rotate(ctx, a, self.max_wavelength) for a in (q, k))
        else:
            rotate_q_back = rotate_k_back = _identity
        q, k, v = (xp.permute_dims(array, (0, 2, 1, 3)) for array in (q, k, v))
        mixed, pull_mixed = attend(
            ctx, q, k, v, query_mask, key_mask, self.use_causal_mask, self.dropout, self.block_size, self.seed
        )
        y, pull_y = _project(ctx, params["attention_output"], mixed, contracted=2)

        def pullback(dy):
            dmixed, output_grads = pull_y(dy, True)
            dq, dk, dv = (xp.permute_dims(d, (0, 2, 1, 3)) for d in pull_mixed(dmixed))
            dq, dk = rotate_q_back(dq), rotate_k_back(dk)
            needed, grads = ctx.needs_input_gradient, {"attention_output": output_grads}
            dquery, grads["query"] = pull_q(ctx.kernel(kernels.multiply, dq, scale, overwrite=0), needed)
            dkey, grads["key"] = pull_k(dk, needed)
            dvalue, grads["value"] = pull_v(dv, needed)
            if not needed:
                return None, grads
            if not several:
                return ctx.kernel(kernels.add, dquery, dkey, dvalue, overwrite=0), grads
            return ((dquery, dvalue, dkey) if len(x) == 3 else (dquery, dkey + dvalue)), grads

        return y, pullback

    def _masks(self, ctx, several):
        """Return the masks of the query and of the keys; the output keeps that of the query."""
        if not several or ctx.mask is None:
            return ctx.mask, ctx.mask
        query_mask, *others = ctx.mask
        known = [mask for mask in others if mask is not None]
        ctx.mask = query_mask
        return query_mask, functools.reduce(ctx.xp.logical_and, known) if known else None

    def flops(self, in_shape):
        features, key_dim, value_dim = self._dims(in_shape)
        shapes: Any = [in_shape] * 2 if is_single(in_shape) else in_shape
        queries, keys, heads = shapes[0][0], shapes[1][0], self.num_heads
        output = math.prod(self.out_shape(in_shape)[1:])
        products = [
            (queries, features[0], heads * key_dim), (keys, features[2], heads * key_dim),
            (keys, features[1], heads * value_dim), (queries, heads * value_dim, output),
        ]  # fmt: skip
        projections = sum(rows * n * (2 * m + self.use_bias) for rows, m, n in products)
        return projections + heads * queries * keys * (2 * key_dim + 2 * value_dim + 5)


def _identity(x):
    return x


def _project(ctx, params, x, contracted=1):
    """Return x @ kernel + bias, summed over the last `contracted` axes of x and the first of the kernel."""
    xp, kernel, bias = ctx.xp, params["kernel"], params.get("bias")
    rows = xp.reshape(x, (-1, math.prod(kernel.shape[:contracted])))
    matrix = xp.reshape(kernel, (rows.shape[1], -1))
    y = xp.matmul(rows, matrix)
    if bias is not None:
        y = ctx.kernel(kernels.add, y, xp.reshape(bias, (-1,)), overwrite=0)

    def pullback(dy, needed) -> tuple[Any, dict]:
        dy = xp.reshape(dy, (-1, matrix.shape[1]))
        grads = {"kernel": xp.reshape(xp.matmul(rows.T, dy), kernel.shape)}
        if bias is not None:
            grads["bias"] = xp.reshape(xp.sum(dy, axis=0), bias.shape)
        return (xp.reshape(xp.matmul(dy, matrix.T), x.shape) if needed else None), grads

    return xp.reshape(y, (*x.shape[: x.ndim - contracted], *kernel.shape[contracted:])), pullback
