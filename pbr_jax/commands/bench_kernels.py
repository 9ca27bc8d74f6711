"""Times every kernel against XLA and other implementations, on the shapes of real models.

    pbr bench kernels                       on a machine with a GPU: times, rates, the floor
    pbr bench kernels --card h200,rtx4090   anywhere: registers, spills, shared memory, the floor
    pbr bench kernels --only attention

The floor is arithmetic: the longer of what the matrix products take at the card's rate and what the
bytes take at its bandwidth. On a GPU both are measured in the same run; elsewhere they are those of
`CEILINGS`. Without a GPU no time is printed, since there is none.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax import __version__
from pbr_jax.gpu import find_card
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.ops import attention_cases, fused_cases, weight_gradient
from pbr_jax.ops.bench_case import BenchCase
from pbr_jax.training import optimizer_cases
from pbr_jax.training.metrics import write_json

SOURCES: tuple[Callable[[], list[BenchCase]], ...] = (
    weight_gradient.bench_cases,
    attention_cases.bench_cases,
    fused_cases.bench_cases,
    optimizer_cases.bench_cases,
)


class Ceilings(NamedTuple):
    """Bfloat16 matrix products, operations per second, and memory, bytes per second."""

    flops: float
    bandwidth: float

    def floor(self, case: BenchCase) -> float:
        """Least seconds of a case."""
        return max(case.flops / self.flops, case.num_bytes / self.bandwidth)


# H200: measured on one. RTX 4090: its maker's figures (Ada whitepaper), float32 accumulation.
CEILINGS = {"h200": Ceilings(790e12, 4.3e12), "rtx4090": Ceilings(165.2e12, 1.008e12)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--card",
        help=f"compile for these instead of timing, of {', '.join(CEILINGS)}; commas between",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    parser.add_argument("--rounds", type=int, default=30, help="of which the median is taken")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the same JSON to a file")


def main(args: argparse.Namespace) -> int:
    """Prints one table per card, or one of times."""
    cases = [case for case in all_cases() if args.only in f"{case.op}, {case.shape}"]
    if not cases:
        names = ", ".join(sorted({case.op for case in all_cases()}))
        raise ValueError(f"--only {args.only}: no case has this in its name; there are {names}")
    if args.rounds < 1:
        raise ValueError(f"--rounds {args.rounds}: must be 1 or more")
    timed = args.card is None and jax.default_backend() == "gpu"
    versions = {"jax": jax.__version__, "pbr_jax": __version__}
    if timed:
        found = {"versions": versions, **times(cases, args.rounds)}
    else:
        cards = (args.card or ",".join(CEILINGS)).split(",")
        found = {"versions": versions, "cards": {card: figures(cases, card) for card in cards}}
    if args.out:
        write_json(args.out, found)
    if args.json:
        print(json.dumps(found, indent=1))
    elif timed:
        _print_times(found)
    else:
        if args.card is None:
            print("There is no GPU here, so there is nothing to time: figures of the compiler.")
        for card, rows in found["cards"].items():
            print(f"\n{find_card(card).description}\n")
            _table(rows)
    return 0


def all_cases() -> list[BenchCase]:
    """The cases of every kernel."""
    return [case for source in SOURCES for case in source()]


def figures(cases: Iterable[BenchCase], card: str) -> list[dict[str, Any]]:
    """What the compiler says of each case's kernels on a card, one row per kernel."""
    target = find_card(card)
    if target.name not in CEILINGS:
        raise ValueError(f"--card {card}: must be one of {', '.join(CEILINGS)}")
    rows = []
    for case in cases:
        if case.kernel != "triton":
            continue
        floor = 1e6 * CEILINGS[target.name].floor(case)
        for use in kernel_use(_jitted(case, "triton"), case.args, target):
            rows.append(
                {
                    "op": case.op,
                    "shape": case.shape,
                    "kernel": use.name,
                    "registers": use.registers,
                    "spill bytes": use.spill_bytes,
                    "shared bytes": use.shared_bytes,
                    "threads": use.threads,
                    "blocks": use.blocks,
                    "floor us": round(floor, 1),
                }
            )
    return rows


