"""Gradients of softmax attention, for Triton, without atomic additions: the same bits every time.

Two passes recompute the probabilities from q, k and the log-sum-exp of each row. The first takes a
block of queries over all keys and writes dq; the second a block of keys over all queries and writes
dk and dv. Their scores lie the other way round, keys along the rows, so that the probabilities are
already in place for the products with do and q.

The queries' pass has two forms. With the log-sum-exp and `delta = sum(p * dp)` of the forward pass
it goes over blocks of keys (FlashAttention). Without, it holds whole rows of the scores on chip,
and hands what it found on to the second pass: nothing of the forward pass but q, k and v was kept.

Everything also works on q, k and v of fewer channels than the output (the sparse attention of
PreBackRazor++): `do_for_v` are the channels of `do` that go with the channels of v.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.attention_arguments import HIDDEN, Rules, Visibility
from pbr_jax.kernels.attention_tiles import (
    Blocks,
    Side,
    Tile,
    head_spec,
    key_blocks,
    padded,
    query_blocks,
    visibility_specs,
)


def query_gradient(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    visibility: Visibility,
    *,
    rules: Rules,
    blocks: Blocks,
    interpret: bool = False,
) -> jax.Array:
    """Gradient of q, `[B, H, N, C]`, from blocks of keys.

    Args:
      q, k, v, visibility, rules: as in `attention_forward`.
      do: cotangent of the output, `[B, H, N, C']`: the channels that v has.
      lse, delta: float32 `[B, H, N]`, log-sum-exp of the scores and `sum(p * dp)` over the keys.
      blocks, interpret: as in `attention_forward`.
    """
    blocks = blocks.for_lengths(q.shape[2], k.shape[2])
    by_queries = functools.partial(head_spec, block=blocks.queries)
    by_keys = functools.partial(head_spec, block=blocks.keys)
    return pl.pallas_call(
        functools.partial(
            _query_gradient,
            rules=rules,
            blocks=blocks,
            lengths=(q.shape[2], k.shape[2]),
            channels=(q.shape[3], v.shape[3]),
        ),
        grid=(pl.cdiv(q.shape[2], blocks.queries), *q.shape[1::-1]),
        in_specs=[
            by_queries(q),
            by_keys(k),
            by_keys(v),
            by_queries(do),
            by_queries(lse),
            by_queries(delta),
            visibility_specs(visibility, blocks),
        ],
        out_specs=by_queries(q),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="attention_query_gradient",
    )(q, k, v, do, lse, delta, visibility)


def _query_gradient(
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, told, dq_ref,
    *, rules, blocks, lengths, channels,
):  # fmt: skip
    queries = Side(pl.program_id(0) * blocks.queries, blocks.queries, lengths[0])
    head = pl.program_id(1)
    q, do = queries.load(q_ref, channels[0]), queries.load(do_ref, channels[1])
    lse, delta = queries.load(lse_ref), queries.load(delta_ref)

    def add(i, dq):
        keys = Side(i * blocks.keys, blocks.keys, lengths[1])
        tile = Tile(queries, keys, head, told, rules)
        k = keys.load(k_ref, channels[0])
        scores, seen = tile.log2_scores(triton.dot(q, k, trans_b=True))
        p = tile.probabilities(scores, lse)
        dp = tile.dropped(triton.dot(do, keys.load(v_ref, channels[1]), trans_b=True))
        ds = _where(seen, p * (dp - delta[:, None]))
        return dq + triton.dot(ds.astype(k.dtype), k)

    count = key_blocks(queries, blocks.keys, lengths[1], told, rules)
    dq = lax.fori_loop(0, count, add, jnp.zeros(q.shape, jnp.float32))
    queries.store(dq_ref, dq * rules.scale, channels[0])


def query_gradient_of_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
    visibility: Visibility,
    *,
    rules: Rules,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient of q, and lse and delta float32 `[B, H, N]`, from whole rows of the scores.

    Arguments as for `query_gradient`; all keys must fit into one block, `blocks.keys`.
    """
    blocks = blocks.for_lengths(q.shape[2], k.shape[2])
    assert blocks.keys >= k.shape[2], "a row must fit into one block"
    # Triton lays the warps of connected products along the longer side of whichever it meets first:
    # with no more channels than queries in a tile, every warp would hold all of the scores.
    least = 2 * blocks.queries
    by_queries = functools.partial(head_spec, block=blocks.queries, least_channels=least)
    by_keys = functools.partial(head_spec, block=blocks.keys, least_channels=least)
    statistic = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    out_shape = (jax.ShapeDtypeStruct(q.shape, q.dtype), statistic, statistic)
    return pl.pallas_call(
        functools.partial(
            _query_gradient_of_rows,
            rules=rules,
            blocks=blocks,
            lengths=(q.shape[2], k.shape[2]),
            channels=(q.shape[3], v.shape[3]),
        ),
        grid=(pl.cdiv(q.shape[2], blocks.queries), *q.shape[1::-1]),
        in_specs=[
            by_queries(q),
            by_keys(k),
            by_keys(v),
            by_queries(do),
            visibility_specs(visibility, blocks),
        ],
        out_specs=[by_queries(out) for out in out_shape],
        out_shape=out_shape,
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="attention_query_gradient_of_rows",
    )(q, k, v, do, visibility)


