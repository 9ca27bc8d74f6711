"""A tile of scores of the attention kernels, its loads and stores, and the blocks that it meets."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels import dropout_bits
from pbr_jax.kernels.attention_arguments import HIDDEN, Rules, Visibility
from pbr_jax.kernels.attention_launch import Program
from pbr_jax.kernels.tiles import Part

LOG2_E = math.log2(math.e)


def _mask(ref, tokens: Part, channels: int | None) -> jax.Array | None:
    """Mask of `[size]` or `[size, padded channels]`; None where all surely lies inside."""
    # No mask at all where none is needed: the compiler then loads wide and frees the registers.
    inside = None if tokens.whole else tokens.inside
    if channels is None:
        return inside
    mask = None if inside is None else inside[:, None]
    if channels == ref.shape[-1]:
        return mask
    of_channels = (jnp.arange(ref.shape[-1]) < channels)[None, :]
    return of_channels if mask is None else mask & of_channels


def load(
    ref, tokens: Part, channels: int | None = None, other: float = 0.0, member: Any = None
) -> jax.Array:
    """Tokens of `ref`, `[size]` or `[size, padded channels]`; `other` past the edges.

    `member` is the head of a `ref` that holds those of a group, None where it holds one.
    """
    at = (tokens.slice,) if channels is None else (tokens.slice, slice(None))
    view = ref.at[at] if member is None else ref.at[(member, *at)]
    mask = _mask(ref, tokens, channels)
    if mask is None:
        return triton.load(view)
    full = jnp.broadcast_to(mask, view.shape)
    return triton.load(view, mask=full, other=jnp.asarray(other, ref.dtype))


def store(ref, tokens: Part, value: jax.Array, channels: int | None = None) -> None:
    """Writes tokens of `ref`, in its dtype, as far as they are there."""
    view = ref.at[tokens.slice] if channels is None else ref.at[tokens.slice, :]
    mask = _mask(ref, tokens, channels)
    full = None if mask is None else jnp.broadcast_to(mask, view.shape)
    triton.store(view, value.astype(ref.dtype), mask=full)


class Tile(NamedTuple):
    """Scores of some queries and keys, `[queries, keys]`, or `[keys, queries]` if `flipped`."""

    queries: Part
    keys: Part
    head: jax.Array
    visibility: Visibility  # of refs
    rules: Rules
    flipped: bool = False

    def by_query(self, x: jax.Array) -> jax.Array:
        return x[None, :] if self.flipped else x[:, None]

    def by_key(self, x: jax.Array) -> jax.Array:
        return x[:, None] if self.flipped else x[None, :]

    def visible(self) -> jax.Array | None:
        """Mask of the keys that are seen, or None if nothing hides any."""
        told, seen = self.visibility, None

        def also(condition):
            return condition if seen is None else seen & condition

        # Made on chip from O(N) per sample; an N x N mask is never read.
        if told.lengths is not None:
            seen = also(self.by_key(self.keys.indices < told.lengths[0]))
        if told.segment_ids is not None:
            own, others = load(told.segment_ids, self.queries), load(told.segment_ids, self.keys)
            seen = also(self.by_query(own) == self.by_key(others))
        if self.rules.causal:
            seen = also(self.by_key(self.keys.indices) <= self.by_query(self.queries.indices))
        if told.window is not None:
            oldest = self.queries.indices - (told.window[0] - 1)
            seen = also(self.by_key(self.keys.indices) >= self.by_query(oldest))
        return seen

    def log2_scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scores over log 2 from the products of q and k, and which are seen (None: all).

        A hidden key scores `HIDDEN`, so that a row of hidden ones alone attends to all alike; what
        lies past the last key scores minus infinity.
        """
        # The scale takes the change of base along: exp2 is one instruction, exp is two.
        scores = products * (self.rules.scale * LOG2_E)
        seen = self.visible()
        if seen is not None:
            scores = jnp.where(seen, scores, HIDDEN)
        if not self.keys.whole:
            scores = jnp.where(self.by_key(self.keys.inside), scores, -jnp.inf)
        return scores, seen

    def probabilities(self, scores: jax.Array, lse: jax.Array) -> jax.Array:
        """Softmax of log2 scores, from the log-sum-exp `[queries]`, tiny where nothing is seen."""
        p = jnp.exp2(scores - self.by_query(lse * LOG2_E))
        if self.visibility.lengths is None:
            return p  # causal, in its window or by segments, a query sees itself
        # A row without a visible key: at HIDDEN float32 has lost the log of the number of keys.
        alike = self.by_query(lse) < HIDDEN / 4
        if not self.keys.whole:
            alike = alike & self.by_key(self.keys.inside)
        return jnp.where(alike, 1 / self.keys.length, p)

    def dropped(self, x: jax.Array) -> jax.Array:
        """Dropout of probabilities or of their cotangent."""
        seeds, rate = self.visibility.seeds, self.rules.dropout
        if seeds is None or rate == 0:
            return x
        # The same bits in every pass and in either orientation: they depend on positions alone.
        of_query = dropout_bits.query_bits(seeds[0], self.head, self.queries.indices)
        of_key = dropout_bits.key_bits(seeds[1], self.keys.indices)
        kept = dropout_bits.kept(self.by_query(of_query), self.by_key(of_key), rate)
        return jnp.where(kept, x * (1 / (1 - rate)), 0.0)


def _skips(visibility: Visibility) -> bool:
    """Whether tiles of hidden keys may be left out: no row may be left without a key."""
    others = (visibility.segment_ids, visibility.window)
    return visibility.lengths is None or all(other is None for other in others)


def key_blocks(queries: Part, program: Program, visibility: Visibility):
    """First and one past the last block of keys that some of these queries may see."""
    block, rules = program.blocks.columns, program.rules
    every = pl.cdiv(program.num_keys, block)
    if not _skips(visibility):
        return 0, every
    # Before the window of the first query of the block, every tile is hidden as a whole.
    first: Any = 0
    if visibility.window is not None:
        oldest = queries.first - (visibility.window[0] - 1)
        first = lax.div(jnp.maximum(oldest, 0), block)
    # Behind the last query of the block, or behind the length, every tile is hidden as a whole.
    bound: Any = every
    if rules.causal:
        bound = jnp.minimum(every, lax.div(queries.first + queries.size + block - 1, block))
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        bound = jnp.minimum(bound, lax.div(length + block - 1, block))
        # A sample without tokens attends to all alike, so it must see all blocks.
        bound = jnp.where(length == 0, every, bound)
    return first, bound


def query_blocks(keys: Part, program: Program, visibility: Visibility):
    """First and one past the last block of queries that may see some of these keys."""
    block, rules = program.blocks.rows, program.rules
    every = pl.cdiv(program.num_queries, block)
    if not _skips(visibility):
        return 0, every
    first: Any = lax.div(keys.first, block) if rules.causal else 0
    end: Any = every
    if visibility.window is not None:
        # The last query that has the last of these keys in its window.
        last = keys.first + (keys.size - 1) + (visibility.window[0] - 1)
        end = jnp.minimum(every, lax.div(last, block) + 1)
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        if rules.causal:
            first = jnp.where(length == 0, 0, first)
        # Keys at or past the length are seen by no query, unless the sample has no token at all.
        some = (length == 0) | (keys.first < length)
        # Explicit integers: a choice between two Python numbers is compiled as a boolean.
        end = jnp.where(some, jnp.int32(every), jnp.int32(first))
    return first, end
