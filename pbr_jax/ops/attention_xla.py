"""Softmax attention in plain JAX that never stores an N x N array.

Rows of the score matrix are computed in blocks of samples and queries, whole rows at a time, so the
softmax of a block is exact and can be recomputed from q and k alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.kernels.attention_arguments import HIDDEN, Rules, Visibility
from pbr_jax.ops.visibility import dropout_factor, visible

# Float32 scores held at a time: enough to fill a GPU, little beside the activations of a block.
_SCORE_BYTES = 8 * 2**20


class Block(NamedTuple):
    """Some queries of a few samples, `[b, H, n, ...]`, and all their keys, `[b, Hkv, M, ...]`.

    `rows` are the numbers of the queries. `k` may hold fewer channels than the head, and `q` the
    same ones. Where a group of heads shares one of k and v, a product takes its queries together.
    """

    q: jax.Array
    k: jax.Array
    rows: jax.Array
    visibility: Visibility
    rules: Rules

    def visible(self) -> jax.Array | None:
        return visible(self.visibility, self.rows, self.k.shape[2], self.rules.causal)

    def log_scores(self) -> jax.Array:
        scores = self.with_keys(self.q, self.k) * self.rules.scale
        seen = self.visible()
        if seen is None:
            return scores
        # A row with nothing visible gets zeros: at HIDDEN its log-sum-exp would lose log(M).
        some = jnp.any(seen, axis=-1, keepdims=True)
        return jnp.where(seen, scores, jnp.where(some, HIDDEN, 0.0))

    def grouped(self, x: jax.Array) -> jax.Array:
        """`[b, H, n, ...]` as `[b, Hkv, H / Hkv * n, ...]`: nothing moves."""
        return x.reshape(*self.k.shape[:2], -1, x.shape[3])

    def with_keys(self, x: jax.Array, k: jax.Array) -> jax.Array:
        """Products of `[b, H, n, c]` with keys or values `k`: float32 `[b, H, n, M]`."""
        wide = jnp.float32
        found = jnp.einsum("bhnc,bhmc->bhnm", self.grouped(x), k, preferred_element_type=wide)
        return found.reshape(*x.shape[:3], k.shape[2])

    def over_keys(self, p: jax.Array, k: jax.Array, **options: Any) -> jax.Array:
        """Sums of keys or values `[b, Hkv, M, c]` with weights `[b, H, n, M]`: `[b, H, n, c]`."""
        found = jnp.einsum("bhnm,bhmc->bhnc", self.grouped(p), k, **options)
        return found.reshape(*p.shape[:3], k.shape[3])

    def over_queries(self, p: jax.Array, x: jax.Array) -> jax.Array:
        """Sums of `[b, H, n, c]` over the queries of a group: `[b, Hkv, M, c]`."""
        return jnp.einsum("bhnm,bhnc->bhmc", self.grouped(p), self.grouped(x))

    def softmax(self, lse: jax.Array | None = None) -> jax.Array:
        scores = self.log_scores()
        if lse is None:
            return jax.nn.softmax(scores, axis=-1)
        # At most 1; the queries that fill up the last block have no log-sum-exp of their own.
        return jnp.exp(jnp.minimum(scores - lse[..., None], 0.0))

    def dropped(self, p: jax.Array) -> jax.Array:
        """Dropout of probabilities, or its transpose, of their cotangent: both multiply."""
        seeds, rate = self.visibility.seeds, self.rules.dropout
        if seeds is None or rate == 0:
            return p
        return p * dropout_factor(seeds, self.q.shape[1], self.rows, self.k.shape[2], rate)

    def gradients(
        self,
        p: jax.Array,
        v: jax.Array,
        do: jax.Array,
        do_for_v: jax.Array,
        delta: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`dq, dk, dv` from the probabilities; `delta = sum(p * dp)` where it is known already."""
        dp = self.dropped(self.with_keys(do_for_v, v))
        if delta is None:
            delta = jnp.sum(p * dp, axis=-1)
        ds = p * (dp - delta[..., None]) * self.rules.scale
        seen = self.visible()
        if seen is not None:
            ds = jnp.where(seen, ds, 0.0)
        ds = ds.astype(self.q.dtype)
        # dv takes the probabilities that dropout left, ds those before it.
        dv = self.over_queries(self.dropped(p).astype(do.dtype), do)
        return self.over_keys(ds, self.k), self.over_queries(ds, self.q), dv


