"""Flash attention, forward (Dao, 2023), for Triton.

A program takes one block of queries of one head and passes over the keys, block by block: scores
on chip, a running maximum and sum per row, and the output rescaled as the maximum grows. q is read
once, k and v once per block of queries (from the second-level cache), the output and the
log-sum-exp of each row are written once; scores and probabilities never leave the chip.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.kernels.attention_tiles import (
    Blocks,
    Side,
    Tile,
    head_spec,
    key_blocks,
    visibility_specs,
)


def attention_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    *,
    rules: Rules,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Output in the dtype of `v` and log-sum-exp float32 `[B, H, N]` of softmax attention.

    Args:
      q, k: `[B, H, N, C]`, `[B, H, M, C]`; any C, filled up to a power of two on chip.
      v: `[B, H, M, C']`.
      visibility: without a `mask`.
      rules: scale, causal, dropout.
      blocks: how to cut it.
      interpret: run in Pallas' interpreter.
    """
    batch, heads, num_queries, channels = q.shape
    num_keys, num_values = v.shape[2:]
    blocks = blocks.for_lengths(num_queries, num_keys)
    out_shape = (
        jax.ShapeDtypeStruct((batch, heads, num_queries, num_values), v.dtype),
        jax.ShapeDtypeStruct((batch, heads, num_queries), jnp.float32),
    )
    by_queries = functools.partial(head_spec, block=blocks.queries)
    by_keys = functools.partial(head_spec, block=blocks.keys)
    kernel = functools.partial(
        _forward,
        rules=rules,
        blocks=blocks,
        lengths=(num_queries, num_keys),
        channels=(channels, num_values),
    )
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(num_queries, blocks.queries), heads, batch),
        in_specs=[by_queries(q), by_keys(k), by_keys(v), visibility_specs(visibility, blocks)],
        out_specs=[by_queries(out) for out in out_shape],
        out_shape=out_shape,
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="attention_forward",
    )(q, k, v, visibility)


def _forward(q_ref, k_ref, v_ref, told, out_ref, lse_ref, *, rules, blocks, lengths, channels):
    num_queries, num_keys = lengths
    queries = Side(pl.program_id(0) * blocks.queries, blocks.queries, num_queries)
    head = pl.program_id(1)
    q = queries.load(q_ref, channels[0])

    def add(i, carry):
        total, top, weighted = carry
        keys = Side(i * blocks.keys, blocks.keys, num_keys)
        tile = Tile(queries, keys, head, told, rules)
        products = triton.dot(q, keys.load(k_ref, channels[0]), trans_b=True)
        scores, _ = tile.log2_scores(products)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=1)
        v = keys.load(v_ref, channels[1])
        weighted = weighted * shrink[:, None] + triton.dot(tile.dropped(weights).astype(v.dtype), v)
        return total, new_top, weighted

    zeros = jnp.zeros((blocks.queries,), jnp.float32)
    start = (zeros, zeros - jnp.inf, jnp.zeros((blocks.queries, v_ref.shape[-1]), jnp.float32))
    count = key_blocks(queries, blocks.keys, num_keys, told, rules)
    total, top, weighted = lax.fori_loop(0, count, add, start)
    queries.store(out_ref, weighted / total[:, None], channels[1])
    queries.store(lse_ref, top * math.log(2) + jnp.log(total))
