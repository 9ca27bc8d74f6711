"""Causal attention of a decoder: over the tokens of a row, or over a cache of keys and values."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pbr_jax.kernels.attention_arguments import HIDDEN
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility


def attend(
    q: Float[Array, "B H N C"],
    k: Float[Array, "B G N C"],
    v: Float[Array, "B G N C"],
    segments: Int[Array, "B N"] | None,
    window: Int[Array, ""] | None,
    **how: Any,
) -> Float[Array, "B H N C"]:
    """What each token reads of its own segment, up to itself, by the attention op.

    Args:
      q, k, v: G heads of keys and values, each of which H / G heads of queries share.
      segments: number of the text that a token is of; None where a row is one text.
      window: tokens that a query sees, itself included; 0 or None for all. Data, so that blocks
        with and without a window are turns of one loop.
      **how: `kind` and `implementation` of the op.
    """
    visibility = Visibility(segment_ids=segments)
    if window is not None:
        row = jnp.arange(q.shape[2], dtype=jnp.int32)
        visibility = visibility._replace(mask=_near(row[None], row[:, None], window)[None, None])
    k, v = (jnp.repeat(heads, q.shape[1] // k.shape[1], axis=1) for heads in (k, v))
    return attention(q, k, v, visibility, causal=True, **how)


def _near(keys: jax.Array, queries: jax.Array, window: jax.Array) -> jax.Array:
    """Whether keys at these places are in the window of queries at those."""
    return (keys > queries - window) | (window == 0)


def attend_cached(
    q: Float[Array, "B H N C"],
    k: Float[Array, "B G M C"],
    v: Float[Array, "B G M C"],
    positions: Int[Array, "B N"],
    window: Int[Array, ""] | None,
) -> Float[Array, "B H N C"]:
    """What tokens at `positions` read of a cache, whose slot i has the token at position i.

    The other arguments are those of `attend`. Slots past a position are not looked at.
    """
    rows, heads, _, channels = q.shape
    grouped = q.reshape(rows, k.shape[1], heads // k.shape[1], -1, channels)
    scores = jnp.einsum("bgjnc,bgmc->bgjnm", grouped, k, preferred_element_type=jnp.float32)
    slots, place = jnp.arange(k.shape[2], dtype=jnp.int32)[None, None], positions[..., None]
    seen = slots <= place
    if window is not None:
        seen &= _near(slots, place, window)
    scores = jnp.where(seen[:, None, None], scores / math.sqrt(channels), HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgjnm,bgmc->bgjnc", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).reshape(q.shape)


def written(
    cache: Float[Array, "B G M C"], new: Float[Array, "B G 1 C"], positions: Int[Array, "B 1"]
) -> Float[Array, "B G M C"]:
    """The cache with the keys or values of one token a row in the slot of its position."""

    def put(row, new, place):
        return lax.dynamic_update_slice_in_dim(row, new, place, axis=1)

    return jax.vmap(put)(cache, new, positions[:, 0])
