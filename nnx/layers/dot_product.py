"""Scaled dot-product attention: each query gets the mean of the values, weighted by query times key,

    y = softmax(query @ key.T + mask) @ value,     mask = 0 for a visible key, -1e9 for a hidden one.

It is computed in blocks of queries. A block uses all its keys at once, so its softmax is the usual one,
and the blocks together give the same result as the whole; with a causal mask a block skips the keys
behind its last query. For the pullback the attention weights are either stored or recomputed from each
query's maximum and sum, so that only one block of them is in memory.

A masked query, or one without a visible key, has attention weights of 0: y = 0.

Sources: Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762), section 3.2; Rabe and
Staats, "Self-attention does not need O(n^2) memory", 2021 (arXiv:2112.05682).
"""

import functools
import itertools
import math
from typing import Any

from nnx import kernels
from nnx.layers.base import HALF
from nnx.layers.dropout import drop

HIDDEN = -1e9
"""Added to the score of a hidden key: finite, so that differences of scores are not nan."""


def attend(
    ctx,
    query,
    key,
    value,
    query_mask=None,
    key_mask=None,
    causal=False,
    dropout=0.0,
    block_size=None,
    salt: object = "",
):
    """Return y, (batch, queries, heads, value_dim), and its pullback to the query, key and value.

    `query`, already scaled, is (batch, heads, queries, key_dim), `key` (batch, heads, keys, key_dim),
    `value` (batch, heads, keys, value_dim); the masks are (batch, queries) and (batch, keys). With
    `block_size`, so many queries are processed at a time, and their weights are recomputed for the pullback.
    """
    xp, keys, runs = ctx.xp, key.shape[2], []
    recomputes = block_size is not None
    isolate = ctx.backend.isolate if recomputes else lambda function: function()
    for start, stop in _blocks(ctx, query, key, block_size):
        visible = min(stop, keys) if causal else keys
        block = _Block(ctx, start, stop, visible, dropout, recomputes, (*query.shape[:3], keys), salt)
        block.select(query, key, value, query_mask, key_mask, causal)
        runs.append((block, *isolate(block.forward)))
    pieces = [xp.permute_dims(y, (0, 2, 1, 3)) for _, y, _ in runs]
    y = pieces[0] if len(pieces) == 1 else xp.concat(pieces, axis=1)

    def pullback(dy):
        dy = xp.permute_dims(dy, (0, 2, 1, 3))
        dquery: list[Any] = []
        dkey: Any = None
        dvalue: Any = None
        for block, y, saved in reversed(runs):  # the last block has the most visible keys
            block_dy = dy[:, :, block.start : block.stop, :]
            dq, dk, dv = isolate(functools.partial(block.pull, block_dy, y, saved))
            dquery.insert(0, dq)
            dkey, dvalue = (_add_to(ctx, *pair) for pair in ((dkey, dk), (dvalue, dv)))
        if hidden := keys - dkey.shape[2]:
            widths = ((0, 0), (0, 0), (0, hidden), (0, 0))
            dkey, dvalue = (ctx.backend.pad(d, widths) for d in (dkey, dvalue))
        return dquery[0] if len(dquery) == 1 else xp.concat(dquery, axis=2), dkey, dvalue

    return y, pullback


