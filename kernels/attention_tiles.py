"""Parts that the attention kernels share: arguments, a tile of scores, loads and stores, grids.

A program works on the samples and heads of its place in the grid `(blocks, H, B)`. The refs of a
kernel hold all tokens of one head, `[N, channels]`, filled up to whole tiles: nothing is moved by
that, and what lies past the last token or channel is masked in every load and store.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pbr_jax.kernels import dropout_bits
from pbr_jax.kernels.attention_arguments import HIDDEN, Rules, Visibility
from pbr_jax.kernels.tiles import Blocks, Part

LOG2_E = math.log2(math.e)
_SMALLEST_DOT = 16


class Arrays(NamedTuple):
    """Inputs of an attention kernel: arrays, the block specs of these, or refs.

    Attributes:
      q, k, v: `[B, H, N, C]`, `[B, H, M, C]`, `[B, H, M, C']`; any C, filled up to a power of two
        on chip.
      do: cotangent of the output, `[B, H, N, ...]`: the channels that v has, or all.
      do_for_v: the channels of `do` that go with those of v, None if these are all.
      lse, delta: float32 `[B, H, N]`, log-sum-exp of the scores and `sum(p * dp)` over the keys.
      visibility: without a `mask`.
    """

    q: Any
    k: Any
    v: Any
    do: Any = None
    do_for_v: Any = None
    lse: Any = None
    delta: Any = None
    visibility: Visibility = Visibility()

    def specs(self, blocks: Blocks, least_channels: int) -> "Arrays":
        """Block specs: of all tokens of one head, and of one sample's share of `visibility`."""

        def spec(name: str, x) -> Any:
            if x is None:
                return None
            if isinstance(x, Visibility):
                return _visibility_specs(x, blocks)
            block = blocks.columns if name in ("k", "v") else blocks.rows
            return _head_spec(x, block, least_channels)

        return Arrays(*map(spec, self._fields, self))


class Program(NamedTuple):
    """Static facts of a kernel.

    Attributes:
      rules: scale, causal, dropout.
      blocks: rows are queries, columns keys.
      num_queries, num_keys: N and M.
      channels: of q and k, of v, and of `do`.
    """

    rules: Rules
    blocks: Blocks
    num_queries: int
    num_keys: int
    channels: tuple[int, int, int]

    def queries(self, index: Any) -> Part:
        return Part(index * self.blocks.rows, self.blocks.rows, self.num_queries)

    def keys(self, index: Any) -> Part:
        return Part(index * self.blocks.columns, self.blocks.columns, self.num_keys)


def launch(
    kernel: Callable[..., None],
    name: str,
    arrays: Arrays,
    out_shape: Sequence[jax.ShapeDtypeStruct],
    *,
    over: Literal["queries", "keys"],
    rules: Rules,
    blocks: Blocks,
    interpret: bool,
    square: bool = True,
) -> list[jax.Array]:
    """Runs a kernel with a program for every block of queries, or of keys, of every head.

    Args:
      kernel: `kernel(Arrays of refs, *refs of the results, program=...)`.
      name: of the kernel in a compiled program.
      arrays: what it reads.
      out_shape: of results that have the tokens of `over`.
      over: whether a program takes a block of queries or of keys.
      rules, blocks: see `Program`; tiles are smaller where there are fewer tokens.
      interpret: run in Pallas' interpreter.
      square: whether a tile of q may have as many channels as queries.
    """
    q, k, v = arrays[:3]
    num_queries, num_keys = q.shape[2], k.shape[2]
    blocks = blocks._replace(
        rows=min(blocks.rows, padded(num_queries)), columns=min(blocks.columns, padded(num_keys))
    )
    outputs = v if arrays.do is None else arrays.do
    channels = (q.shape[3], v.shape[3], outputs.shape[3])
    program = Program(rules, blocks, num_queries, num_keys, channels)
    by_query = over == "queries"
    tokens, block = (num_queries, blocks.rows) if by_query else (num_keys, blocks.columns)
    least = 0 if square else 2 * blocks.rows
    return pl.pallas_call(
        functools.partial(kernel, program=program),
        grid=(pl.cdiv(tokens, block), *q.shape[1::-1]),
        in_specs=[arrays.specs(blocks, least)],
        out_specs=[_head_spec(out, block, least) for out in out_shape],
        out_shape=list(out_shape),
        compiler_params=blocks.compiler_params(),
        interpret=interpret,
        name=name,
    )(arrays)


def padded(size: int) -> int:
    """`size` filled up to what a matrix product in a kernel takes: a power of two, at least 16."""
    return max(_SMALLEST_DOT, pl.next_power_of_2(size))


