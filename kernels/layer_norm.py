"""LayerNorm forward and backward, each in one pass over its inputs.

    forward   x [T, D]  whole rows ── mean, rstd ─┬─► y
                                                  └─► x̂, or its int8 codes with a scale per group
    backward  dy, x̂ or codes, rstd, skip ─┬─► dx + skip
                                          └─► partial dscale, dbias [S, D] ── sum ──► [D]

A block of threads takes whole rows, in a tile whose width is D filled up to a power of two; what
lies behind D is neither read nor written. In the backward pass it takes a share of the tokens and
keeps the sums over them; the S shares are added in their order, without atomics: the same input
gives the same bits.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels import tiles
from pbr_jax.kernels.tiles import Blocks, Part

GROUP = 64
"""Channels that share an int8 scale."""
LARGEST_WIDTH = 4096


# Least compute capability -> blocks: a tile is one row of the largest width or several narrower
# ones. No spills at any width, and two blocks of the backward pass on each multiprocessor of the
# largest card. Nothing was timed on a GPU yet.
TILES = {
    (9, 0): Blocks(1, LARGEST_WIDTH, num_warps=8, num_blocks=264),
    (8, 0): Blocks(1, LARGEST_WIDTH, num_warps=8, num_blocks=256),
}


def forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float,
    int8: bool,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """`y`, the normalised input, `rstd` float32 `[T]`, and the scales of int8 codes or None.

    Args:
      x: `[T, D]`, D at most `LARGEST_WIDTH`; computed in float32.
      scale, bias: float32 `[D]`.
      epsilon: added to the variance.
      int8: the normalised input as int8 codes with bfloat16 scales `[T, ceil(D / 64)]`, or else in
        the dtype of `x`, without scales.
    """
    num_tokens, width = x.shape
    tile = _tile(blocks, num_tokens, width)

    # The tile of x stays in registers from its one load to the last store.
    def kernel(x_ref, scale_ref, bias_ref, y_ref, rstd_ref, x_hat_ref, *scales_ref):
        tokens = tile.tokens(pl.program_id(0))
        wide = tile.load(x_ref, tokens)
        # Two passes over the registers: a large mean costs no accuracy. Behind the end lies zero,
        # which may not become minus the mean.
        mean = jnp.sum(wide, axis=1, keepdims=True) / width
        centered = jnp.where(tile.columns.inside[None], wide - mean, 0.0)
        variance = jnp.sum(centered * centered, axis=1) / width
        rstd = lax.rsqrt(variance + epsilon)
        x_hat = centered * rstd[:, None]
        triton.store(rstd_ref.at[tokens.slice], rstd, mask=tokens.inside)
        y = x_hat * tile.load_row(scale_ref)[None] + tile.load_row(bias_ref)[None]
        tile.store(y_ref, tokens, y)
        if not int8:
            tile.store(x_hat_ref, tokens, x_hat)
            return
        grouped = x_hat.reshape(tile.rows, -1, GROUP)
        largest = jnp.max(jnp.abs(grouped), axis=2)
        # Rounded up, so that the largest entry stays within 127 after the cast.
        scales = (largest * (1 + 2**-7) / 127).astype(jnp.bfloat16)
        step = scales.astype(jnp.float32)
        step = jnp.where(step == 0, 1.0, step)
        codes = jnp.floor(grouped / step[:, :, None] + 0.5)  # Triton has no rounding to even
        tile.store(x_hat_ref, tokens, codes.reshape(tile.rows, -1))
        tiles.store(scales_ref[0], tokens, tile.groups, scales)

    out_shape = [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((num_tokens,), jnp.float32),
        jax.ShapeDtypeStruct(x.shape, jnp.int8 if int8 else x.dtype),
    ]
    if int8:
        out_shape.append(jax.ShapeDtypeStruct((num_tokens, tile.groups.length), jnp.bfloat16))
    y, rstd, x_hat, *scales = pl.pallas_call(
        kernel,
        grid=(pl.cdiv(num_tokens, tile.rows),),
        out_shape=out_shape,
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="layer_norm",
    )(x, scale, bias)
    return y, x_hat, rstd, scales[0] if int8 else None


def backward(
    dy: jax.Array,
    x_hat: jax.Array,
    rstd: jax.Array,
    scale: jax.Array,
    skip: jax.Array | None = None,
    scales: jax.Array | None = None,
    *,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dx` (plus `skip`) in the dtype of `dy`, `dscale` and `dbias` float32 `[D]`.

    Args:
      dy: `[T, D]`.
      x_hat, rstd, scales: as `forward` returned them.
      scale: float32 `[D]`.
      skip: `[T, D]`, the cotangent of a residual connection around the LayerNorm.
    """
    num_tokens, width = dy.shape
    tile = _tile(blocks, num_tokens, width)
    num_tiles = pl.cdiv(num_tokens, tile.rows)
    steps = pl.cdiv(num_tiles, min(num_tiles, blocks.num_blocks))
    shares = pl.cdiv(num_tiles, steps)
    arrays = [dy, rstd, scale, x_hat, *(a for a in (scales, skip) if a is not None)]

    def kernel(dy_ref, rstd_ref, scale_ref, x_hat_ref, *refs):
        inputs, (dx_ref, dscale_ref, dbias_ref) = refs[:-3], refs[-3:]
        share = pl.program_id(0)
        gain = tile.load_row(scale_ref)[None]

        # A block of threads walks over its share of the tokens, tile by tile, with the sums of
        # dscale and dbias in registers, a tile each: rows are added up once, at the end.
        def add(step, totals):
            dscale, dbias = totals
            tokens = tile.tokens(share * steps + step)
            wide = tile.load(dy_ref, tokens)
            normal = tile.load(x_hat_ref, tokens)
            if scales is not None:
                of_group = tiles.load(inputs[0], tokens, tile.groups).astype(jnp.float32)
                grouped = normal.reshape(tile.rows, -1, GROUP) * of_group[:, :, None]
                normal = grouped.reshape(tile.rows, -1)
            factor = triton.load(rstd_ref.at[tokens.slice], mask=tokens.inside, other=0)[:, None]
            # Tokens and channels behind the end are zero in dy, and add nothing to any sum.
            g = wide * gain
            mean_g = jnp.sum(g, axis=1, keepdims=True) / width
            mean_gx = jnp.sum(g * normal, axis=1, keepdims=True) / width
            dx = factor * (g - mean_g - normal * mean_gx)
            if skip is not None:
                dx += tile.load(inputs[-1], tokens)
            tile.store(dx_ref, tokens, dx)
            return dscale + wide * normal, dbias + wide

        zeros = jnp.zeros((tile.rows, _padded(width)), jnp.float32)
        sums = lax.fori_loop(0, steps, add, (zeros, zeros))
        for ref, total in zip((dscale_ref, dbias_ref), sums, strict=True):
            at = ref.at[share, tile.columns.slice]
            triton.store(at, jnp.sum(total, axis=0), mask=tile.columns.inside)

    partial = jax.ShapeDtypeStruct((shares, width), jnp.float32)
    dx, dscale, dbias = pl.pallas_call(
        kernel,
        grid=(shares,),
        out_shape=(jax.ShapeDtypeStruct(dy.shape, dy.dtype), partial, partial),
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name="layer_norm_backward",
    )(*arrays)
    return dx, jnp.sum(dscale, axis=0), jnp.sum(dbias, axis=0)


