"""Tiles of a product whose features come in eight slices, `ceil(F / 8)` apart.

Those are the features that share the bytes of a plane of `pbr_jax.ops.gelu_codes.pack`. As tensor
cores lay out the result, all bits of a byte are then in one thread.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.tiles import Blocks, Part, both, load, places

SLICES = 8  # bits of a byte

# Least compute capability -> bytes of an element -> blocks; rows are tokens, columns bytes of a
# plane, an eighth of the features of a tile. GELU takes the parts in turn, for want of registers.
# No spills by what ptxas says, and 32 bytes of a row of W at least. On 9.0 one block of threads on
# a multiprocessor, with the largest tile, since reading x and W from the second-level cache limits
# the product; on 8.x two blocks, one of which multiplies while the other computes GELU. Nothing was
# timed on a GPU yet.
TILES = {
    (9, 0): {
        2: Blocks(64, 32, 64, parts=2, num_warps=8, num_stages=4),
        4: Blocks(64, 16, 32, parts=2, num_warps=8, num_stages=3),
    },
    (8, 0): {
        2: Blocks(64, 16, 32, parts=2, num_warps=4, num_stages=4),
        4: Blocks(64, 16, 32, parts=1, num_warps=4, num_stages=3),
    },
}


def for_features(blocks: Blocks, num_features: int) -> Blocks:
    """`blocks`, with smaller tiles and more threads where tiles reach over the end of F.

    The masks that these need take registers.
    """
    whole = num_features % (SLICES * blocks.columns) == 0
    return blocks if whole else blocks._replace(parts=1, num_warps=8)


class Features(NamedTuple):
    """The features of a tile, one slice after the other."""

    in_plane: Part  # the bytes of a plane that they share
    total: int  # F

    @property
    def bits(self) -> jax.Array:
        """Bit that a feature has of its byte."""
        return lax.div(self._order(), jnp.int32(self.in_plane.size))

    @property
    def bytes(self) -> jax.Array:
        """Byte of a plane that holds its bit."""
        return self.in_plane.first + lax.rem(self._order(), jnp.int32(self.in_plane.size))

    @property
    def indices(self) -> jax.Array:
        """At least F for what lies behind the end."""
        indices = self.bits * self.in_plane.length + self.bytes
        if self.in_plane.whole:
            return indices
        return jnp.where(self.bytes < self.in_plane.length, indices, self.total)

    @property
    def inside(self) -> jax.Array:
        if self.in_plane.whole and SLICES * self.in_plane.length == self.total:
            return jnp.ones((SLICES * self.in_plane.size,), bool)  # nothing to keep in registers
        return self.indices < self.total

    def _order(self) -> jax.Array:
        # Divided by lax: with what jnp adds for negative numbers the compiler no longer sees that
        # a slice is contiguous, and loads W by element.
        return lax.iota(jnp.int32, SLICES * self.in_plane.size)


def tile(num_tokens: int, num_features: int, blocks: Blocks) -> tuple[list[Part], Features]:
    """The parts of the tokens, and the features, of this block of threads."""
    num_bytes, first = pl.cdiv(num_features, SLICES), pl.program_id(1) * blocks.parts
    starts = [(first + i) * blocks.rows for i in range(blocks.parts)]
    in_plane = Part(pl.program_id(0) * blocks.columns, blocks.columns, num_bytes)
    parts = [Part(start, blocks.rows, num_tokens) for start in starts]
    return parts, Features(in_plane, num_features)


def products(x_ref, w_ref, parts, features: Features, blocks: Blocks, *, transposed: bool):
    """`x W`, or `x W^T`, float32, of each part of a tile."""
    num_inner = x_ref.shape[1]

    # One load of W serves all parts. The slices of its features are not contiguous, so it is read
    # by index; behind the end of the inner axis both factors are zero.
    def multiply(step, totals):
        depth = Part(step * blocks.depth, blocks.depth, num_inner)
        rows, columns = (features, depth) if transposed else (depth, features)
        at = places(rows.indices, columns.indices)
        w_part = triton.load(w_ref.at[at], mask=both(rows, columns), other=0)
        x_parts = [load(x_ref, tokens, depth) for tokens in parts]
        return tuple(
            total + triton.dot(x_part, w_part, trans_b=transposed)
            for total, x_part in zip(totals, x_parts, strict=True)
        )

    shape = (blocks.rows, SLICES * blocks.columns)
    zeros = tuple(jnp.zeros(shape, jnp.float32) for _ in parts)
    return lax.fori_loop(0, pl.cdiv(num_inner, blocks.depth), multiply, zeros)


def call(kernel, name: str, x, num_features: int, blocks: Blocks, out_shape, interpret: bool):
    """The kernel, run with a block of threads per tile; those of the same tokens in sequence."""
    num_tokens, num_inner = x.shape
    grid = (
        pl.cdiv(pl.cdiv(num_features, SLICES), blocks.columns),
        pl.cdiv(num_tokens, blocks.parts * blocks.rows),
    )
    told = {"flops": str(2 * num_tokens * num_inner * num_features)}
    return blocks.call(kernel, name, grid, out_shape, interpret, metadata=told)
