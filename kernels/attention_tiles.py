"""What the attention kernels share: a tile of scores, loads and stores with ragged edges, grids.

A program works on the samples and heads of its place in the grid `(blocks, H, B)`. The refs of a
kernel hold all tokens of one head, `[N, channels]`, filled up to whole tiles: nothing is moved by
that, and what lies past the last token or channel is masked in every load and store.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels import dropout_bits
from pbr_jax.kernels.attention_arguments import HIDDEN, Rules, Visibility

LOG2_E = math.log2(math.e)
_SMALLEST_DOT = 16


class Blocks(NamedTuple):
    """How a kernel is cut: tile of queries and keys (powers of two), warps and pipeline stages."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int

    def compiler_params(self) -> triton.CompilerParams:
        return triton.CompilerParams(num_warps=self.num_warps, num_stages=self.num_stages)

    def for_lengths(self, num_queries: int, num_keys: int) -> "Blocks":
        """Smaller tiles where there are fewer tokens."""
        return self._replace(
            queries=min(self.queries, padded(num_queries)), keys=min(self.keys, padded(num_keys))
        )


def padded(size: int) -> int:
    """`size` filled up to what a matrix product in a kernel takes: a power of two, at least 16."""
    return max(_SMALLEST_DOT, pl.next_power_of_2(size))


def head_spec(
    x: jax.Array | jax.ShapeDtypeStruct, block: int, least_channels: int = 0
) -> pl.BlockSpec:
    """All tokens of one head of `[B, H, N, channels]` or `[B, H, N]`, in whole blocks of tokens."""
    tokens = pl.cdiv(x.shape[2], block) * block
    if x.ndim == 3:
        return pl.BlockSpec((None, None, tokens), lambda i, h, b: (b, h, 0))
    channels = max(padded(x.shape[3]), least_channels)
    return pl.BlockSpec((None, None, tokens, channels), lambda i, h, b: (b, h, 0, 0))


def visibility_specs(visibility: Visibility, blocks: Blocks) -> Any:
    """Block specs of what is there of a `Visibility`: one sample's share."""

    def spec(x, block) -> Any:
        if x is None:
            return None
        if x.ndim == 1:
            return pl.BlockSpec((1,), lambda i, h, b: (b,))
        return pl.BlockSpec((None, pl.cdiv(x.shape[1], block) * block), lambda i, h, b: (b, 0))

    return Visibility(
        lengths=spec(visibility.lengths, 1),
        segment_ids=spec(visibility.segment_ids, max(blocks.queries, blocks.keys)),
        key_bias=spec(visibility.key_bias, blocks.keys),
        seeds=spec(visibility.seeds, 2),
    )


class Side(NamedTuple):
    """A block of queries or of keys: where it starts, its size, and of how many tokens."""

    start: jax.Array | int
    size: int
    tokens: int

    @property
    def slice(self) -> Any:
        return pl.ds(self.start, self.size)

    @property
    def positions(self) -> jax.Array:
        return self.start + jnp.arange(self.size, dtype=jnp.int32)

    @property
    def inside(self) -> jax.Array | None:
        """Which positions are tokens; None if all surely are."""
        return self.positions < self.tokens if self.tokens % self.size else None

    def _mask(self, ref, channels: int | None) -> jax.Array | None:
        inside = self.inside
        if channels is None:
            return inside
        mask = None if inside is None else inside[:, None]
        if channels == ref.shape[-1]:
            return mask
        of_channels = (jnp.arange(ref.shape[-1]) < channels)[None, :]
        return of_channels if mask is None else mask & of_channels

    def load(self, ref, channels: int | None = None, other: float = 0.0) -> jax.Array:
        """Tokens of `ref`, `[size]` or `[size, padded channels]`; `other` past the edges."""
        view = ref.at[self.slice] if channels is None else ref.at[self.slice, :]
        mask = self._mask(ref, channels)
        if mask is None:
            return triton.load(view)
        full = jnp.broadcast_to(mask, view.shape)
        return triton.load(view, mask=full, other=jnp.asarray(other, ref.dtype))

    def store(self, ref, value: jax.Array, channels: int | None = None) -> None:
        """Writes tokens of `ref`, in its dtype, as far as they are there."""
        view = ref.at[self.slice] if channels is None else ref.at[self.slice, :]
        mask = self._mask(ref, channels)
        full = None if mask is None else jnp.broadcast_to(mask, view.shape)
        triton.store(view, value.astype(ref.dtype), mask=full)


