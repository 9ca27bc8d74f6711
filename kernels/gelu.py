"""GELU, the code of its derivative and the packed columns of its output, in one pass over u.

    u [T, F]  a tile of tokens ─┬─ gelu ─────────────► a [T, F]
                                ├─ comparisons ─ bits ► planes [T, bits, ceil(F / 8)]
                                └─ read again by column, from the cache ─ gelu ► packed [T, K]

Plain XLA reads u or a once for each of the three. A byte of a plane holds a bit of eight features
that lie `ceil(F / 8)` apart (see `pbr_jax.ops.gelu_codes.pack`): eight tiles of u next to nothing
but each other, no shuffle between threads.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.tiles import Blocks, Part, places

_BITS_PER_BYTE = 8


# Least compute capability -> bytes of an element -> blocks; rows are tokens, columns bytes of a
# plane and so features. 16 bytes a thread and load, no spills, and enough blocks of threads to fill
# the card. Nothing was timed on a GPU yet.
TILES = {(8, 0): {2: Blocks(8, 128, num_warps=4), 4: Blocks(8, 64, num_warps=4)}}


class Steps(NamedTuple):
    """The nearest code as a function of u."""

    bits: int  # of a code
    first: int  # the code far to the left
    # cuts, by: where it changes, ascending, and by how much there
    cuts: tuple[float, ...]
    by: tuple[int, ...]

    def code(self, u: jax.Array) -> jax.Array:
        """int32, shape of u."""
        # Products, not selections: with those XLA keeps int32 codes of a whole u beside it.
        code = jnp.int32(self.first)
        for cut, by in zip(self.cuts, self.by, strict=True):
            code = code + (u >= cut).astype(jnp.int32) * by
        return code


def erf(x: jax.Array) -> jax.Array:
    """The error function, float32: Eigen's rational approximation, which Triton can compile."""
    x = jnp.clip(x, -4.0, 4.0)
    square = x * x
    above = _polynomial(
        square,
        (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06),
        (-5.69250639462346e-05, -7.34990630326855e-04, -2.95459980854025e-03),
        (-1.60960333262415e-02,),
    )
    below = _polynomial(
        square,
        (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
        (-7.37332916720468e-03, -1.42647390514189e-02),
    )
    return x * above / below


def _polynomial(x: jax.Array, *coefficients: tuple[float, ...]) -> jax.Array:
    first, *rest = [one for few in coefficients for one in few]
    total = jnp.full(x.shape, first, jnp.float32)
    for one in rest:
        total = total * x + one
    return total


def value(u: jax.Array, approximate: bool) -> jax.Array:
    """GELU of float32."""
    if approximate:
        inner = math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)
        return u * lax.logistic(2.0 * inner)  # 0.5 (1 + tanh x) = logistic(2 x)
    return 0.5 * u * (1.0 + erf(u * math.sqrt(0.5)))


def derivative(u: jax.Array, approximate: bool) -> jax.Array:
    """The derivative of GELU, of float32.

    Not shared with `pbr_jax.ops.gelu`: products in place of quotients, and a logistic and an `erf`
    that Triton can compile.
    """
    if approximate:
        inner = math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)
        half = lax.logistic(2.0 * inner)  # 0.5 (1 + tanh x)
        slope = math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * u * u)
        return half + 2.0 * u * half * (1.0 - half) * slope
    density = jnp.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1.0 + erf(u * math.sqrt(0.5))) + u * density


def look_up(codes: jax.Array, levels: Sequence[float] | np.ndarray) -> jax.Array:
    """`levels[codes]`, float32, as nested selections, which stay in registers."""
    out = jnp.full(codes.shape, levels[0], jnp.float32)
    for i in range(1, len(levels)):
        out = jnp.where(codes >= i, float(levels[i]), out)
    return out


