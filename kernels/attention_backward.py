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

from pbr_jax.kernels.attention_arguments import HIDDEN
from pbr_jax.kernels.attention_launch import Arrays, Program, Run, launch, padded
from pbr_jax.kernels.attention_tiles import Tile, key_blocks, load, query_blocks, store


def query_gradient(arrays: Arrays, run: Run) -> jax.Array:
    """Gradient of q, `[B, H, N, C]`, from blocks of keys.

    It reads all `arrays` but `do_for_v`; `do` has the channels of v.
    """
    like_q = jax.ShapeDtypeStruct(arrays.q.shape, arrays.q.dtype)
    (dq,) = launch(_query_gradient, arrays, [like_q], "queries", run)
    return dq


def _query_gradient(read: Arrays, dq_ref, *, program: Program):
    # Its queries and their dq stay in registers over all keys.
    queries = program.queries(pl.program_id(0))
    of_q, of_v, _ = program.channels
    head = pl.program_id(1)
    q, do = load(read.q, queries, of_q), load(read.do, queries, of_v)
    lse, delta = load(read.lse, queries), load(read.delta, queries)

    def add(i, dq):
        keys = program.keys(i)
        tile = Tile(queries, keys, head, read.visibility, program.rules)
        k = load(read.k, keys, of_q)
        scores, seen = tile.log2_scores(triton.dot(q, k, trans_b=True))
        p = tile.probabilities(scores, lse)
        dp = tile.dropped(triton.dot(do, load(read.v, keys, of_v), trans_b=True))
        ds = _where(seen, p * (dp - delta[:, None]))
        return dq + triton.dot(ds.astype(k.dtype), k)

    first, end = key_blocks(queries, program, read.visibility)
    dq = lax.fori_loop(first, end, add, jnp.zeros(q.shape, jnp.float32))
    store(dq_ref, queries, dq * program.rules.scale, of_q)


def query_gradient_of_rows(arrays: Arrays, run: Run) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient of q, and lse and delta float32 `[B, H, N]`, from whole rows of the scores.

    Arguments as for `query_gradient`, without lse and delta; all keys must fit into one block.
    """
    q = arrays.q
    assert run.blocks.columns >= arrays.k.shape[2], "a row must fit into one block"
    statistic = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    results = (jax.ShapeDtypeStruct(q.shape, q.dtype), statistic, statistic)
    # Triton lays the warps of connected products along the longer side of whichever it meets first:
    # with no more channels than queries in a tile, every warp would hold all scores.
    dq, lse, delta = launch(_query_gradient_of_rows, arrays, results, "queries", run, square=False)
    return dq, lse, delta


def _query_gradient_of_rows(read: Arrays, dq_ref, lse_ref, delta_ref, *, program: Program):
    # Its rows of scores are whole, so their softmax is exact at once and nothing is rescaled.
    queries, keys = program.queries(pl.program_id(0)), program.keys(0)
    of_q, of_v, _ = program.channels
    tile = Tile(queries, keys, pl.program_id(1), read.visibility, program.rules)
    q, k = load(read.q, queries, of_q), load(read.k, keys, of_q)
    scores, seen = tile.log2_scores(triton.dot(q, k, trans_b=True))
    top = jnp.max(scores, axis=1)
    weights = jnp.exp2(scores - top[:, None])
    total = jnp.sum(weights, axis=1)
    p = weights / total[:, None]
    do, v = load(read.do, queries, of_v), load(read.v, keys, of_v)
    dp = tile.dropped(triton.dot(do, v, trans_b=True))
    delta = jnp.sum(p * dp, axis=1)
    ds = _where(seen, p * (dp - delta[:, None]))
    store(dq_ref, queries, triton.dot(ds.astype(k.dtype), k) * program.rules.scale, of_q)
    store(lse_ref, queries, top * math.log(2) + jnp.log(total))
    store(delta_ref, queries, delta)


def key_gradients(arrays: Arrays, run: Run) -> tuple[jax.Array, jax.Array]:
    """Gradients of k, `[B, Hkv, M, C]`, and of v, `[B, Hkv, M, channels of do]`.

    Arguments as for `query_gradient`, but `do` has all channels, and `do_for_v` those that v has if
    these are fewer.
    """
    k, v = arrays.k, arrays.v
    results = (
        jax.ShapeDtypeStruct(k.shape, k.dtype),
        jax.ShapeDtypeStruct((*v.shape[:3], arrays.do.shape[3]), v.dtype),
    )
    dk, dv = launch(_key_gradients, arrays, results, "keys", run)
    return dk, dv


def _key_gradients(read: Arrays, dk_ref, dv_ref, *, program: Program):
    # Its keys, their values, dk and dv stay in registers over all queries of its group of heads.
    keys = program.keys(pl.program_id(0))
    of_q, of_v, of_out = program.channels
    place = pl.program_id(1)
    k, v = load(read.k, keys, of_q), load(read.v, keys, of_v)

    def add(member, i, carry):
        dk, dv = carry
        queries, of = program.queries(i), functools.partial(load, member=member)
        head = place if member is None else place * program.group + member
        tile = Tile(queries, keys, head, read.visibility, program.rules, flipped=True)
        q, do = of(read.q, queries, of_q), of(read.do, queries, of_out)
        # Past the last query the probabilities vanish.
        lse, delta = of(read.lse, queries, other=-HIDDEN), of(read.delta, queries)
        scores, seen = tile.log2_scores(triton.dot(k, q, trans_b=True))
        p = tile.probabilities(scores, lse)
        # dv takes the probabilities that dropout left, ds those before it.
        dv = dv + triton.dot(tile.dropped(p).astype(do.dtype), do)
        do_for_v = do if read.do_for_v is None else of(read.do_for_v, queries, of_v)
        dp = tile.dropped(triton.dot(v, do_for_v, trans_b=True))
        ds = _where(seen, p * (dp - delta[None, :]))
        return dk + triton.dot(ds.astype(q.dtype), q), dv

    zeros = (
        jnp.zeros(k.shape, jnp.float32),
        jnp.zeros((program.blocks.columns, padded(of_out)), jnp.float32),
    )
    first, end = query_blocks(keys, program, read.visibility)

    def add_head(member, carry):
        return lax.fori_loop(first, end, functools.partial(add, member), carry)

    alone = program.group == 1
    dk, dv = add_head(None, zeros) if alone else lax.fori_loop(0, program.group, add_head, zeros)
    store(dk_ref, keys, dk * program.rules.scale, of_q)
    store(dv_ref, keys, dv, of_out)


def _where(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    """`x` where it is seen: no gradient reaches q and k through a hidden key."""
    return x if seen is None else jnp.where(seen, x, 0.0)
