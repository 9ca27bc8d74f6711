"""BackRazor's selection as Triton kernels of their own: exact threshold, bit mask, packed values.

    x [B, M] ─┬─ count a digit of the magnitude ──► counts [B, S, 256]   once for each byte of x
              └─ compare with the threshold ──────► bits, values         once

A magnitude's bits without the sign are a number that orders like it. Its k-th largest is found
digit by digit, eight bits at a time: the counts of a digit say which value the k-th has there, and
the next pass counts only what shares it. The counts of each of the S shares of a sample also say
where in the result the share begins, so that all shares write at the same time. So x is read three
times where it has 16 bits and five times where it has 32; bisection reads it once for each bit.

Import it late: it needs Triton and jax-triton, which only the extra `cuda` brings.
"""

import contextlib
import os

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jax import lax

from pbr_jax.gpu.compile import GpuCompilerMissing, require_compiler
from pbr_jax.kernels.tiles import Blocks

# Triton writes PTX for the assembler that it brings along, which may be newer than the CUDA of JAX,
# and JAX's refuses it then. The second name is that of Triton 3.9 for Hopper.
with contextlib.suppress(GpuCompilerMissing):
    for _name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        os.environ.setdefault(_name, str(require_compiler() / "bin/ptxas"))

_DIGIT = 8
_BINS = 2**_DIGIT


# Of every card: a block of threads handles so many rows of so many elements of a sample, one row at
# a time, both powers of two, a row of at most 2^15. No spills, and thousands of blocks of threads
# for a batch of activations. Nothing was timed on a GPU yet.
BLOCKS = Blocks(8, 2048, num_warps=4)