class _Tile(NamedTuple):
    """Whole rows of a `[T, D]` array, filled up to a width that is a power of two."""

    rows: int
    num_tokens: int
    width: int

    @property
    def columns(self) -> Part:
        return Part(0, _padded(self.width), self.width)

    @property
    def groups(self) -> Part:
        """The scales of a token."""
        return Part(0, _padded(self.width) // GROUP, pl.cdiv(self.width, GROUP))

    def tokens(self, index: Any) -> Part:
        return Part(index * self.rows, self.rows, self.num_tokens)

    def load(self, ref: Any, tokens: Part) -> jax.Array:
        return tiles.load(ref, tokens, self.columns).astype(jnp.float32)

    def load_row(self, ref: Any) -> jax.Array:
        return triton.load(ref.at[self.columns.slice], mask=self.columns.inside, other=0)

    def store(self, ref: Any, tokens: Part, value: jax.Array) -> None:
        tiles.store(ref, tokens, self.columns, value)


def _tile(blocks: Blocks, num_tokens: int, width: int) -> _Tile:
    """As many rows as have the elements of a tile of `blocks`, at least one."""
    rows = max(1, blocks.rows * blocks.columns // _padded(width))
    return _Tile(rows, num_tokens, width)


def _padded(width: int) -> int:
    return max(GROUP, pl.next_power_of_2(width))
