"""Keys that a query sees, and probabilities that dropout keeps, as arrays."""

import functools

import jax
import jax.numpy as jnp

from pbr_jax.kernels import dropout_bits
from pbr_jax.kernels.attention_arguments import Visibility


def dropout_seeds(keys: jax.Array) -> jax.Array:
    """Seeds uint32 `[B, 2]` from one PRNG key per sample, `[B]`."""
    return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)


def windows(window: int | jax.Array, batch: int, num_keys: int) -> jax.Array:
    """A `Visibility.window` of all samples from one window, of which 0 means that all is seen.

    Raises:
      ValueError: `window` is negative, or no integer scalar.
    """
    if isinstance(window, int) and window < 0:
        raise ValueError(f"window = {window}: must be a number of keys, or 0 or None for all")
    if jnp.shape(window) or not jnp.issubdtype(jnp.result_type(window), jnp.integer):
        raise ValueError(
            f"window is {jnp.result_type(window)} {jnp.shape(window)}: must be an integer scalar"
        )
    one = jnp.asarray(window, jnp.int32)
    one = jnp.where(one > 0, jnp.minimum(one, num_keys), num_keys)
    return jnp.full((batch,), one)


def visible(
    visibility: Visibility, rows: jax.Array, num_keys: int, causal: bool
) -> jax.Array | None:
    """Keys that the queries `rows`, int32 `[n]`, see: bool, broadcasts to `[B, H, n, M]`."""
    # Of each entry only the part of these queries; what no entry narrows stays broadcastable.
    keys = jnp.arange(num_keys, dtype=jnp.int32)
    parts = []
    if visibility.mask is not None:
        mask = visibility.mask
        parts.append(mask if mask.shape[2] == 1 else jnp.take(mask, rows, axis=2, mode="clip"))
    if visibility.lengths is not None:
        parts.append(keys[None, None, None] < visibility.lengths[:, None, None, None])
    if visibility.segment_ids is not None:
        ids = visibility.segment_ids
        own = jnp.take(ids, rows, axis=1, mode="clip")
        parts.append(own[:, None, :, None] == ids[:, None, None, :])
    if causal:
        parts.append((keys[None] <= rows[:, None])[None, None])
    if visibility.window is not None:
        oldest = rows[None] - (visibility.window[:, None] - 1)
        parts.append((keys[None, None] >= oldest[..., None])[:, None])
    return functools.reduce(jnp.logical_and, parts) if parts else None


def dropout_factor(
    seeds: jax.Array, num_heads: int, rows: jax.Array, num_keys: int, rate: float
) -> jax.Array:
    """0 where a probability is dropped, else `1 / (1 - rate)`; float32 `[B, H, n, M]`."""
    heads = jnp.arange(num_heads, dtype=jnp.uint32)
    first, second = seeds[:, 0], seeds[:, 1]
    # The kernels compute the same bits; a part of the rows draws what the whole would.
    of_query = dropout_bits.query_bits(
        first[:, None, None], heads[None, :, None], rows[None, None, :]
    )
    of_key = dropout_bits.key_bits(second[:, None], jnp.arange(num_keys, dtype=jnp.uint32)[None])
    kept = dropout_bits.kept(of_query[..., None], of_key[:, None, None], rate)
    return jnp.where(kept, jnp.float32(1 / (1 - rate)), jnp.float32(0))


def check(visibility: Visibility, full: tuple[int, ...], causal: bool) -> None:
    """Raises ValueError for what does not fit scores of shape `full`, `[B, H, N, M]`."""
    batch, _, num_queries, num_keys = full
    mask = visibility.mask
    if mask is not None:
        fits = mask.ndim == 4 and all(a in (1, b) for a, b in zip(mask.shape, full, strict=True))
        if mask.dtype != jnp.bool_ or not fits or mask.shape[3] != num_keys:
            raise ValueError(
                f"mask is {mask.dtype} {mask.shape}: must be bool [B or 1, H or 1, N or 1, M] of"
                f" {full}; False hides a key"
            )
    for name, dtype, shape, axes in (
        ("lengths", jnp.int32, (batch,), "[B]"),
        ("segment_ids", jnp.int32, (batch, num_queries), "[B, N]"),
        ("window", jnp.int32, (batch,), "[B]"),
        ("seeds", jnp.uint32, (batch, 2), "[B, 2]"),
    ):
        array = getattr(visibility, name)
        if array is not None and (array.dtype != dtype or array.shape != shape):
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}: must be {jnp.dtype(dtype)} {axes} ="
                f" {shape}"
            )
    if visibility.window is not None and not causal:
        raise ValueError("window without causal: is for queries that see the keys before them")
    for name, given in (("segment_ids", visibility.segment_ids is not None), ("causal", causal)):
        if given and num_queries != num_keys:
            raise ValueError(
                f"{name} with {num_queries} queries and {num_keys} keys: is for self-attention,"
                " where they are the same tokens; use mask"
            )
