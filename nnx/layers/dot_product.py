"""Scaled dot-product attention: each query takes the mean of all values, weighted by its keys,

    y = softmax(query @ key.T + mask) @ value,     mask = 0 where a key may be seen, -1e9 elsewhere.

It is computed in blocks of queries. A block sees all its keys at once, so that its softmax is the
usual one, and blocks together give the same numbers as the whole; with a causal mask a block is
given no keys that lie behind its last query. For the pullback the weights are kept, or made again
from each row's maximum and sum, so that no more than one block of them is in memory.

A query that may see no key at all, or is padding itself, has weights of 0: y = 0.

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
"""Added to the score of a key that may not be seen: finite, so that differences are numbers."""


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

    `query`, scaled already, is (batch, heads, queries, key_dim), `key` (batch, heads, keys, key_dim),
    `value` (batch, heads, keys, value_dim); the masks are (batch, queries) and (batch, keys). With
    `block_size`, so many queries are taken at a time, and their weights are made again for the pullback.
    """
    xp, keys, runs = ctx.xp, key.shape[2], []
    forgets = block_size is not None
    isolate = ctx.backend.isolate if forgets else lambda function: function()
    for start, stop in _blocks(ctx, query, key, block_size):
        seen = min(stop, keys) if causal else keys
        block = _Block(ctx, start, stop, seen, dropout, forgets, (*query.shape[:3], keys), salt)
        block.look(query, key, value, query_mask, key_mask, causal)
        runs.append((block, *isolate(block.forward)))
    rows = [xp.permute_dims(y, (0, 2, 1, 3)) for _, y, _ in runs]
    y = rows[0] if len(rows) == 1 else xp.concat(rows, axis=1)

    def pullback(dy):
        dy = xp.permute_dims(dy, (0, 2, 1, 3))
        dquery: list[Any] = []
        dkey: Any = None
        dvalue: Any = None
        for block, y, kept in reversed(runs):  # the last block sees every key that any sees
            part = dy[:, :, block.start : block.stop, :]
            dq, dk, dv = isolate(functools.partial(block.pull, part, y, kept))
            dquery.insert(0, dq)
            dkey, dvalue = (_add_to(ctx, *pair) for pair in ((dkey, dk), (dvalue, dv)))
        unseen = keys - dkey.shape[2]
        if unseen:
            widths = ((0, 0), (0, 0), (0, unseen), (0, 0))
            dkey, dvalue = (ctx.backend.pad(d, widths) for d in (dkey, dvalue))
        return dquery[0] if len(dquery) == 1 else xp.concat(dquery, axis=2), dkey, dvalue

    return y, pullback


