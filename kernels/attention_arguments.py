"""Masking and dropout arguments shared by all implementations of attention."""

from typing import NamedTuple

import jax

HIDDEN = -1e30
"""Score of a hidden key."""


class Visibility(NamedTuple):
    """Keys that a query sees: a pytree with leading axis B, not differentiated.

    In structured form, O(N) per sample, so that a kernel can make the N x N pattern on chip, tile
    by tile; only `mask` is a pattern of its own. A query sees the keys that every entry lets it
    see; None lets it see all. A query that sees no key attends to all alike, and no gradient
    reaches q and k through it.

    Attributes:
      mask: bool `[B, H or 1, N or 1, M]`; False hides a key. XLA only.
      lengths: int32 `[B]`; keys at or past the length are hidden (padding on the right). Padded
        queries are computed like others: their output and gradients are finite, and they reach
        nothing if their cotangent is zero.
      segment_ids: int32 `[B, N]`; a token sees the tokens of its own segment. Needs M = N.
      window: int32 `[B]`, 1 to M; a query sees as many of the last keys, itself included. Needs
        causality.
      seeds: uint32 `[B, 2]`, for the dropout of probabilities (`dropout_bits`); without them
        nothing is dropped.
    """

    mask: jax.Array | None = None
    lengths: jax.Array | None = None
    segment_ids: jax.Array | None = None
    window: jax.Array | None = None
    seeds: jax.Array | None = None


class Rules(NamedTuple):
    """Static rules of the scores."""

    scale: float  # of `q k^T`
    causal: bool = False  # a query sees no key behind it
    dropout: float = 0.0  # rate at which probabilities are dropped where `Visibility` brings seeds
