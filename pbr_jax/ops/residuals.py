"""Forms in which ops save activations for their backward pass: packing and unpacking.

Shape alphabet of the package: `B` batch, `N` tokens, `D` input columns, `F` output features, `K`
kept columns, `H` heads, `L` blocks.

* Packed *columns*, the residual of PreBackRazor (Algorithm 1, lines 8-15): `x[..., columns]`.
* *Elements*, the residual of BackRazor: the largest magnitudes of each sample as a bit mask and the
  kept values (Jiang et al., NeurIPS 2022).
* *Channels*, columns per attention head, for the sparse attention of PreBackRazor++.

The kinds of an op (`linear_kinds` and its like) say which of them it keeps.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pbr_jax.ops import dispatch
from pbr_jax.plans import Implementation

_BITS_PER_BYTE = 8


def check_columns(columns: jax.Array, num_columns: int) -> None:
    """Checks a selection where it can be checked: shape and dtype always, values outside jit.

    Raises:
      ValueError: `columns` is not int32 `[K]`, K exceeds D, or an index lies outside `0..D`. Index
        D is allowed: it marks an unused slot (see `pbr_jax.pruning`).
    """
    if columns.dtype != jnp.int32:
        raise ValueError(
            f"columns has dtype {columns.dtype}: must be int32; use columns.astype(jnp.int32)"
        )
    if columns.ndim != 1:
        raise ValueError(
            f"columns has shape {columns.shape}: must be [K], one index per kept column"
        )
    if columns.shape[0] > num_columns:
        raise ValueError(
            f"columns has K = {columns.shape[0]} entries: must be at most"
            f" D = {num_columns}, the number of columns of the input"
        )
    if not isinstance(columns, jax.core.Tracer) and columns.size:
        # NumPy, so that a selection that a jitted function closes over can be read while tracing.
        values = np.asarray(columns)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > num_columns:
            bad = low if low < 0 else high
            raise ValueError(
                f"columns contains {bad}: must be in 0..{num_columns - 1} (D - 1), or D ="
                f" {num_columns} for an unused slot"
            )


def take_columns(x: jax.Array, columns: jax.Array) -> jax.Array:
    """Packs `x[..., columns]`, `[..., D], int32 [K] -> [..., K]`; unused slots read as zero."""
    return jnp.take(x, columns, axis=-1, mode="fill", fill_value=0)


def put_rows(rows: jax.Array, columns: jax.Array, num_rows: int) -> jax.Array:
    """Scatters packed rows into zeros: `[K, F], int32 [K] -> [D, F]`; unused slots are dropped."""
    return jnp.zeros((num_rows, *rows.shape[1:]), rows.dtype).at[columns].set(rows, mode="drop")


def largest_columns(x: jax.Array, num_kept: int) -> jax.Array:
    """The K columns of largest norm over the whole batch, sorted: `[..., D] -> int32 [K]`."""
    energy = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(x.ndim - 1)))
    return jnp.sort(lax.top_k(energy, num_kept)[1])


@runtime_checkable
class Kept(Protocol):
    """Settings of an op, as far as its residual depends on them."""

    @property
    def keep(self) -> float:
        """Fraction of columns, channels or elements that is kept."""

    @property
    def implementation(self) -> Implementation | None:
        """Implementation of the op."""


class Elements(NamedTuple):
    """Largest elements of each sample, in order of position."""

    bits: jax.Array  # uint8 `[B, ceil(M / 8)]`, a bit for each of M elements, high bits first
    values: jax.Array  # `[B, k]`, the kept elements


def half_precision(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of BackRazor's values: float16 for float32 inputs, 16-bit inputs as they are."""
    return jnp.dtype(jnp.float16) if dtype == jnp.float32 else jnp.dtype(dtype)


def _magnitude_order(x: jax.Array) -> jax.Array:
    """Unsigned integers that order like |x|: the bits of a float without its sign."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(jnp.abs(x), unsigned)


def _kth_largest(order: jax.Array, k: int) -> jax.Array:
    """Exact k-th largest of each row, `[B, M] -> [B, 1]`, one bit per pass instead of a sort."""
    num_bits = 8 * order.dtype.itemsize - 1  # the sign bit is zero

    def set_bit(i, threshold):
        bit = jnp.left_shift(jnp.ones((), order.dtype), (num_bits - 1 - i).astype(order.dtype))
        candidate = threshold | bit
        enough = jnp.sum(order >= candidate, axis=1, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, candidate, threshold)

    return lax.fori_loop(0, num_bits, set_bit, jnp.zeros_like(order[:, :1]))


def _ranks(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each bit of a mask, `[B, 8 * bytes]`: is it set, and how many set ones precede it."""
    kept = jnp.unpackbits(bits, axis=1)
    per_byte = lax.population_count(bits).astype(jnp.int32)
    before_byte = jnp.cumsum(per_byte, axis=1) - per_byte
    within = kept.reshape(*bits.shape, _BITS_PER_BYTE).astype(jnp.int32)
    before_bit = jnp.cumsum(within, axis=2) - within
    ranks = before_byte[:, :, None] + before_bit
    return kept.astype(bool), ranks.reshape(kept.shape)


