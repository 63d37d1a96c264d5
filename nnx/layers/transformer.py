"""A block of a transformer: attention, then a small network at each time step, both with residual connections,

    x = norm(x + attention(x));  y = norm(x + feed_forward(x))            post-norm, as published
    x = x + attention(norm(x));  y = x + feed_forward(norm(x))            pre-norm, easier to train deep

    feed_forward(x) = activation(x @ kernel + bias) @ kernel + bias

Sources: Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762); Xiong et al., "On layer
normalization in the transformer architecture", 2020 (arXiv:2002.04745).
"""

from nnx import activations
from nnx.layers.attention import MultiHeadAttention
from nnx.layers.base import Layer, describe_shape, positive_int, register
from nnx.layers.containers import Chain, Container, Residual
from nnx.layers.dense import Dense
from nnx.layers.dropout import Dropout
from nnx.layers.layer_normalization import LayerNormalization
from nnx.shapes import is_single


@register("transformer_block")
class TransformerBlock(Container):
    """Self-attention and a feed-forward network: (batch, time, features) -> the same shape.

    It computes the same as PyTorch's `TransformerEncoderLayer`; language models use it with `use_causal_mask`.

    Parameters
    ----------
    num_heads : int
        Heads of the attention.
    ff_dim : int
        Hidden units of the feed-forward network.
    key_dim : int, optional
        Length of a head's query and key vectors, by default features / num_heads.
    dropout : float
        Rate of dropout of attention weights, of hidden units, and of the outputs of both sub-blocks.
    activation : str or Activation
        Activation of the feed-forward network.
    norm_first : bool
        Whether each sub-block starts with its normalisation (pre-norm), or its sum is normalised (post-norm).
    use_causal_mask, rotary, max_wavelength, block_size
        As for `MultiHeadAttention`.
    epsilon : float
        As for `LayerNormalization`.

    Examples
    --------
    >>> import nnx
    >>> model = nnx.Sequential([nnx.layers.TransformerBlock(2, 16, input_shape=(5, 8))], seed=0)
    >>> model.output_shape, model.count_params()
    ((5, 8), 600)
    """

    _fixed = ("num_heads", "ff_dim", "key_dim", "dropout", "activation", "norm_first", "use_causal_mask",
             "rotary", "max_wavelength", "block_size", "epsilon")  # fmt: skip

    def __init__(
        self,
        num_heads: int,
        ff_dim: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        activation="relu",
        norm_first: bool = False,
        use_causal_mask: bool = False,
        rotary: bool = False,
        max_wavelength: float = 10000.0,
        block_size: int | None = None,
        epsilon: float = 1e-5,
        **settings,
    ):
        super().__init__(**settings)
        self.num_heads = num_heads
        self.ff_dim = ff_dim
        self.key_dim = key_dim
        self.dropout = dropout
        self.activation = activations.get(activation)
        self.norm_first = norm_first
        self.use_causal_mask = use_causal_mask
        self.rotary = rotary
        self.max_wavelength = max_wavelength
        self.block_size = block_size
        self.epsilon = epsilon
        attention = MultiHeadAttention(
            num_heads, key_dim, dropout=dropout, use_causal_mask=use_causal_mask, rotary=rotary,
            max_wavelength=max_wavelength, block_size=block_size,
        )  # fmt: skip
        layers: list[Layer] = []
        for name, layer in (
            ("attention", attention),
            ("feed_forward", FeedForward(ff_dim, activation, dropout)),
        ):
            norm = LayerNormalization(epsilon=epsilon, name=f"{name}_norm")
            inner = [layer, Dropout(dropout)]
            layers += (
                [Residual([norm, *inner], name=name)] if norm_first else [Residual(inner, name=name), norm]
            )
        self._chain = Chain(layers)
        self._keyed = self._chain._keyed

    def in_shapes(self, in_shape):
        if not is_single(in_shape) or len(in_shape) != 2:
            raise ValueError(
                f"TransformerBlock expects input of shape (batch, time, features), got {describe_shape(in_shape)}"
            )
        return self._chain.in_shapes(in_shape)

    def out_shape(self, in_shape):
        *_, shape = self.in_shapes(in_shape)
        return shape

    def forward(self, ctx, params, x):
        return self._chain.forward(ctx, params, x)


class FeedForward(Layer):
    """Two dense layers, the second with as many units as there are features: any shape -> the same."""

    supports_masking = True

    def __init__(self, units: int, activation, dropout: float):
        super().__init__()
        self.units = positive_int(self, "ff_dim", units)
        self.activation, self.dropout = activation, dropout

    def network(self, features: int) -> Chain:
        """Return the layers for an input of that many features."""
        inner = Dense(self.units, self.activation, name="inner")
        return Chain([inner, Dropout(self.dropout), Dense(features, name="outer")])

    def init(self, rng, in_shape):
        return self.network(in_shape[-1]).init(rng, in_shape)

    def out_shape(self, in_shape):
        return in_shape

    def forward(self, ctx, params, x):
        return self.network(x.shape[-1]).forward(ctx, params, x)

    def flops(self, in_shape):
        return self.network(in_shape[-1]).flops(in_shape)