def gelu(
    u: jax.Array,
    steps: Steps,
    columns: jax.Array | None = None,
    *,
    approximate: bool = False,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GELU, the bit planes of its derivative's code, and columns of its output.

    Args:
      u: `[T, F]`, bfloat16, float16 or float32; computed in float32.
      steps: the code of the derivative at u.
      columns: int32 `[K]`; F marks an unused slot, which reads as zero. None packs nothing.
      approximate: tanh form.

    Returns:
      `[T, F]` of the dtype of `u`, uint8 `[T, bits, ceil(F / 8)]`, and `[T, K]` or None.
    """
    num_tokens, num_features = u.shape
    num_bytes = pl.cdiv(num_features, _BITS_PER_BYTE)
    num_kept = 0 if columns is None else columns.shape[0]
    shape = (blocks.rows, blocks.columns)

    # A block of threads owns whole rows of u: its columns lie still in the cache when they are
    # read again to be packed.
    def kernel(u_ref, *refs):
        columns_ref, (a_ref, planes_ref, *packed_ref) = (
            refs[: bool(num_kept)],
            refs[bool(num_kept) :],
        )
        tokens = Part(pl.program_id(0) * blocks.rows, blocks.rows, num_tokens)
        rows = tokens.inside[:, None]

        # The eight features of a byte lie in eight slices of the row: a thread holds the planes in
        # registers, adds a bit of each slice, and stores them once.
        def features(step, _):
            start = step * blocks.columns
            in_plane = Part(start, blocks.columns, num_bytes)
            planes = [jnp.zeros(shape, jnp.int32) for _ in range(steps.bits)]
            for i in range(_BITS_PER_BYTE):
                part = Part(i * num_bytes + start, blocks.columns, num_features)
                # Behind the end of a plane begins the next slice, which is not this step's.
                mask = rows & (in_plane.inside & part.inside)[None]
                at = (tokens.slice, part.slice)
                wide = triton.load(u_ref.at[at], mask=mask, other=0).astype(jnp.float32)
                triton.store(a_ref.at[at], value(wide, approximate).astype(u.dtype), mask=mask)
                code = jnp.where(mask, steps.code(wide), 0)
                planes = [p | (((code >> b) & 1) << i) for b, p in enumerate(planes)]
            for b, plane in enumerate(planes):
                of_plane = pl.ds(b * num_bytes + start, blocks.columns)
                triton.store(
                    planes_ref.at[tokens.slice, of_plane],
                    plane.astype(jnp.uint8),
                    mask=rows & in_plane.inside[None],
                )

        # GELU of the kept columns is computed once more, since other threads have stored it and to
        # read it would need a barrier. An unused slot reads zero, whose GELU is zero.
        def kept(step, _):
            slots = Part(step * blocks.columns, blocks.columns, num_kept)
            chosen = triton.load(
                columns_ref[0].at[slots.slice], mask=slots.inside, other=num_features
            )
            at = places(tokens.indices, chosen)
            read = rows & (chosen < num_features)[None]
            wide = triton.load(u_ref.at[at], mask=read, other=0).astype(jnp.float32)
            triton.store(
                packed_ref[0].at[tokens.slice, slots.slice],
                value(wide, approximate).astype(u.dtype),
                mask=rows & slots.inside[None],
            )

        lax.fori_loop(0, pl.cdiv(num_bytes, blocks.columns), features, None)
        if num_kept:
            lax.fori_loop(0, pl.cdiv(num_kept, blocks.columns), kept, None)

    out_shape = [
        jax.ShapeDtypeStruct(u.shape, u.dtype),
        jax.ShapeDtypeStruct((num_tokens, steps.bits * num_bytes), jnp.uint8),
    ]
    if num_kept:
        out_shape.append(jax.ShapeDtypeStruct((num_tokens, num_kept), u.dtype))
    run = blocks.call(kernel, "gelu", (pl.cdiv(num_tokens, blocks.rows),), out_shape, interpret)
    a, planes, *packed = run(u, *(() if columns is None or not num_kept else (columns,)))
    return a, planes.reshape(num_tokens, steps.bits, num_bytes), packed[0] if packed else None
