"""Weight and bias gradient of a linear layer, `dW = x^T dy`, `db = sum(dy)`, in one pass over dy.

With few columns of x the product is limited by reading dy. A block of threads takes a tile of dW
and a share of the tokens, and reads its part of dy once for both results:

    x  [T, K]  a tile of K, a share of T  ─┬─ x^T dy ──► partial dW [S, K, F] ─ sum ─► dW [K, F]
    dy [T, F]  a tile of F, the same share ┘  sum(dy) ─► partial db [S, F] ──── sum ─► db [F]

The S shares are added in their order, without atomics: the same input gives the same bits.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.tiles import Blocks, Part, both, load

# Least compute capability -> bytes of an element -> blocks; rows are those of dW, the depth is
# tokens, all powers of two of at least 16. Chosen by what ptxas says of them: no spills, and two
# blocks on a multiprocessor, as many as the card runs at a time. Nothing was timed on a GPU yet.
TILES = {
    (9, 0): {
        2: Blocks(128, 128, 64, num_warps=8, num_stages=3, num_blocks=132),
        4: Blocks(128, 64, 32, num_warps=4, num_stages=3, num_blocks=132),
    },
    (8, 0): {
        2: Blocks(128, 64, 64, num_warps=4, num_stages=3, num_blocks=256),
        4: Blocks(128, 64, 32, num_warps=4, num_stages=3, num_blocks=256),
    },
}


def weight_gradient(
    x: jax.Array, dy: jax.Array, *, blocks: Blocks, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`dW` float32 `[K, F]` and `db` float32 `[F]`.

    Args:
      x: `[T, K]`, packed.
      dy: `[T, F]`, of the dtype of `x`: bfloat16, float16 or float32. Sums are float32; products of
        float32 have the precision of `jax.default_matmul_precision`, by default TF32 as XLA's.
    """
    num_tokens, num_rows = x.shape
    num_features = dy.shape[1]
    # Tiles of dW rarely fill a card, so the tokens are shared out until its blocks are all busy.
    tiles = pl.cdiv(num_features, blocks.columns), pl.cdiv(num_rows, blocks.rows)
    token_tiles = pl.cdiv(num_tokens, blocks.depth)
    shares = max(1, min(token_tiles, blocks.num_blocks // (tiles[0] * tiles[1])))
    steps = pl.cdiv(token_tiles, shares)

    def kernel(x_ref, dy_ref, dw_ref, db_ref):
        share = pl.program_id(2)
        features = Part(pl.program_id(0) * blocks.columns, blocks.columns, num_features)
        rows = Part(pl.program_id(1) * blocks.rows, blocks.rows, num_rows)
        kept = rows.inside  # the same in every step

        # The tile of dW stays in registers over all tokens of the share. Tokens behind the end
        # read as zero in x and dy, so the last share adds nothing for them.
        def add(step, totals):
            dw, db = totals
            tokens = Part((share * steps + step) * blocks.depth, blocks.depth, num_tokens)
            x_part = triton.load(
                x_ref.at[tokens.slice, rows.slice],
                mask=tokens.inside[:, None] & kept[None],
                other=0,
            )
            dy_part = load(dy_ref, tokens, features)
            dw += triton.dot(x_part, dy_part, trans_a=True)
            return dw, db + jnp.sum(dy_part.astype(jnp.float32), axis=0)

        zeros = (
            jnp.zeros((blocks.rows, blocks.columns), jnp.float32),
            jnp.zeros((blocks.columns,), jnp.float32),
        )
        dw, db = lax.fori_loop(0, steps, add, zeros)
        at = dw_ref.at[share, rows.slice, features.slice]
        triton.store(at, dw, mask=both(rows, features))

        # All tiles of the same features have summed the same dy; the first of them writes it.
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
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="weight_gradient",
        metadata={"flops": str(2 * num_tokens * num_rows * num_features)},
    )(x, dy)
    return jnp.sum(dw, axis=0), jnp.sum(db, axis=0)
