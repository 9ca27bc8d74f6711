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

from pbr_jax.kernels.parts import Part

SLICES = 8  # bits of a byte


class Blocks(NamedTuple):
    """How the products are cut.

    Attributes:
      tokens: of a part of a tile, a power of two of at least 16.
      parts: of a tile, one below the other; GELU takes them in turn, for want of registers.
      bytes: of a plane, an eighth of the features of a tile; a power of two of at least 2.
      depth: of the product that is multiplied at a time, a power of two of at least 16.
      num_warps, num_stages: of a block of threads, and of its pipeline of loads.
    """

    tokens: int
    parts: int
    bytes: int
    depth: int
    num_warps: int
    num_stages: int


class Features(NamedTuple):
    """The features of a tile, one slice after the other.

    Attributes:
      in_plane: the bytes of a plane that they share.
      total: F.
    """

    in_plane: Part
    total: int

    @property
    def bits(self) -> jax.Array:
        """Which bit of its byte a feature has."""
        return lax.div(self._order(), jnp.int32(self.in_plane.size))

    @property
    def bytes(self) -> jax.Array:
        """Which byte of a plane it has a bit of."""
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
    starts = [(first + i) * blocks.tokens for i in range(blocks.parts)]
    in_plane = Part(pl.program_id(0) * blocks.bytes, blocks.bytes, num_bytes)
    parts = [Part(start, blocks.tokens, num_tokens) for start in starts]
    return parts, Features(in_plane, num_features)


def products(x_ref, w_ref, parts, features: Features, blocks: Blocks, *, transposed: bool):
    """`x W`, or `x W^T`, float32, of each part of a tile."""
    num_inner = x_ref.shape[1]

    def multiply(step, totals):
        depth = Part(step * blocks.depth, blocks.depth, num_inner)
        rows, columns = (features, depth) if transposed else (depth, features)
        at = places(rows.indices, columns.indices)
        w_part = triton.load(w_ref.at[at], mask=both(rows, columns), other=0)
        x_parts = [
            triton.load(x_ref.at[tokens.slice, depth.slice], mask=both(tokens, depth), other=0)
            for tokens in parts
        ]
        return tuple(
            total + triton.dot(x_part, w_part, trans_b=transposed)
            for total, x_part in zip(totals, x_parts, strict=True)
        )

    shape = (blocks.tokens, SLICES * blocks.bytes)
    zeros = tuple(jnp.zeros(shape, jnp.float32) for _ in parts)
    return lax.fori_loop(0, pl.cdiv(num_inner, blocks.depth), multiply, zeros)


def places(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of all elements in these rows and columns."""
    shape = (rows.size, columns.size)
    return lax.broadcast_in_dim(rows, shape, (0,)), lax.broadcast_in_dim(columns, shape, (1,))


def both(rows: Part | Features, columns: Part | Features) -> jax.Array:
    """The mask of what lies inside, of rows and columns."""
    return rows.inside[:, None] & columns.inside[None]


def call(kernel, name: str, x, num_features: int, blocks: Blocks, out_shape, interpret: bool):
    """The kernel, run with a block of threads per tile; those of the same tokens in sequence."""
    num_tokens, num_inner = x.shape
    grid = (
        pl.cdiv(pl.cdiv(num_features, SLICES), blocks.bytes),
        pl.cdiv(num_tokens, blocks.parts * blocks.tokens),
    )
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(
            num_warps=blocks.num_warps, num_stages=blocks.num_stages
        ),
        interpret=interpret,
        name=name,
        metadata={"flops": str(2 * num_tokens * num_inner * num_features)},
    )
