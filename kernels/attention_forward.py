"""Flash attention, forward (Dao, 2023), for Triton.

A program takes one block of queries of one head and passes over the keys, block by block: scores
on chip, a running maximum and sum per row, and the output rescaled as the maximum grows. q is read
once, k and v once per block of queries (from the second-level cache), the output and the
log-sum-exp of each row are written once; scores and probabilities never leave the chip.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.attention_launch import Arrays, Program, Run, launch
from pbr_jax.kernels.attention_tiles import Tile, key_blocks, load, store


def attention_forward(arrays: Arrays, run: Run) -> tuple[jax.Array, jax.Array]:
    """Output in the dtype of `v` and log-sum-exp float32 `[B, H, N]` of softmax attention.

    Of `arrays` it reads q, k, v and visibility.
    """
    q, _, v = arrays[:3]
    results = (
        jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype),
        jax.ShapeDtypeStruct(q.shape[:3], jnp.float32),
    )
    out, lse = launch(_forward, arrays, results, "queries", run)
    return out, lse


def _forward(read: Arrays, out_ref, lse_ref, *, program: Program):
    # Its queries, their maximum, sum and weighted values stay in registers over all keys.
    queries = program.queries(pl.program_id(0))
    of_q, of_v, _ = program.channels
    head = pl.program_id(1)
    q = load(read.q, queries, of_q)

    def add(i, carry):
        total, top, weighted = carry
        keys = program.keys(i)
        tile = Tile(queries, keys, head, read.visibility, program.rules)
        products = triton.dot(q, load(read.k, keys, of_q), trans_b=True)
        scores, _ = tile.log2_scores(products)
        # A new maximum shrinks all that was summed under the old one.
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        # Dropout comes after the sum: a dropped key still counts in the denominator.
        total = total * shrink + jnp.sum(weights, axis=1)
        v = load(read.v, keys, of_v)
        weighted = weighted * shrink[:, None] + triton.dot(tile.dropped(weights).astype(v.dtype), v)
        return total, new_top, weighted

    rows = program.blocks.rows
    zeros = jnp.zeros((rows,), jnp.float32)
    start = (zeros, zeros - jnp.inf, jnp.zeros((rows, read.v.shape[-1]), jnp.float32))
    first, end = key_blocks(queries, program, read.visibility)
    total, top, weighted = lax.fori_loop(first, end, add, start)
    store(out_ref, queries, weighted / total[:, None], of_v)
    store(lse_ref, queries, top * math.log(2) + jnp.log(total))
