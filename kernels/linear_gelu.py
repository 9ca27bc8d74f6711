"""GELU inside the products around it: behind fc1 going forward, behind dy W^T coming back.

    x  [T, D]  a tile of tokens ────┬─ x W + b = u ─┬─ code of g(u), or u ─► planes [T, bits, F / 8]
    W  [D, F]  eight slices of it ──┘               ├─ gelu ───────────────► a [T, F]
                                                    └─ kept columns of it ─► packed [T, K]

    dy [T, D]  a tile of tokens ────┬─ dy W^T ─┬─ times g ─► du [T, F]
    W  [F, D]  eight slices of it ──┘          │
    planes, or u  their part of the tile ── g ─┘    the derivative of gelu

The slices are those that share the bytes of a plane (see `linear_tiles`). A kept column is stored a
second time, where the selection wants it: no gather.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels.gelu import Steps, derivative, look_up, value
from pbr_jax.kernels.linear_tiles import SLICES, call, products, tile
from pbr_jax.kernels.tiles import Blocks, Part, both, places


def linear_gelu(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array,
    steps: Steps | None,
    columns: jax.Array | None = None,
    *,
    approximate: bool = False,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GELU of `u = x W + b`, what its backward pass needs of u, and columns of the output.

    Args:
      x: `[T, D]`, bfloat16, float16 or float32. Sums, bias and GELU are float32; products of
        float32 have the precision of `jax.default_matmul_precision`, by default TF32 as XLA's.
      w: `[D, F]` of the dtype of `x`.
      bias: `[F]`, of any floating dtype.
      steps: the code of the derivative at u; None returns u in place of codes.
      columns: int32 `[K]`, distinct; F marks an unused slot, which reads as zero. None packs
        nothing.
      approximate: tanh form.

    Returns:
      `[T, F]` of the dtype of `x`; uint8 `[T, bits, ceil(F / 8)]`, or u, like the first; and
      `[T, K]` or None.
    """
    num_tokens, num_features = x.shape[0], w.shape[1]
    num_bytes = pl.cdiv(num_features, SLICES)
    num_kept = 0 if columns is None else columns.shape[0]

    # A block of threads owns a tile of u and holds it in registers, as the sums of the product; u
    # itself goes to memory only where it is kept.
    def kernel(x_ref, w_ref, bias_ref, *refs):
        chosen_ref, slots_ref, a_ref, saved_ref, *packed_ref = (
            refs if num_kept else (None, None, *refs)
        )
        parts, features = tile(num_tokens, num_features, blocks)
        sums = products(x_ref, w_ref, parts, features, blocks, transposed=False)
        for tokens, u in zip(parts, sums, strict=True):
            added = triton.load(bias_ref.at[features.indices], mask=features.inside, other=0)
            u += added.astype(jnp.float32)[None]
            at, inside = places(tokens.indices, features.indices), both(tokens, features)
            if steps is None:
                triton.store(saved_ref.at[at], u.astype(x.dtype), mask=inside)
            else:
                # All features of a byte are in one thread, which adds their bits. Behind the end
                # of F a code is zero, since the last byte also holds features that are there.
                code = jnp.where(features.inside[None], steps.code(u), 0)
                for b in range(steps.bits):
                    spread = ((code >> b) & 1) << features.bits[None]
                    plane = jnp.sum(spread.reshape(tokens.size, SLICES, blocks.columns), axis=1)
                    of_plane = pl.ds(b * num_bytes + features.in_plane.first, blocks.columns)
                    triton.store(
                        saved_ref.at[tokens.slice, of_plane],
                        plane.astype(jnp.uint8),
                        mask=both(tokens, features.in_plane),
                    )
            a = value(u, approximate).astype(x.dtype)
            triton.store(a_ref.at[at], a, mask=inside)
            # A kept feature knows its slot; K says that it has none, and is not written.
            if num_kept:
                slots = triton.load(
                    slots_ref.at[features.indices], mask=features.inside, other=num_kept
                )
                triton.store(
                    packed_ref[0].at[places(tokens.indices, slots)],
                    a,
                    mask=tokens.inside[:, None] & (slots < num_kept)[None],
                )

        # No feature writes an unused slot, so the blocks of threads of the first features do.
        def clear(step, _):
            slots = Part(step * blocks.columns, blocks.columns, num_kept)
            chosen = triton.load(chosen_ref.at[slots.slice], mask=slots.inside, other=0)
            for tokens in parts:
                triton.store(
                    packed_ref[0].at[tokens.slice, slots.slice],
                    jnp.zeros((tokens.size, slots.size), x.dtype),
                    mask=tokens.inside[:, None] & (chosen == num_features)[None],
                )

        if num_kept:

            @pl.when(pl.program_id(0) == 0)
            def _():
                lax.fori_loop(0, pl.cdiv(num_kept, blocks.columns), clear, None)

    like_a = jax.ShapeDtypeStruct((num_tokens, num_features), x.dtype)
    out_shape = [like_a, like_a]
    if steps is not None:
        out_shape[1] = jax.ShapeDtypeStruct((num_tokens, steps.bits * num_bytes), jnp.uint8)
    selection = []
    if columns is not None and num_kept:
        out_shape.append(jax.ShapeDtypeStruct((num_tokens, num_kept), x.dtype))
        selection = [columns, _slots(columns, num_features)]
    run = call(kernel, "linear_gelu", x, num_features, blocks, out_shape, interpret)
    a, saved, *packed = run(x, w, bias, *selection)
    if steps is not None:
        saved = saved.reshape(num_tokens, steps.bits, num_bytes)
    return a, saved, packed[0] if packed else None