class _Block:
    """Queries start, ..., stop - 1, and the first `visible` keys, all that are visible to any of them."""

    def __init__(self, ctx, start, stop, visible, dropout, recomputes, shape, salt):
        self.ctx, self.start, self.stop, self.visible = ctx, start, stop, visible
        self.dropout, self.recomputes, self.shape, self.salt = dropout, recomputes, shape, salt

    def select(self, query, key, value, query_mask, key_mask, causal):
        """Store the block's queries, keys, values and masks."""
        xp = self.ctx.xp
        self.query = query[:, :, self.start : self.stop, :]
        self.key, self.value = (array[:, :, : self.visible, :] for array in (key, value))
        self.dtype = query.dtype
        self.is_half = str(query.dtype).split(".")[-1] in HALF
        self.key_mask = None if key_mask is None else key_mask[:, : self.visible]
        self.is_causal = causal and self.visible > self.start + 1
        self.query_mask = None
        if query_mask is not None:
            query_mask = self.widen(xp.astype(query_mask, self.dtype))
            self.query_mask = query_mask[:, None, self.start : self.stop, None]

    def masks(self) -> list:
        """Return arrays to add to the scores: 0 for a visible key, HIDDEN for others."""
        ctx, xp, masks = self.ctx, self.ctx.xp, []
        if self.is_causal:
            queries, keys = (ctx.arange(n, "int32") for n in (self.stop - self.start, self.visible))
            later = xp.reshape(keys, (1, -1)) > xp.reshape(queries + self.start, (-1, 1))
            masks.append(self.widen(xp.astype(later, self.dtype)) * HIDDEN)
        if self.key_mask is not None:
            hidden = self.widen(xp.astype(xp.logical_not(self.key_mask), self.dtype))
            masks.append(hidden[:, None, None, :] * HIDDEN)
        return masks

    def widen(self, array):
        """Return an array in float32 if the layer computes in half precision."""
        return self.ctx.xp.astype(array, self.ctx.xp.float32) if self.is_half else array

    def narrow(self, array):
        """Return an array in the precision of the layer."""
        return self.ctx.xp.astype(array, self.dtype) if self.is_half else array

    def scores(self):
        """Return query @ key.T + mask, (batch, heads, queries, keys)."""
        xp = self.ctx.xp
        scores = self.widen(xp.matmul(self.query, _transposed(xp, self.key)))
        masks = self.masks()
        return self.ctx.kernel(kernels.add, scores, *masks, overwrite=0) if masks else scores

    def forward(self):
        """Return y, (batch, heads, queries, value_dim), and the arrays that `pull` needs."""
        ctx, xp = self.ctx, self.ctx.xp
        scores = self.scores()
        largest = xp.max(scores, axis=-1, keepdims=True)
        powers = ctx.kernel(kernels.exp_difference, scores, largest, overwrite=0)
        total = xp.sum(powers, axis=-1, keepdims=True)
        if self.key_mask is None and self.query_mask is None:
            inverse = 1.0 / total
        else:
            conditions = (largest,) if self.query_mask is None else (largest, self.query_mask)
            inverse = ctx.kernel(_inverse_if_any, total, *conditions)
        weights = self.narrow(ctx.kernel(kernels.multiply, powers, inverse, overwrite=0))
        y = xp.matmul(self.drop(weights)[0], self.value)
        return y, (largest, inverse) if self.recomputes else (weights,)

    def pull(self, dy, y, saved):
        """Return the gradients of the query, the key and the value."""
        ctx, xp = self.ctx, self.ctx.xp
        weights = self.recomputed_weights(*saved) if self.recomputes else saved[0]
        dropped, pull_dropout = self.drop(weights)
        dvalue = xp.matmul(_transposed(xp, dropped), dy)
        # The pullback of softmax subtracts sum(dweights * weights), which is sum(dy * y).
        along = xp.sum(self.widen(dy) * self.widen(y), axis=-1, keepdims=True)
        dweights = self.widen(pull_dropout(xp.matmul(dy, _transposed(xp, self.value))))
        dscores = self.narrow(ctx.kernel(kernels.weigh_difference, dweights, along, weights, overwrite=0))
        return xp.matmul(dscores, self.key), xp.matmul(_transposed(xp, dscores), self.query), dvalue

    def recomputed_weights(self, largest, inverse):
        """Return the weights that `forward` computed."""
        powers = self.ctx.kernel(kernels.exp_difference, self.scores(), largest, overwrite=0)
        return self.narrow(self.ctx.kernel(kernels.multiply, powers, inverse, overwrite=0))

    def drop(self, weights):
        """Return the weights after dropout, and its pullback."""
        if not self.ctx.training or self.dropout == 0:
            return weights, lambda d: d
        window = ((self.start, self.stop), (0, self.visible))
        is_all = window == tuple((0, length) for length in self.shape[2:])
        bits = self.ctx.random_bits(self.shape, self.salt, None if is_all else window)
        return drop(self.ctx, weights, bits, self.dropout)


def _blocks(ctx, query, key, block_size) -> list[tuple[int, int]]:
    """Return (start, stop) of each block of queries, of about equal lengths."""
    batch, heads, queries, _ = query.shape
    if block_size is None:
        query_bytes = 4 * max(1, batch * heads * key.shape[2])
        block_size = max(8, ctx.backend.tile_bytes["scores"] // query_bytes)
    count = math.ceil(queries / block_size)
    edges = [queries * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _inverse_if_any(xp, total, largest, *query_mask):
    """1 / total, but 0 where all keys are hidden or the query is masked."""
    inverse = xp.astype(largest > 0.5 * HIDDEN, total.dtype) / total
    return inverse * query_mask[0] if query_mask else inverse


def _add_to(ctx, total, gradient):
    """Return `total`, the gradient of all keys or None, plus a gradient of the first keys."""
    if total is None:
        return gradient
    if gradient.shape == total.shape:
        return ctx.kernel(kernels.add, total, gradient, overwrite=0)
    first = (..., slice(0, gradient.shape[2]), slice(None))
    return ctx.backend.unslice(total.shape, [total, gradient], [(...,), first])


def _transposed(xp, matrices):
    return xp.permute_dims(matrices, (0, 1, 3, 2))