def pack_elements(
    x: jax.Array,
    keep: float,
    dtype: jax.typing.DTypeLike | None = None,
    implementation: Implementation | None = None,
) -> Elements:
    """Keeps the `round(keep * M)` elements of largest magnitude of each sample.

    Args:
      x: `[B, ...]`, M elements per sample.
      keep: fraction of elements to keep, in (0, 1].
      dtype: of the stored values; None keeps that of `x`. Values are clipped to its finite range.
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Of elements that tie with the k-th largest magnitude those of lowest index are kept, so the
    number kept is exactly k (BackRazor's code keeps all ties; without ties the two are the same).

    Raises:
      ValueError: `keep` is outside (0, 1], or the named implementation cannot run.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep = {keep}: must be in (0, 1]; 0.1 keeps 10 % of the elements")
    flat = x.reshape(x.shape[0], -1)
    size = flat.shape[1]
    k = max(1, round(keep * size))
    dtype = jnp.dtype(dtype or x.dtype)
    largest = min(float(jnp.finfo(dtype).max), float(jnp.finfo(x.dtype).max))
    if KERNEL.choose(implementation, flat) == "jax_triton":
        from pbr_jax.kernels import select_elements

        capability = dispatch.target().capability
        assert capability is not None  # or it would not have been chosen
        packed = select_elements.pack(flat, k, dtype, largest, capability=capability)
        return Elements(*packed)
    # All above the k-th largest magnitude, and the first of those equal to it that find room.
    order = _magnitude_order(flat)
    threshold = _kth_largest(order, k)
    above, equal = order > threshold, order == threshold
    room = k - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    kept = above | (equal & (jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= room))
    bits = jnp.packbits(kept, axis=1)
    # A kept element goes to the slot of its rank among the kept ones.
    _, ranks = _ranks(bits)
    slots = jnp.where(kept, ranks[:, :size], k)  # k lies outside: dropped
    stored = jnp.clip(flat, -largest, largest).astype(dtype)
    empty = jnp.zeros((k,), dtype)
    values = jax.vmap(lambda s, v: empty.at[s].set(v, mode="drop"))(slots, stored)
    return Elements(bits, values)


def pack_for(settings: Kept, x: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> Elements:
    """`pack_elements` as part of an op: by XLA where the op is told to run by XLA.

    Otherwise the device decides: no op has kernels of both kinds.
    """
    implementation = settings.implementation if settings.implementation == "xla" else None
    return pack_elements(x, settings.keep, dtype, implementation)


def _refusal(x: jax.Array | jax.ShapeDtypeStruct) -> str | None:
    if not 0 < x.shape[1] < 2**30 or not x.shape[0]:
        return f"x has shape {x.shape}: must hold 1 to 2^30 elements per sample"
    return dispatch.unfit(math.inf, x=x)


KERNEL = dispatch.Kernel("elements", _refusal, implementation="jax_triton")
"""Kernels of `pack_elements`; chosen for `[B, M]`."""


def unpack_elements(
    elements: Elements, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
    """The pruned dense array `[B, ...]` of `shape`; elements that were not kept are zero."""
    kept, ranks = _ranks(elements.bits)
    values = jnp.take_along_axis(elements.values, ranks, axis=1, mode="clip").astype(dtype)
    dense = jnp.where(kept, values, jnp.zeros((), dtype))
    return dense[:, : math.prod(shape[1:])].reshape(shape)


def largest_channels(energy: jax.Array, num_kept: int) -> jax.Array:
    """Channels of largest energy in each head, sorted: `[H, head] -> int32 [H, K_h]`."""
    return jnp.sort(lax.top_k(energy, num_kept)[1], axis=-1)


def take_channels(x: jax.Array, channels: jax.Array) -> jax.Array:
    """Packs channels per head: `[B, H, N, head], int32 [H, K_h] -> [B, H, N, K_h]`."""
    return jnp.take_along_axis(x, channels[None, :, None, :], axis=-1, mode="clip")


def put_channels(packed: jax.Array, channels: jax.Array, num_channels: int) -> jax.Array:
    """Scatters packed channels into zeros: `[B, H, N, K_h], int32 [H, K_h] -> [B, H, N, head]`."""
    # A product is exact here: every output has one term.
    one_hot = jax.nn.one_hot(channels, num_channels, dtype=packed.dtype)
    return jnp.einsum("bhnk,hkc->bhnc", packed, one_hot)