def _slots(columns: jax.Array, num_features: int) -> jax.Array:
    """Slot that a feature is packed into, int32 `[F]`; K for none."""
    # Compared rather than scattered: one launch in place of two.
    num_kept = columns.shape[0]
    found = columns[:, None] == lax.iota(jnp.int32, num_features)[None]
    return jnp.min(jnp.where(found, lax.iota(jnp.int32, num_kept)[:, None], num_kept), axis=0)


def linear_gelu_gradient(
    dy: jax.Array,
    w: jax.Array,
    saved: jax.Array,
    levels: tuple[float, ...] | None,
    *,
    approximate: bool = False,
    blocks: Blocks,
    interpret: bool = False,
) -> jax.Array:
    """`du = (dy W^T) g`, `[T, F]` of the dtype of `dy`, where g is the derivative of GELU at u.

    Args:
      dy: `[T, D]`, bfloat16, float16 or float32; sums and g are float32, products as in
        `linear_gelu`.
      w: `[F, D]` of the dtype of `dy`.
      saved: uint8 `[T, bits, ceil(F / 8)]`, codes of g, or u, `[T, F]`.
      levels: the `2^bits` values of g; None computes it from u.
      approximate: tanh form.
    """
    num_tokens, num_features = dy.shape[0], w.shape[0]
    num_bytes = pl.cdiv(num_features, SLICES)

    # The tile of dy W^T stays in registers until g, read or made from the same tile of codes or of
    # u, has been multiplied into it.
    def kernel(dy_ref, w_ref, saved_ref, du_ref):
        parts, features = tile(num_tokens, num_features, blocks)
        sums = products(dy_ref, w_ref, parts, features, blocks, transposed=True)
        for tokens, da in zip(parts, sums, strict=True):
            at, inside = places(tokens.indices, features.indices), both(tokens, features)
            if levels is None:
                u = triton.load(saved_ref.at[at], mask=inside, other=0)
                slope = derivative(u.astype(jnp.float32), approximate)
            else:
                # Eight features read the same byte, and each takes its own bit of it.
                code = jnp.zeros(da.shape, jnp.int32)
                for b in range(len(levels).bit_length() - 1):
                    of_plane = places(tokens.indices, b * num_bytes + features.bytes)
                    plane = triton.load(saved_ref.at[of_plane], mask=inside, other=0)
                    code |= ((plane.astype(jnp.int32) >> features.bits[None]) & 1) << b
                slope = look_up(code, levels)
            triton.store(du_ref.at[at], (da * slope).astype(dy.dtype), mask=inside)

    out_shape = jax.ShapeDtypeStruct((num_tokens, num_features), dy.dtype)
    run = call(kernel, "linear_gelu_gradient", dy, num_features, blocks, out_shape, interpret)
    return run(dy, w, saved.reshape(num_tokens, -1))
