"""Layers that only change the shape of a sample, or declare it."""

from nnx.layers.base import Layer, describe_shape, positive_int, register, size


@register("input")
class Input(Layer):
    """Declare the shape of one sample: `Sequential([Input((4,)), Dense(3)])`. Changes nothing.

    Examples
    --------
    >>> import nnx
    >>> nnx.Sequential([nnx.layers.Input((4,)), nnx.layers.Dense(3)]).output_shape
    (3,)
    """

    rearranges = True

    supports_masking = True

    def __init__(self, shape, name: str | None = None):
        super().__init__(name=name, input_shape=shape)
        self.shape = self.input_shape

    def forward(self, ctx, params, x):
        return x, lambda dy: (dy, {})


@register("reshape")
class Reshape(Layer):
    """Reshape each sample: (batch, *in_shape) -> (batch, *target_shape).

    One entry of `target_shape` may be -1: it is computed from the others.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Reshape((2, -1)), [[1.0, 2.0, 3.0, 4.0]]).shape
    (1, 2, 2)
    """

    rearranges = True

    def __init__(self, target_shape, **settings):
        super().__init__(**settings)
        self.target_shape = (target_shape,) if isinstance(target_shape, int) else tuple(target_shape)

    def out_shape(self, in_shape):
        given, unknown = size(in_shape), self.target_shape.count(-1)
        known = size(tuple(n for n in self.target_shape if n != -1))
        if unknown > 1 or (given != known if not unknown else known < 1 or given % known):
            raise ValueError(
                f"{type(self).__name__}: cannot arrange input of shape {describe_shape(in_shape)}, "
                f"{given} values a sample, as {self.target_shape}"
            )
        return tuple(given // known if n == -1 else n for n in self.target_shape)

    def forward(self, ctx, params, x):
        def pullback(dy):
            return ctx.xp.reshape(dy, x.shape), {}

        return ctx.xp.reshape(x, (x.shape[0], *self.out_shape(x.shape[1:]))), pullback


@register("flatten")
class Flatten(Reshape):
    """Flatten each sample: (batch, ...) -> (batch, features).

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Flatten(), [[[1.0, 2.0], [3.0, 4.0]]])
    array([[1., 2., 3., 4.]], dtype=float32)
    """

    def __init__(self, name: str | None = None, input_shape=None):
        super().__init__((-1,), name=name, input_shape=input_shape)

    def out_shape(self, in_shape):
        return (size(in_shape),)


@register("permute")
class Permute(Layer):
    """Exchange the axes of each sample.

    Parameters
    ----------
    dims : tuple of int
        The axes in their new order, counted from 1, the first after the batch axis: (2, 1) turns
        (batch, rows, columns) into (batch, columns, rows).

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Permute((2, 1)), [[[1.0, 2.0, 3.0]]]).shape
    (1, 3, 1)
    """

    rearranges = True

    def __init__(self, dims, **settings):
        super().__init__(**settings)
        self.dims = tuple(dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ValueError(
                f"Permute: dims must name each axis after the batch once, counted from 1, such as (2, 1), got {dims}"
            )

    def out_shape(self, in_shape):
        if len(in_shape) != len(self.dims):
            raise ValueError(
                f"Permute: dims={self.dims} expects samples of {len(self.dims)} axes, got input of shape "
                f"{describe_shape(in_shape)}: name each of its axes once"
            )
        return tuple(in_shape[axis - 1] for axis in self.dims)

    def forward(self, ctx, params, x):
        order = (0, *self.dims)
        inverse = tuple(order.index(axis) for axis in range(x.ndim))

        def pullback(dy):
            return ctx.xp.permute_dims(dy, inverse), {}

        return ctx.xp.permute_dims(x, order), pullback


@register("repeat_vector")
class RepeatVector(Layer):
    """Repeat each sample: (batch, features) -> (batch, n, features).

    Parameters
    ----------
    n : int
        Number of copies.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.RepeatVector(2), [[1.0, 2.0]])
    array([[[1., 2.],
            [1., 2.]]], dtype=float32)
    """

    rearranges = True

    def __init__(self, n: int, **settings):
        super().__init__(**settings)
        self.n = positive_int(self, "n", n)

    def out_shape(self, in_shape):
        if len(in_shape) != 1:
            raise ValueError(
                f"RepeatVector expects input of shape (batch, features), got {describe_shape(in_shape)}: put a "
                f"Flatten before it"
            )
        return (self.n, *in_shape)

    def forward(self, ctx, params, x):
        batch, features = x.shape

        def pullback(dy):
            return ctx.xp.sum(dy, axis=1), {}

        rows = ctx.xp.reshape(x, (batch, 1, features))
        return ctx.xp.broadcast_to(rows, (batch, self.n, features)), pullback