class Tile(NamedTuple):
    """Scores of some queries and keys, `[queries, keys]`, or `[keys, queries]` if `flipped`."""

    queries: Side
    keys: Side
    head: jax.Array
    visibility: Visibility  # of refs
    rules: Rules
    flipped: bool = False

    def by_query(self, x: jax.Array) -> jax.Array:
        return x[None, :] if self.flipped else x[:, None]

    def by_key(self, x: jax.Array) -> jax.Array:
        return x[:, None] if self.flipped else x[None, :]

    def visible(self, bias: jax.Array | None) -> jax.Array | None:
        """Which keys are seen, or None if nothing hides any."""
        told, seen = self.visibility, None

        def also(condition):
            return condition if seen is None else seen & condition

        if told.lengths is not None:
            seen = also(self.by_key(self.keys.positions < told.lengths[0]))
        if told.segment_ids is not None:
            own, others = self.queries.load(told.segment_ids), self.keys.load(told.segment_ids)
            seen = also(self.by_query(own) == self.by_key(others))
        if bias is not None:
            seen = also(self.by_key(bias > HIDDEN / 10))
        if self.rules.causal:
            seen = also(self.by_key(self.keys.positions) <= self.by_query(self.queries.positions))
        return seen

    def log2_scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scores over log 2 from the products of q and k, and which are seen (None: all).

        A hidden key scores `HIDDEN`, so that a row of hidden ones alone attends to all alike; what
        lies past the last key scores minus infinity.
        """
        scores = products * (self.rules.scale * LOG2_E)
        bias = None
        if self.visibility.key_bias is not None:
            bias = self.keys.load(self.visibility.key_bias)
            scores = scores + self.by_key(jnp.maximum(bias * LOG2_E, HIDDEN))
        seen = self.visible(bias)
        if seen is not None:
            scores = jnp.where(seen, scores, HIDDEN)
        if self.keys.inside is not None:
            scores = jnp.where(self.by_key(self.keys.inside), scores, -jnp.inf)
        return scores, seen

    def probabilities(self, scores: jax.Array, lse: jax.Array) -> jax.Array:
        """Of log2 scores, from the log-sum-exp `[queries]`, which is tiny where nothing is seen."""
        p = jnp.exp2(scores - self.by_query(lse * LOG2_E))
        told = self.visibility
        if told.lengths is None and told.key_bias is None:
            return p  # causal or by segments, a query sees itself
        alike = self.by_query(lse) < HIDDEN / 4
        if self.keys.inside is not None:
            alike = alike & self.by_key(self.keys.inside)
        return jnp.where(alike, 1 / self.keys.tokens, p)

    def dropped(self, x: jax.Array) -> jax.Array:
        """Dropout of probabilities or of their cotangent."""
        seeds, rate = self.visibility.seeds, self.rules.dropout
        if seeds is None or rate == 0:
            return x
        of_query = dropout_bits.query_bits(seeds[0], self.head, self.queries.positions)
        of_key = dropout_bits.key_bits(seeds[1], self.keys.positions)
        kept = dropout_bits.kept(self.by_query(of_query), self.by_key(of_key), rate)
        return jnp.where(kept, x * (1 / (1 - rate)), 0.0)


def _skips(visibility: Visibility) -> bool:
    """Whether tiles of hidden keys may be left out: no row may be left without a key."""
    told = visibility
    return told.key_bias is None and (told.segment_ids is None or told.lengths is None)


def key_blocks(queries: Side, block: int, num_keys: int, visibility: Visibility, rules: Rules):
    """How many blocks of keys, from the first, some of these queries may see."""
    every = pl.cdiv(num_keys, block)
    if not _skips(visibility):
        return every
    bound: Any = every
    if rules.causal:
        bound = jnp.minimum(every, lax.div(queries.start + queries.size + block - 1, block))
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        bound = jnp.minimum(bound, lax.div(length + block - 1, block))
        bound = jnp.where(length == 0, every, bound)
    return bound


def query_blocks(keys: Side, block: int, num_queries: int, visibility: Visibility, rules: Rules):
    """First and one past the last block of queries that may see some of these keys."""
    every = pl.cdiv(num_queries, block)
    if not _skips(visibility):
        return 0, every
    first: Any = lax.div(keys.start, block) if rules.causal else 0
    end: Any = every
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        if rules.causal:
            first = jnp.where(length == 0, 0, first)
        some = (length == 0) | (keys.start < length)
        # Explicit integers: a choice between two Python numbers is compiled as a boolean.
        end = jnp.where(some, jnp.int32(every), jnp.int32(first))
    return first, end