def _head_spec(
    x: jax.Array | jax.ShapeDtypeStruct, block: int, least_channels: int
) -> pl.BlockSpec:
    """All tokens of one head of `[B, H, N, channels]` or `[B, H, N]`, in whole blocks of tokens."""
    tokens = pl.cdiv(x.shape[2], block) * block
    if x.ndim == 3:
        return pl.BlockSpec((None, None, tokens), lambda i, h, b: (b, h, 0))
    channels = max(padded(x.shape[3]), least_channels)
    return pl.BlockSpec((None, None, tokens, channels), lambda i, h, b: (b, h, 0, 0))


def _visibility_specs(visibility: Visibility, blocks: Blocks) -> Any:
    """Block specs of the entries of a `Visibility`: one sample's share."""

    def spec(x, block) -> Any:
        if x is None:
            return None
        if x.ndim == 1:
            return pl.BlockSpec((1,), lambda i, h, b: (b,))
        return pl.BlockSpec((None, pl.cdiv(x.shape[1], block) * block), lambda i, h, b: (b, 0))

    return Visibility(
        lengths=spec(visibility.lengths, 1),
        segment_ids=spec(visibility.segment_ids, max(blocks.rows, blocks.columns)),
        seeds=spec(visibility.seeds, 2),
    )


def _mask(ref, tokens: Part, channels: int | None) -> jax.Array | None:
    """Mask of `[size]` or `[size, padded channels]`; None where all surely lies inside."""
    inside = None if tokens.whole else tokens.inside
    if channels is None:
        return inside
    mask = None if inside is None else inside[:, None]
    if channels == ref.shape[-1]:
        return mask
    of_channels = (jnp.arange(ref.shape[-1]) < channels)[None, :]
    return of_channels if mask is None else mask & of_channels


def load(ref, tokens: Part, channels: int | None = None, other: float = 0.0) -> jax.Array:
    """Tokens of `ref`, `[size]` or `[size, padded channels]`; `other` past the edges."""
    view = ref.at[tokens.slice] if channels is None else ref.at[tokens.slice, :]
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

        if told.lengths is not None:
            seen = also(self.by_key(self.keys.indices < told.lengths[0]))
        if told.segment_ids is not None:
            own, others = load(told.segment_ids, self.queries), load(told.segment_ids, self.keys)
            seen = also(self.by_query(own) == self.by_key(others))
        if self.rules.causal:
            seen = also(self.by_key(self.keys.indices) <= self.by_query(self.queries.indices))
        return seen

    def log2_scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Scores over log 2 from the products of q and k, and which are seen (None: all).

        A hidden key scores `HIDDEN`, so that a row of hidden ones alone attends to all alike; what
        lies past the last key scores minus infinity.
        """
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
            return p  # causal or by segments, a query sees itself
        alike = self.by_query(lse) < HIDDEN / 4
        if not self.keys.whole:
            alike = alike & self.by_key(self.keys.inside)
        return jnp.where(alike, 1 / self.keys.length, p)

    def dropped(self, x: jax.Array) -> jax.Array:
        """Dropout of probabilities or of their cotangent."""
        seeds, rate = self.visibility.seeds, self.rules.dropout
        if seeds is None or rate == 0:
            return x
        of_query = dropout_bits.query_bits(seeds[0], self.head, self.queries.indices)
        of_key = dropout_bits.key_bits(seeds[1], self.keys.indices)
        kept = dropout_bits.kept(self.by_query(of_query), self.by_key(of_key), rate)
        return jnp.where(kept, x * (1 / (1 - rate)), 0.0)


def _skips(visibility: Visibility) -> bool:
    """Whether tiles of hidden keys may be left out: no row may be left without a key."""
    return visibility.segment_ids is None or visibility.lengths is None


def key_blocks(queries: Part, program: Program, visibility: Visibility):
    """How many blocks of keys, from the first, some of these queries may see."""
    block, rules = program.blocks.columns, program.rules
    every = pl.cdiv(program.num_keys, block)
    if not _skips(visibility):
        return every
    bound: Any = every
    if rules.causal:
        bound = jnp.minimum(every, lax.div(queries.first + queries.size + block - 1, block))
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        bound = jnp.minimum(bound, lax.div(length + block - 1, block))
        # A sample without tokens attends to all alike, so it must see all blocks.
        bound = jnp.where(length == 0, every, bound)
    return bound


def query_blocks(keys: Part, program: Program, visibility: Visibility):
    """First and one past the last block of queries that may see some of these keys."""
    block, rules = program.blocks.rows, program.rules
    every = pl.cdiv(program.num_queries, block)
    if not _skips(visibility):
        return 0, every
    first: Any = lax.div(keys.first, block) if rules.causal else 0
    end: Any = every
    if visibility.lengths is not None:
        length = visibility.lengths[0]
        if rules.causal:
            first = jnp.where(length == 0, 0, first)
        some = (length == 0) | (keys.first < length)
        # Explicit integers: a choice between two Python numbers is compiled as a boolean.
        end = jnp.where(some, jnp.int32(every), jnp.int32(first))
    return first, end
