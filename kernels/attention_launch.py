"""Launches of the attention kernels: their arrays, what is static in them, their grids.

A program works on the sample and head of its place in the grid `(blocks, H or Hkv, B)`. The refs of
a kernel hold all tokens of one head, `[N, channels]`, filled up to whole tiles: nothing is moved by
that, and what lies past the last token or channel is masked in every load and store.

With grouped queries several heads of q share one of k and v, which no array repeats. A program of
queries reads the k and v of its group. One of keys reads all heads of q of its group in turn, from
refs `[group, N, channels]`, so that it alone writes dk and dv of its keys.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl

from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.kernels.tiles import Blocks, Part

_SMALLEST_DOT = 16


class Arrays(NamedTuple):
    """Inputs of an attention kernel: arrays, the block specs of these, or refs."""

    # q, k, v: `[B, H, N, C]`, `[B, Hkv, M, C]`, `[B, Hkv, M, C']`, where Hkv divides H; any C,
    # filled up to a power of two on chip
    q: Any
    k: Any
    v: Any
    do: Any = None  # cotangent of the output, `[B, H, N, ...]`: the channels that v has, or all
    do_for_v: Any = None  # the channels of `do` that go with those of v, None if these are all
    # lse, delta: float32 `[B, H, N]`, log-sum-exp of the scores and `sum(p * dp)` over the keys
    lse: Any = None
    delta: Any = None
    visibility: Visibility = Visibility()  # without a `mask`

    def specs(self, blocks: Blocks, heads: int, least_channels: int) -> "Arrays":
        """Block specs in a grid of that many heads, see `_head_spec` and `_visibility_specs`."""

        def spec(name: str, x) -> Any:
            if x is None:
                return None
            if isinstance(x, Visibility):
                return _visibility_specs(x, blocks)
            block = blocks.columns if name in ("k", "v") else blocks.rows
            return _head_spec(x, block, heads, least_channels)

        return Arrays(*map(spec, self._fields, self))


class Run(NamedTuple):
    """How a kernel is run."""

    rules: Rules  # scale, causal, dropout
    blocks: Blocks  # rows are queries, columns keys; tiles are smaller where there are fewer tokens
    interpret: bool = False  # in Pallas' interpreter


class Program(NamedTuple):
    """Static facts of a kernel.

    Attributes:
      rules, blocks: of its `Run`.
      num_queries, num_keys: N and M.
      group: heads of q that share one of k and v.
      channels: of q and k, of v, and of `do`.
    """

    rules: Rules
    blocks: Blocks
    num_queries: int
    num_keys: int
    group: int
    channels: tuple[int, int, int]

    def queries(self, index: Any) -> Part:
        return Part(index * self.blocks.rows, self.blocks.rows, self.num_queries)

    def keys(self, index: Any) -> Part:
        return Part(index * self.blocks.columns, self.blocks.columns, self.num_keys)


def launch(
    kernel: Callable[..., None],
    arrays: Arrays,
    out_shape: Sequence[jax.ShapeDtypeStruct],
    over: Literal["queries", "keys"],
    run: Run,
    square: bool = True,
) -> list[jax.Array]:
    """Runs a kernel with a program for every block of queries, or of keys, of every head of these.

    Args:
      kernel: `kernel(Arrays of refs, *refs of the results, program=...)`; a compiled program has it
        under its name, behind "attention".
      arrays: what it reads.
      out_shape: of results that have the tokens of `over`.
      over: whether a program takes a block of queries or of keys.
      run: how.
      square: whether a tile of q may have as many channels as queries.
    """
    q, k, v = arrays[:3]
    num_queries, num_keys = q.shape[2], k.shape[2]
    # A tile that reaches far past the tokens would spend its time on what is masked.
    rows, columns = run.blocks.rows, run.blocks.columns
    blocks = run.blocks._replace(
        rows=min(rows, padded(num_queries)), columns=min(columns, padded(num_keys))
    )
    outputs = v if arrays.do is None else arrays.do
    channels = (q.shape[3], v.shape[3], outputs.shape[3])
    group = q.shape[1] // k.shape[1]
    program = Program(run.rules, blocks, num_queries, num_keys, group, channels)
    # Blocks go first in the grid: programs that run together then share a head, and its k and v
    # (or q and do) in the second-level cache.
    own, block = (q, blocks.rows) if over == "queries" else (k, blocks.columns)
    batch, heads, tokens, _ = own.shape
    least = 0 if square else 2 * blocks.rows
    call = blocks.call(
        functools.partial(kernel, program=program),
        f"attention{kernel.__name__}",
        (pl.cdiv(tokens, block), heads, batch),
        list(out_shape),
        run.interpret,
        in_specs=[arrays.specs(blocks, heads, least)],
        out_specs=[_head_spec(out, block, heads, least) for out in out_shape],
    )
    return call(arrays)


def padded(size: int) -> int:
    """`size` filled up to what a matrix product in a kernel takes: a power of two, at least 16."""
    return max(_SMALLEST_DOT, pl.next_power_of_2(size))


def _head_spec(
    x: jax.Array | jax.ShapeDtypeStruct, block: int, heads: int, least_channels: int
) -> pl.BlockSpec:
    """All tokens of a head of `[B, H, N, channels]` or `[B, H, N]`, in whole blocks of tokens.

    In a grid of more heads several programs share a head, in one of fewer a program has a group.
    """
    lead = (None, x.shape[1] // heads if x.shape[1] > heads else None)
    rest = [pl.cdiv(x.shape[2], block) * block]
    if x.ndim == 4:
        rest.append(max(padded(x.shape[3]), least_channels))
    sharing = max(1, heads // x.shape[1])
    zeros = (0,) * len(rest)
    return pl.BlockSpec((*lead, *rest), lambda i, h, b: (b, lax.div(h, sharing), *zeros))


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
        window=spec(visibility.window, 1),
        seeds=spec(visibility.seeds, 2),
    )