def over_samples(body, arrays, bytes_per_sample: int):
    """`body` over chunks of the leading axis of every array, results joined again."""
    batch = jax.tree.leaves(arrays)[0].shape[0]
    # The smallest divisor of the batch that keeps a chunk within the budget of scores.
    wanted = min(batch, max(1, -(-batch * bytes_per_sample // _SCORE_BYTES)))
    chunks = next(c for c in range(wanted, batch + 1) if batch % c == 0)
    if chunks == 1:
        return body(arrays)
    split = jax.tree.map(lambda a: a.reshape(chunks, batch // chunks, *a.shape[1:]), arrays)
    joined = lax.map(body, split)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), joined)


def score_bytes(heads: int, num_queries: int, num_keys: int) -> int:
    """Bytes of all float32 scores of a sample."""
    return 4 * heads * num_queries * num_keys


def all_rows(num_queries: int) -> jax.Array:
    """Numbers of all queries, int32 `[N]`."""
    return jnp.arange(num_queries, dtype=jnp.int32)


def _num_query_blocks(q: jax.Array, k: jax.Array) -> int:
    return max(1, -(-score_bytes(q.shape[1], q.shape[2], k.shape[2]) // _SCORE_BYTES))


def _split_queries(arrays, length: int, blocks: int):
    """Arrays `[b, H, N, ...]` as `[blocks, b, H, n, ...]`, padded with zeros, and their rows."""
    n = -(-length // blocks)

    def split(array):
        padding = [(0, 0)] * array.ndim
        padding[2] = (0, blocks * n - length)
        padded = jnp.pad(array, padding)
        return jnp.moveaxis(padded.reshape(*array.shape[:2], blocks, n, *array.shape[3:]), 2, 0)

    return jax.tree.map(split, arrays), all_rows(blocks * n).reshape(blocks, n)


def _join_queries(blocks: jax.Array, length: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, *joined.shape[4:])[:, :, :length]


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, rules: Rules
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, H, N, head]` and log-sum-exp `[B, H, N]` (float32) of softmax attention."""
    length = q.shape[2]

    def samples(arrays):
        q, k, v, visibility = arrays

        def queries(q, rows):
            block = Block(q, k, rows, visibility, rules)
            scores = block.log_scores()
            # The division by their sum comes after the product: N x head elements, not N x M.
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            kept = block.dropped(weights).astype(v.dtype)
            out = block.over_keys(kept, v, preferred_element_type=jnp.float32)
            return (out / total).astype(v.dtype), (top + jnp.log(total))[..., 0]

        blocks = _num_query_blocks(q, k)
        if blocks == 1:
            return queries(q, all_rows(length))
        out, lse = lax.map(lambda parts: queries(*parts), _split_queries(q, length, blocks))
        return _join_queries(out, length), _join_queries(lse, length)

    bytes_per_sample = score_bytes(q.shape[1], length, k.shape[2])
    return over_samples(samples, (q, k, v, visibility), bytes_per_sample)


def attend_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    do: jax.Array,
    rules: Rules,
    *,
    do_for_v: jax.Array | None = None,
    out_lse: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv` of softmax attention whose probabilities are recomputed from `q` and `k`.

    Args:
      q, k, v, visibility: as saved; q and k may hold fewer channels than the head.
      do: cotangent of the output, all channels.
      rules: those of the forward pass.
      do_for_v: the channels of `do` that go with a `v` of fewer channels; None means all.
      out_lse: output and log-sum-exp of the forward pass, if they were kept.
    """
    length = q.shape[2]
    # With the output known, delta = sum(p * dp) over the keys is sum(do * out) over the channels.
    if out_lse is None:
        delta = lse = None
    else:
        lse = out_lse[1]
        delta = jnp.sum(do.astype(jnp.float32) * out_lse[0].astype(jnp.float32), axis=-1)

    def samples(arrays):
        k, v, visibility, by_query = arrays

        def queries(by_query, rows):
            q, do, do_v, lse, delta = by_query
            block = Block(q, k, rows, visibility, rules)
            return block.gradients(block.softmax(lse), v, do, do_v, delta)

        blocks = _num_query_blocks(q, k)
        if blocks == 1:
            return queries(by_query, all_rows(length))

        # Every block of queries adds to the gradients of all keys, in float32.
        def accumulate(totals, parts):
            dq, dk, dv = queries(*parts)
            wide = (totals[0] + dk.astype(jnp.float32), totals[1] + dv.astype(jnp.float32))
            return wide, dq

        of_v = (*v.shape[:3], do.shape[-1])
        zeros = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32, of_v)
        (dk, dv), dq = lax.scan(accumulate, zeros, _split_queries(by_query, length, blocks))
        return _join_queries(dq, length), dk.astype(k.dtype), dv.astype(v.dtype)

    by_query = (q, do, do if do_for_v is None else do_for_v, lse, delta)
    bytes_per_sample = score_bytes(q.shape[1], length, k.shape[2])
    return over_samples(samples, (k, v, visibility, by_query), bytes_per_sample)
