"""Times functions in turn, and measures what the device can do at most.

A drift of the machine cancels where rivals are timed in turn and compared within each round. On a
GPU, what is short is called several times in a row without waiting, so that the device never waits
for the host; `Ceilings.launch` is the least that a call takes even so.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SAMPLE_SECONDS = 1e-3  # a sample of calls in a row takes at least this
_MOST_CALLS = 20
_FEWEST_ROUNDS = 5  # however long they take
_REFUSALS = (ValueError, RuntimeError, NotImplementedError)


class Run(NamedTuple):
    """A function to time."""

    function: Callable[..., Any]  # compiled or jitted
    arguments: Callable[[], tuple[Any, ...]]  # makes those of the next call, outside of the time
    # Receives each result: a train step keeps the state, since it donates the old one.
    keep: Callable[[Any], None] = lambda result: None
    chained: bool = False  # a call needs the result of the one before: none are made in a row


class Times(NamedTuple):
    """Seconds of a call in each round by name, and the reasons of those that refused to run."""

    seconds: dict[str, list[float]]
    refused: dict[str, str]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


class Ceilings(NamedTuple):
    """Rates that the device reaches: operations and bytes per second, and seconds of an empty call.

    Operations are those of a large matrix product, bytes those of a copy, read and written.
    """

    flops: float
    bandwidth: float
    launch: float = 0.0

    def floor(self, flops: float, num_bytes: float) -> float:
        """Least seconds for so many operations and bytes."""
        return max(flops / self.flops, num_bytes / self.bandwidth)


def compile_each(
    functions: Mapping[str, Callable[..., Any]], *args: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compiles functions for the same arguments; also gives the reasons of those that refuse."""
    compiled, refused = {}, {}
    for name, function in functions.items():
        try:
            compiled[name] = jax.jit(function).lower(*args).compile()
        except _REFUSALS as error:
            refused[name] = _first_line(error)
    return compiled, refused


def same(function: Callable[..., Any], *args: Any) -> Run:
    """A run with the same arguments at every call."""
    return Run(function, lambda: args)


def in_turn(
    runs: Mapping[str, Run],
    rounds: int,
    done: Callable[[str], None] = lambda name: None,
    *,
    seconds: float = math.inf,
) -> Times:
    """Times all runs, one after the other in each round, after two rounds to warm up.

    One that raises ValueError, RuntimeError or NotImplementedError is left out and noted. `done` is
    called after every sample. After so many `seconds` no further round begins, if five are timed.
    """
    calls: dict[str, int] = {}
    in_order = jax.default_backend() == "gpu"  # elsewhere calls in a row may run side by side
    spent: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    for turn in range(rounds + 2):
        if turn <= 2:
            began = time.perf_counter()  # of the first round that is timed
        elif turn >= 2 + _FEWEST_ROUNDS and time.perf_counter() - began >= seconds:
            break
        for name, run in runs.items():
            if name in refused:
                continue
            try:
                sample = _sample(run, calls.get(name, 1))
                # The first round compiles, the second says how many calls fill a sample.
                if turn == 1 and in_order and not run.chained:
                    calls[name] = min(_MOST_CALLS, max(1, math.ceil(_SAMPLE_SECONDS / sample)))
                elif turn > 1:
                    spent.setdefault(name, []).append(sample)
            except _REFUSALS as error:
                refused[name] = _first_line(error)
            done(name)
    return Times(spent, refused)


def _sample(run: Run, calls: int) -> float:
    """Seconds of a call, from `calls` in a row."""
    given = [run.arguments() for _ in range(calls)]
    jax.block_until_ready(given)
    start = time.perf_counter()
    for arguments in given:
        result = run.function(*arguments)
    jax.block_until_ready(result)
    seconds = (time.perf_counter() - start) / calls
    run.keep(result)
    return seconds


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def new_leaves(tree: Any, *given: Any) -> list[jax.Array]:
    """The leaves of `tree` that are no leaf of `given`.

    As outputs of a jitted function those would be copied, and a method that merely keeps its input
    would be charged for it.
    """
    old = {id(leaf) for leaf in jax.tree.leaves(given)}
    return [leaf for leaf in jax.tree.leaves(tree) if id(leaf) not in old]


def spread(values: list[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(mine: list[float], other: list[float]) -> Spread:
    """Ratios of `mine` to `other`, taken within each round."""
    return spread([a / b for a, b in zip(mine, other, strict=True)])


def ceilings(dtype: jax.typing.DTypeLike, rounds: int) -> Ceilings:
    """Measures peak matmul FLOP/s (in `dtype`), copy bandwidth and launch time of the device."""
    gpu = jax.default_backend() == "gpu"
    side, copied = (8192, 2**26) if gpu else (1024, 2**24)
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    long = jnp.arange(1, copied + 1, dtype=jnp.float32)
    runs = {
        "product": same(jax.jit(jnp.matmul), square, square + 1),
        "copy": same(jax.jit(jnp.negative), long),
        "launch": same(jax.jit(jnp.negative), long[:8]),
    }
    seconds = {name: statistics.median(s) for name, s in in_turn(runs, rounds).seconds.items()}
    return Ceilings(
        2 * side**3 / seconds["product"], 2 * long.nbytes / seconds["copy"], seconds["launch"]
    )


def random_like(spec: Any, seed: int, below: int = 0) -> jax.Array:
    """An array of the shape and dtype of `spec`: normal numbers, or integers in `[0, below)`.

    Never zeros throughout, which a GPU multiplies faster.
    """
    generator = np.random.default_rng(seed)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return jnp.asarray(generator.integers(below, size=spec.shape), spec.dtype)
    return jnp.asarray(generator.standard_normal(spec.shape, np.float32), spec.dtype)
