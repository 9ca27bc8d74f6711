"""Causal attention of a decoder: over the tokens of a row, or over a cache of keys and values."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pbr_jax.kernels.attention_arguments import HIDDEN
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility


def attend(
    q: Float[Array, "B H N C"],
    k: Float[Array, "B G N C"],
    v: Float[Array, "B G N C"],
    segments: Int[Array, "B N"] | None,
    window: int | None,
    local: Bool[Array, ""] | None,
    **how: Any,
) -> Float[Array, "B H N C"]:
    """What each token reads of its own segment, up to itself, by the attention op.

    Args:
      q, k, v: G heads of keys and values, each of which H / G heads of queries share.
      segments: number of the text that a token is of; None where a row is one text.
      window: tokens that a query of a local layer sees, itself included; None for all.
      local: whether this layer is local; None where all are. Data, so that layers of both kinds
        are turns of one loop: which of two programs runs is decided as it runs.
      **how: `kind` and `implementation` of the op.
    """

    def seeing(window: int | None) -> Callable[..., jax.Array]:
        return lambda q, k, v: _causal(q, k, v, segments, window, **how)

    if window is None or window >= q.shape[2]:  # it hides nothing
        return seeing(None)(q, k, v)
    if local is None:
        return seeing(window)(q, k, v)
    return lax.cond(local, seeing(window), seeing(None), q, k, v)


def _causal(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    window: int | None,
    **how: Any,
) -> jax.Array:
    visibility = Visibility(segment_ids=segments)
    if window is not None:
        row = jnp.arange(q.shape[2], dtype=jnp.int32)
        visibility = visibility._replace(mask=(row[None] > row[:, None] - window)[None, None])
    k, v = (jnp.repeat(heads, q.shape[1] // k.shape[1], axis=1) for heads in (k, v))
    return attention(q, k, v, visibility, causal=True, **how)


def attend_cached(
    q: Float[Array, "B H N C"],
    k: Float[Array, "B G M C"],
    v: Float[Array, "B G M C"],
    positions: Int[Array, "B N"],
    window: int | None,
    local: Bool[Array, ""] | None,
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
        near = slots > place - window
        seen &= near if local is None else near | ~local
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
