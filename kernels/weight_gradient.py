"""Weight and bias gradient of a linear layer, `dW = x^T dy`, `db = sum(dy)`, in one pass over dy.

With few columns of x the product is limited by reading dy. A block of threads takes a tile of dW
and a share of the tokens, and reads its part of dy once for both results:

    x  [T, K]  a tile of K, a share of T  ─┬─ x^T dy ──► partial dW [S, K, F] ─ sum ─► dW [K, F]
    dy [T, F]  a tile of F, the same share ┘  sum(dy) ─► partial db [S, F] ──── sum ─► db [F]

The S shares are added in their order, without atomics: the same input gives the same bits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.parts import Part


class Blocks(NamedTuple):
    """How the product is cut.

    Attributes:
      tokens, rows, features: of one tile of x and dy, powers of two of at least 16.
      num_warps, num_stages: of a block of threads, and of its pipeline of loads.
      num_blocks: blocks of threads to aim at: as many as the card runs at a time.
    """

    tokens: int
    rows: int
    features: int
    num_warps: int
    num_stages: int
    num_blocks: int


# Least compute capability and bytes of an element -> blocks. Chosen by what ptxas says of them: no
# spills, and two blocks on a multiprocessor. Nothing was timed on a GPU yet.
_BLOCKS = {
    ((9, 0), 2): Blocks(64, 128, 128, num_warps=8, num_stages=3, num_blocks=132),
    ((9, 0), 4): Blocks(32, 128, 64, num_warps=4, num_stages=3, num_blocks=132),
    ((8, 0), 2): Blocks(64, 128, 64, num_warps=4, num_stages=3, num_blocks=256),
    ((8, 0), 4): Blocks(32, 128, 64, num_warps=4, num_stages=3, num_blocks=256),
}


def blocks_for(capability: tuple[int, int] | None, dtype: jax.typing.DTypeLike) -> Blocks:
    """The blocks for a card (None, in the interpreter: those of the oldest) and an input dtype."""
    generation = (9, 0) if capability is not None and capability >= (9, 0) else (8, 0)
    return _BLOCKS[generation, jnp.dtype(dtype).itemsize]


def weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    columns: jax.Array | None = None,
    *,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`dW` float32 `[K, F]` and `db` float32 `[F]`.

    Args:
      x: `[T, K]`, packed; or, with `columns`, `[T, D]`, and the kernel gathers them from it, an
        element at a time and once for every tile of features.
      dy: `[T, F]`, of the dtype of `x`: bfloat16, float16 or float32. Sums are float32; products of
        float32 have the precision of `jax.default_matmul_precision`, by default TF32 as XLA's.
      columns: int32 `[K]`; D marks an unused slot, whose row of dW is zero.
      blocks: see `blocks_for`.
      interpret: run in Pallas' interpreter.
    """
    num_tokens, width = x.shape
    num_features = dy.shape[1]
    num_rows = width if columns is None else columns.shape[0]
    tiles = pl.cdiv(num_features, blocks.features), pl.cdiv(num_rows, blocks.rows)
    token_tiles = pl.cdiv(num_tokens, blocks.tokens)
    shares = max(1, min(token_tiles, blocks.num_blocks // (tiles[0] * tiles[1])))
    steps = pl.cdiv(token_tiles, shares)

    def kernel(x_ref, dy_ref, *rest):
        *columns_ref, dw_ref, db_ref = rest
        share = pl.program_id(2)
        features = Part(pl.program_id(0) * blocks.features, blocks.features, num_features)
        rows = Part(pl.program_id(1) * blocks.rows, blocks.rows, num_rows)
        read = rows.inside
        if columns_ref:
            chosen = triton.load(columns_ref[0].at[rows.slice], mask=rows.inside, other=width)
            read = chosen < width

        def add(step, totals):
            dw, db = totals
            tokens = Part((share * steps + step) * blocks.tokens, blocks.tokens, num_tokens)
            source = x_ref.at[tokens.slice, rows.slice]
            if columns_ref:
                shape = (blocks.tokens, blocks.rows)
                source = x_ref.at[
                    lax.broadcast_in_dim(tokens.indices, shape, (0,)),
                    lax.broadcast_in_dim(chosen, shape, (1,)),
                ]
            x_part = triton.load(source, mask=tokens.inside[:, None] & read[None], other=0)
            dy_part = triton.load(
                dy_ref.at[tokens.slice, features.slice],
                mask=tokens.inside[:, None] & features.inside[None],
                other=0,
            )
            dw += triton.dot(x_part, dy_part, trans_a=True)
            return dw, db + jnp.sum(dy_part.astype(jnp.float32), axis=0)

        zeros = (
            jnp.zeros((blocks.rows, blocks.features), jnp.float32),
            jnp.zeros((blocks.features,), jnp.float32),
        )
        dw, db = lax.fori_loop(0, steps, add, zeros)
        triton.store(
            dw_ref.at[share, rows.slice, features.slice],
            dw,
            mask=rows.inside[:, None] & features.inside[None],
        )

        @pl.when(pl.program_id(1) == 0)
        def _():
            triton.store(db_ref.at[share, features.slice], db, mask=features.inside)

    dw, db = pl.pallas_call(
        kernel,
        grid=(*tiles, shares),
        out_shape=(
            jax.ShapeDtypeStruct((shares, num_rows, num_features), jnp.float32),
            jax.ShapeDtypeStruct((shares, num_features), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(
            num_warps=blocks.num_warps, num_stages=blocks.num_stages
        ),
        interpret=interpret,
        name="weight_gradient" if columns is None else "gathered_weight_gradient",
        metadata={"flops": str(2 * num_tokens * num_rows * num_features)},
    )(x, dy, *(() if columns is None else (columns,)))
    return jnp.sum(dw, axis=0), jnp.sum(db, axis=0)