def _query_gradient_of_rows(
    q_ref, k_ref, v_ref, do_ref, told, dq_ref, lse_ref, delta_ref,
    *, rules, blocks, lengths, channels,
):  # fmt: skip
    queries = Side(pl.program_id(0) * blocks.queries, blocks.queries, lengths[0])
    keys = Side(0, blocks.keys, lengths[1])
    tile = Tile(queries, keys, pl.program_id(1), told, rules)
    q, k = queries.load(q_ref, channels[0]), keys.load(k_ref, channels[0])
    scores, seen = tile.log2_scores(triton.dot(q, k, trans_b=True))
    top = jnp.max(scores, axis=1)
    weights = jnp.exp2(scores - top[:, None])
    total = jnp.sum(weights, axis=1)
    p = weights / total[:, None]
    do, v = queries.load(do_ref, channels[1]), keys.load(v_ref, channels[1])
    dp = tile.dropped(triton.dot(do, v, trans_b=True))
    delta = jnp.sum(p * dp, axis=1)
    ds = _where(seen, p * (dp - delta[:, None]))
    queries.store(dq_ref, triton.dot(ds.astype(k.dtype), k) * rules.scale, channels[0])
    queries.store(lse_ref, top * math.log(2) + jnp.log(total))
    queries.store(delta_ref, delta)


def key_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    visibility: Visibility,
    *,
    do_for_v: jax.Array | None = None,
    rules: Rules,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of k, `[B, H, M, C]`, and of v, `[B, H, M, channels of do]`.

    Arguments as for `query_gradient`, but `do` has all channels, and `do_for_v` those that v has if
    these are fewer.
    """
    blocks = blocks.for_lengths(q.shape[2], k.shape[2])
    by_queries = functools.partial(head_spec, block=blocks.queries)
    by_keys = functools.partial(head_spec, block=blocks.keys)
    out_shape = (
        jax.ShapeDtypeStruct(k.shape, k.dtype),
        jax.ShapeDtypeStruct((*v.shape[:3], do.shape[3]), v.dtype),
    )
    return pl.pallas_call(
        functools.partial(
            _key_gradients,
            rules=rules,
            blocks=blocks,
            lengths=(q.shape[2], k.shape[2]),
            channels=(q.shape[3], v.shape[3], do.shape[3]),
        ),
        grid=(pl.cdiv(k.shape[2], blocks.keys), *k.shape[1::-1]),
        in_specs=[
            by_queries(q),
            by_keys(k),
            by_keys(v),
            by_queries(do),
            None if do_for_v is None else by_queries(do_for_v),
            by_queries(lse),
            by_queries(delta),
            visibility_specs(visibility, blocks),
        ],
        out_specs=[by_keys(out) for out in out_shape],
        out_shape=out_shape,
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="attention_key_gradients",
    )(q, k, v, do, do_for_v, lse, delta, visibility)


def _key_gradients(
    q_ref, k_ref, v_ref, do_ref, do_for_v_ref, lse_ref, delta_ref, told, dk_ref, dv_ref,
    *, rules, blocks, lengths, channels,
):  # fmt: skip
    keys = Side(pl.program_id(0) * blocks.keys, blocks.keys, lengths[1])
    head = pl.program_id(1)
    k, v = keys.load(k_ref, channels[0]), keys.load(v_ref, channels[1])

    def add(i, carry):
        dk, dv = carry
        queries = Side(i * blocks.queries, blocks.queries, lengths[0])
        tile = Tile(queries, keys, head, told, rules, flipped=True)
        q, do = queries.load(q_ref, channels[0]), queries.load(do_ref, channels[2])
        # Past the last query the probabilities vanish.
        lse, delta = queries.load(lse_ref, other=-HIDDEN), queries.load(delta_ref)
        scores, seen = tile.log2_scores(triton.dot(k, q, trans_b=True))
        p = tile.probabilities(scores, lse)
        dv = dv + triton.dot(tile.dropped(p).astype(do.dtype), do)
        do_for_v = do if do_for_v_ref is None else queries.load(do_for_v_ref, channels[1])
        dp = tile.dropped(triton.dot(v, do_for_v, trans_b=True))
        ds = _where(seen, p * (dp - delta[None, :]))
        return dk + triton.dot(ds.astype(q.dtype), q), dv

    zeros = (
        jnp.zeros(k.shape, jnp.float32),
        jnp.zeros((blocks.keys, padded(channels[2])), jnp.float32),
    )
    first, end = query_blocks(keys, blocks.queries, lengths[0], told, rules)
    dk, dv = lax.fori_loop(first, end, add, zeros)
    keys.store(dk_ref, dk * rules.scale, channels[0])
    keys.store(dv_ref, dv, channels[2])


def _where(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if seen is None else jnp.where(seen, x, 0.0)