@triton.jit
def count_digits(
    x_ptr,
    prefix_ptr,
    counts_ptr,
    SIZE: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    SHIFT: tl.constexpr,
    ABOVE: tl.constexpr,
    BINS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Counts of each digit among the magnitudes whose bits from ABOVE on are `prefix`."""
    # A program counts one share of one sample, and keeps its 256 counts on chip to the end.
    sample, share = tl.program_id(0), tl.program_id(1)
    prefix = tl.load(prefix_ptr + sample)
    counts = tl.zeros([BINS], tl.int32)
    for offset in range(0, SHARE, BLOCK):
        index = share * SHARE + offset + tl.arange(0, BLOCK)
        inside = index < SIZE
        x = tl.load(x_ptr + sample.to(tl.int64) * SIZE + index, mask=inside, other=0.0)
        # Without its sign a float's bits order like its magnitude.
        if WIDE:
            order = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        else:
            order = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        # Only what agrees in all digits found so far can be the k-th largest.
        shared = inside & ((order >> ABOVE) == prefix)
        counts += tl.histogram((order >> SHIFT) & (BINS - 1), BINS, mask=shared)
    place = (sample * tl.num_programs(1) + share) * BINS
    tl.store(counts_ptr + place + tl.arange(0, BINS), counts)


@triton.jit
def write_kept(
    x_ptr,
    threshold_ptr,
    room_ptr,
    above_ptr,
    equal_ptr,
    bits_ptr,
    values_ptr,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    LARGEST: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Bits and values of what exceeds the threshold, and of the first `room` that equal it.

    `above` and `equal` are how many of each lie before the share.
    """
    sample, share = tl.program_id(0), tl.program_id(1)
    threshold = tl.load(threshold_ptr + sample)
    room = tl.load(room_ptr + sample)
    place = sample * tl.num_programs(1) + share
    # Where this share begins in the result is known, so no program waits for another.
    above_before, equal_before = tl.load(above_ptr + place), tl.load(equal_ptr + place)
    num_bytes: tl.constexpr = (SIZE + 7) // 8
    for offset in range(0, SHARE, BLOCK):
        first = share * SHARE + offset
        index = first + tl.arange(0, BLOCK)
        inside = index < SIZE
        x = tl.load(x_ptr + sample.to(tl.int64) * SIZE + index, mask=inside, other=0.0)
        if WIDE:
            order = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        else:
            order = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
        above = inside & (order > threshold)
        equal = inside & (order == threshold)
        both = above.to(tl.int32) + (equal.to(tl.int32) << 16)  # one scan counts both
        before = tl.cumsum(both, 0) - both
        above_rank = above_before + (before & 0xFFFF)
        equal_rank = equal_before + (before >> 16)
        # Ties are kept in order of index until the room is used up; a slot counts what is kept
        # before it of both kinds.
        kept = above | (equal & (equal_rank < room))
        slot = above_rank + tl.minimum(equal_rank, room)
        value = tl.clamp(x.to(tl.float32), -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
        values = values_ptr + sample.to(tl.int64) * KEPT + slot
        tl.store(values, value.to(values_ptr.dtype.element_ty), mask=kept)
        # Eight neighbours make a byte, the first of them its most significant bit.
        shifts = 7 - tl.arange(0, 8)
        bytes = tl.sum(tl.reshape(kept.to(tl.int32), [BLOCK // 8, 8]) << shifts[None, :], axis=1)
        byte = first // 8 + tl.arange(0, BLOCK // 8)
        bits = bits_ptr + sample.to(tl.int64) * num_bytes + byte
        tl.store(bits, bytes.to(tl.uint8), mask=byte < num_bytes)
        total = tl.sum(both, 0)
        above_before += total & 0xFFFF
        equal_before += total >> 16


def pack(
    x: jax.Array,
    num_kept: int,
    dtype: jax.typing.DTypeLike,
    largest: float,
    *,
    capability: tuple[int, int],
    blocks: Blocks = BLOCKS,
    call=jax_triton.triton_call,
) -> tuple[jax.Array, jax.Array]:
    """The largest magnitudes of each sample: uint8 `[B, ceil(M / 8)]` and `[B, num_kept]`.

    Args:
      x: `[B, M]`, bfloat16, float16 or float32.
      num_kept: elements to keep of each sample; of equal ones those of lowest index.
      dtype: of the values.
      largest: what values are clipped to.
      capability: of the card.
      blocks: how a sample is cut.
      call: as `jax_triton.triton_call`.
    """
    batch, size = x.shape
    share = blocks.rows * blocks.columns
    shares = triton.cdiv(size, share)
    major, minor = capability
    common = {
        "grid": (batch, shares),
        "num_warps": blocks.num_warps,
        "compute_capability": 10 * major + minor,
        "SIZE": size,
        "SHARE": share,
        "BLOCK": blocks.columns,
        "WIDE": x.dtype == jnp.float32,
    }
    # Digit by digit from the most significant: `prefix` is what is known of the k-th largest,
    # `wanted` its k among those that share the prefix, `above` what each share has beyond it.
    prefix = jnp.zeros((batch,), jnp.int32)
    wanted = jnp.full((batch, 1), num_kept, jnp.int32)
    above = equal = jnp.zeros((batch, shares), jnp.int32)
    for shift in range(_DIGIT * (x.dtype.itemsize - 1), -1, -_DIGIT):
        counts = call(
            x,
            prefix,
            kernel=count_digits,
            out_shape=jax.ShapeDtypeStruct((batch, shares, _BINS), jnp.int32),
            SHIFT=shift,
            ABOVE=min(shift + _DIGIT, 31),
            BINS=_BINS,
            **common,
        )
        digit, above_digit, equal = _find_digit(counts, wanted)
        above += above_digit
        wanted -= jnp.sum(above_digit, axis=1, keepdims=True)
        prefix = (prefix << _DIGIT) | digit
    bits, values = call(
        x,
        prefix,
        wanted,
        _before(above),
        _before(equal),
        kernel=write_kept,
        out_shape=(
            jax.ShapeDtypeStruct((batch, triton.cdiv(size, 8)), jnp.uint8),
            jax.ShapeDtypeStruct((batch, num_kept), dtype),
        ),
        KEPT=num_kept,
        LARGEST=largest,
        **common,
    )
    return bits, values


def _find_digit(counts: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The digit of the k-th largest `[B]`, and per share how many exceed and how many have it.

    `counts` is int32 `[B, S, 256]`, `wanted` `[B, 1]` the k that is left.
    """
    at_least = lax.cumsum(jnp.sum(counts, axis=1), axis=1, reverse=True)
    digit = jnp.sum(at_least >= wanted, axis=1, dtype=jnp.int32) - 1
    bins = jnp.arange(_BINS, dtype=jnp.int32)[None, None]
    chosen = digit[:, None, None]
    above = jnp.sum(jnp.where(bins > chosen, counts, 0), axis=2)
    return digit, above, jnp.sum(jnp.where(bins == chosen, counts, 0), axis=2)


def _before(counts: jax.Array) -> jax.Array:
    return jnp.cumsum(counts, axis=1) - counts