def times(cases: Iterable[BenchCase], rounds: int) -> dict[str, Any]:
    """Median seconds of each implementation of each case, all of a case in turn."""
    ceilings = _measured_ceilings(rounds)
    rows = []
    for case in cases:
        arrays = _random_arrays(case)
        names: tuple[str, ...] = ("xla", case.kernel)
        runs = {name: _jitted(case, name) for name in names}
        runs |= {name: jax.jit(rival) for name, rival in case.rivals.items()}
        seconds, refused = _median_seconds(runs, arrays, case.donate, rounds)
        extra = jax.jit(case.figures)(*arrays) if case.figures else {}
        rows.append(
            {
                "op": case.op,
                "shape": case.shape,
                "flops": case.flops,
                "bytes": case.num_bytes,
                "floor": ceilings.floor(case),
                "seconds": seconds,
                "refused": refused,
                "figures": {name: float(value) for name, value in extra.items()},
            }
        )
    device = jax.devices()[0].device_kind
    return {"device": device, "ceilings": ceilings._asdict(), "rows": rows}


def _jitted(case: BenchCase, implementation: str):
    def run(*arrays):
        return case.run(*arrays, implementation=implementation)

    return jax.jit(run, donate_argnums=case.donate)


def _random_arrays(case: BenchCase) -> list[jax.Array]:
    """Normal numbers, never zeros; those of float32 positive, since a moment may be a variance."""
    generator = np.random.default_rng(0)

    def draw(spec):
        if jnp.issubdtype(spec.dtype, jnp.integer):
            chosen = generator.permutation(case.index_limit)[: spec.size]
            return jnp.asarray(chosen.reshape(spec.shape), spec.dtype)
        values = generator.standard_normal(spec.shape, np.float32)
        return jnp.asarray(np.abs(values) if spec.dtype == jnp.float32 else values, spec.dtype)

    return [draw(spec) for spec in case.args]


def _median_seconds(runs, arrays, donate, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Of each implementation that runs, and why the others do not."""
    spent: dict[str, list[float]] = {}
    refused = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            if name in refused:
                continue
            given = [jnp.copy(a) if i in donate else a for i, a in enumerate(arrays)]
            jax.block_until_ready(given)
            start = time.perf_counter()
            try:
                jax.block_until_ready(run(*given))
            except (ValueError, RuntimeError, NotImplementedError) as error:
                refused[name] = str(error).splitlines()[0]
                continue
            if turn:  # the first compiles
                spent.setdefault(name, []).append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in spent.items()}, refused


def _measured_ceilings(rounds: int) -> Ceilings:
    """Of the default device: a large bfloat16 product, and a copy that reads and writes."""
    side = 8192
    square = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    runs = {"product": jax.jit(jnp.matmul), "copy": jax.jit(lambda a, b: (-a, -b))}
    seconds, _ = _median_seconds(runs, [square, square + 1], (), rounds)
    moved = 2 * 2 * square.size * square.dtype.itemsize
    return Ceilings(2 * math.prod((side, side, side)) / seconds["product"], moved / seconds["copy"])


def _print_times(found: dict[str, Any]) -> None:
    flops, bandwidth = found["ceilings"]["flops"], found["ceilings"]["bandwidth"]
    print(
        f"{found['device']}: {flops / 1e12:.0f} TFLOP/s and {bandwidth / 1e9:.0f} GB/s measured\n"
    )
    rows = []
    for row in found["rows"]:
        for name, seconds in row["seconds"].items():
            rows.append(
                {
                    "op": row["op"],
                    "shape": row["shape"],
                    "implementation": name,
                    "us": f"{1e6 * seconds:.1f}",
                    "TFLOP/s": f"{row['flops'] / seconds / 1e12:.1f}",
                    "GB/s": f"{row['bytes'] / seconds / 1e9:.0f}",
                    "XLA / it": f"{row['seconds']['xla'] / seconds:.2f}",
                    "floor us": f"{1e6 * row['floor']:.1f}",
                }
            )
    _table(rows)
    for row in found["rows"]:
        for name, reason in row["refused"].items():
            print(f"{row['op']}, {row['shape']}: no {name}: {reason}")
        for name, value in row["figures"].items():
            print(f"{row['op']}, {row['shape']}: {name} {value:.3f}")


def _table(rows: list[dict[str, Any]]) -> None:
    """Rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