class _Block:
    """Queries start, ..., stop - 1, and the keys that any of them may see."""

    def __init__(self, ctx, start, stop, seen, dropout, forgets, shape, salt):
        self.ctx, self.start, self.stop, self.seen = ctx, start, stop, seen
        self.dropout, self.forgets, self.shape, self.salt = dropout, forgets, shape, salt

    def look(self, query, key, value, query_mask, key_mask, causal):
        """Take the block's queries, keys and values, and what hides keys from queries."""
        xp = self.ctx.xp
        self.query = query[:, :, self.start : self.stop, :]
        self.key, self.value = (part[:, :, : self.seen, :] for part in (key, value))
        self.dtype = query.dtype
        self.is_half = str(query.dtype).split(".")[-1] in HALF
        self.key_mask = None if key_mask is None else key_mask[:, : self.seen]
        self.is_causal = causal and self.seen > self.start + 1
        self.alive = None
        if query_mask is not None:
            self.alive = self.wide(xp.astype(query_mask, self.dtype))[:, None, self.start : self.stop, None]

    def hiding(self) -> list:
        """Return what is added to the scores: 0 where a key may be seen."""
        ctx, xp, masks = self.ctx, self.ctx.xp, []
        if self.is_causal:
            rows, columns = (ctx.arange(n, "int32") for n in (self.stop - self.start, self.seen))
            later = xp.reshape(columns, (1, -1)) > xp.reshape(rows + self.start, (-1, 1))
            masks.append(self.wide(xp.astype(later, self.dtype)) * HIDDEN)
        if self.key_mask is not None:
            hidden = self.wide(xp.astype(xp.logical_not(self.key_mask), self.dtype))
            masks.append(hidden[:, None, None, :] * HIDDEN)
        return masks

    def wide(self, array):
        """Return an array in float32 where the layer computes in half precision."""
        return self.ctx.xp.astype(array, self.ctx.xp.float32) if self.is_half else array

    def narrow(self, array):
        """Return an array in the layer's own precision again."""
        return self.ctx.xp.astype(array, self.dtype) if self.is_half else array

    def scores(self):
        """Return query @ key.T + mask, (batch, heads, rows, keys)."""
        xp = self.ctx.xp
        scores = self.wide(xp.matmul(self.query, _transposed(xp, self.key)))
        hiding = self.hiding()
        return self.ctx.kernel(kernels.add, scores, *hiding, overwrite=0) if hiding else scores

    def forward(self):
        """Return y, (batch, heads, rows, value_dim), and what to keep of the weights for `pull`."""
        ctx, xp = self.ctx, self.ctx.xp
        scores = self.scores()
        largest = xp.max(scores, axis=-1, keepdims=True)
        powers = ctx.kernel(kernels.exp_difference, scores, largest, overwrite=0)
        total = xp.sum(powers, axis=-1, keepdims=True)
        if self.key_mask is None and self.alive is None:
            inverse = 1.0 / total
        else:
            seeing = (largest,) if self.alive is None else (largest, self.alive)
            inverse = ctx.kernel(_inverse_if_any, total, *seeing)
        weights = self.narrow(ctx.kernel(kernels.multiply, powers, inverse, overwrite=0))
        y = xp.matmul(self.drop(weights)[0], self.value)
        return y, (largest, inverse) if self.forgets else (weights,)

    def pull(self, dy, y, kept):
        """Return the gradients by the query, the key and the value."""
        ctx, xp = self.ctx, self.ctx.xp
        weights = self.weights_again(*kept) if self.forgets else kept[0]
        dropped, pull_dropout = self.drop(weights)
        dvalue = xp.matmul(_transposed(xp, dropped), dy)
        # The pullback of softmax subtracts sum(dweights * weights), which is sum(dy * y).
        along = xp.sum(self.wide(dy) * self.wide(y), axis=-1, keepdims=True)
        dweights = self.wide(pull_dropout(xp.matmul(dy, _transposed(xp, self.value))))
        dscores = self.narrow(ctx.kernel(kernels.weigh_difference, dweights, along, weights, overwrite=0))
        return xp.matmul(dscores, self.key), xp.matmul(_transposed(xp, dscores), self.query), dvalue

    def weights_again(self, largest, inverse):
        """Return the weights that `forward` computed."""
        powers = self.ctx.kernel(kernels.exp_difference, self.scores(), largest, overwrite=0)
        return self.narrow(self.ctx.kernel(kernels.multiply, powers, inverse, overwrite=0))

    def drop(self, weights):
        """Return the weights after dropout, and its pullback."""
        if not self.ctx.training or self.dropout == 0:
            return weights, lambda d: d
        window = ((self.start, self.stop), (0, self.seen))
        is_all = window == tuple((0, length) for length in self.shape[2:])
        bits = self.ctx.random_bits(self.shape, self.salt, None if is_all else window)
        return drop(self.ctx, weights, bits, self.dropout)


def _blocks(ctx, query, key, block_size) -> list[tuple[int, int]]:
    """Return (start, stop) of each block of queries, of about equal lengths."""
    batch, heads, queries, _ = query.shape
    most = block_size
    if most is None:
        a_row = 4 * max(1, batch * heads * key.shape[2])
        most = max(8, ctx.backend.tile_bytes["scores"] // a_row)
    count = math.ceil(queries / most)
    edges = [queries * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _inverse_if_any(xp, total, largest, *alive):
    """1 / total, but 0 where all keys are hidden or the query is padding."""
    inverse = xp.astype(largest > 0.5 * HIDDEN, total.dtype) / total
    return inverse * alive[0] if alive else inverse


def _add_to(ctx, total, part):
    """Return the sum of gradients by all keys, and by the first of them."""
    if total is None:
        return part
    if part.shape == total.shape:
        return ctx.kernel(kernels.add, total, part, overwrite=0)
    places = (..., slice(0, part.shape[2]), slice(None))
    return ctx.backend.unslice(total.shape, [total, part], [(...,), places])


def _transposed(xp, matrices):
    return xp.permute_dims(matrices, (0, 1, 3, 2))
