"""Times every kernel against XLA and other implementations, on the shapes of real models.

    pbr bench kernels                       on a machine with a GPU: times, rates, the floor
    pbr bench kernels --card h200,rtx4090   anywhere: registers, spills, shared memory, the floor
    pbr bench kernels --only attention

The floor is arithmetic: the longer of what the matrix products take at the card's rate and what the
bytes take at its bandwidth. On a GPU both are measured in the same run; elsewhere they are those of
`CEILINGS`. Without a GPU no time is printed, since there is none.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.bench import report
from pbr_jax.bench.cases import attention as attention_cases
from pbr_jax.bench.cases import fused as fused_cases
from pbr_jax.bench.cases import optimizer as optimizer_cases
from pbr_jax.bench.cases import product as product_cases
from pbr_jax.bench.cases import weight_gradient
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.gpu import find_card
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.measure import timing
from pbr_jax.measure.timing import Ceilings
from pbr_jax.runs.progress import progress

SOURCES: tuple[Callable[[], list[BenchCase]], ...] = (
    weight_gradient.bench_cases,
    attention_cases.bench_cases,
    fused_cases.bench_cases,
    optimizer_cases.bench_cases,
    product_cases.bench_cases,
)


# H200: measured on one. RTX 4090: its maker's figures (Ada whitepaper), float32 accumulation.
CEILINGS = {"h200": Ceilings(790e12, 4.3e12), "rtx4090": Ceilings(165.2e12, 1.008e12)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--card",
        help=f"compile for these instead of timing, of {', '.join(CEILINGS)}; commas between",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    report.add_arguments(parser, rounds=30)


def main(args: argparse.Namespace) -> int:
    """Prints one table per card, or one of times."""
    cases = [case for case in all_cases() if args.only in f"{case.op}, {case.shape}"]
    if not cases:
        names = ", ".join(sorted({case.op for case in all_cases()}))
        raise ValueError(f"--only {args.only}: no case has this in its name; there are {names}")
    report.check_rounds(args.rounds)
    if args.card is None and jax.default_backend() == "gpu":
        with progress("kernels", len(cases)) as done:
            found = report.origin(args) | times(cases, args.rounds, done)
        return report.finish(args, found, _show_times)
    if args.card is None and not args.json:
        print("There is no GPU here, so there is nothing to time: figures of the compiler.")
    cards = (args.card or ",".join(CEILINGS)).split(",")
    found = report.origin(args) | {"cards": {card: figures(cases, card) for card in cards}}
    return report.finish(args, found, _show_figures)


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
        floor = 1e6 * CEILINGS[target.name].floor(case.flops, case.num_bytes)
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


def times(
    cases: Iterable[BenchCase], rounds: int, done: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Median seconds of each implementation of each case, all of a case in turn."""
    ceilings = timing.ceilings(jnp.bfloat16, rounds)
    rows = []
    for case in cases:
        arrays = random_arrays(case)
        names: tuple[str, ...] = ("xla", case.kernel)
        functions = {name: _jitted(case, name) for name in names}
        functions |= {name: jax.jit(rival) for name, rival in case.rivals.items()}
        runs = {name: _run(function, arrays, case.donate) for name, function in functions.items()}
        spent, refused = timing.in_turn(runs, rounds)
        extra = jax.jit(case.figures)(*arrays) if case.figures else {}
        rows.append(
            {
                "op": case.op,
                "shape": case.shape,
                "flops": case.flops,
                "bytes": case.num_bytes,
                "floor": ceilings.floor(case.flops, case.num_bytes),
                "seconds": {name: statistics.median(values) for name, values in spent.items()},
                "quartiles": {name: timing.spread(values)[1:] for name, values in spent.items()},
                "refused": refused,
                "figures": {name: float(value) for name, value in extra.items()},
            }
        )
        done(case.op)
    return {"ceilings": ceilings._asdict(), "rows": rows}


def _run(function: Callable[..., Any], arrays: list[jax.Array], donate) -> timing.Run:
    """What is donated is copied before every call."""
    return timing.Run(
        function, lambda: tuple(jnp.copy(a) if i in donate else a for i, a in enumerate(arrays))
    )


def _jitted(case: BenchCase, implementation: str):
    def run(*arrays):
        return case.run(*arrays, implementation=implementation)

    return jax.jit(run, donate_argnums=case.donate)


def random_arrays(case: BenchCase) -> list[jax.Array]:
    """Normal numbers, never zeros; those of float32 positive, since a moment may be a variance."""
    generator = np.random.default_rng(0)

    def draw(spec):
        if spec.dtype == jnp.uint8:
            return jnp.asarray(generator.integers(0, 256, spec.shape), spec.dtype)
        if jnp.issubdtype(spec.dtype, jnp.integer):
            chosen = generator.permutation(case.index_limit)[: spec.size]
            return jnp.asarray(chosen.reshape(spec.shape), spec.dtype)
        values = generator.standard_normal(spec.shape, np.float32)
        return jnp.asarray(np.abs(values) if spec.dtype == jnp.float32 else values, spec.dtype)

    return [draw(spec) for spec in case.args]


def _show_times(found: Mapping[str, Any]) -> None:
    print(f"{report.headline(found)}\n")
    rows = []
    for row in found["rows"]:
        for name, seconds in row["seconds"].items():
            low, high = row["quartiles"][name]
            rows.append(
                {
                    "op": row["op"],
                    "shape": row["shape"],
                    "implementation": name,
                    "us": f"{1e6 * seconds:.1f} ±{5e5 * (high - low):.1f}",
                    "TFLOP/s": f"{row['flops'] / seconds / 1e12:.1f}",
                    "GB/s": f"{row['bytes'] / seconds / 1e9:.0f}",
                    "XLA / it": f"{row['seconds']['xla'] / seconds:.2f}",
                    "floor us": f"{1e6 * row['floor']:.1f}",
                }
            )
    print(report.markdown(rows))
    refused = {
        f"{row['op']}, {row['shape']}, {name}": why
        for row in found["rows"]
        for name, why in row["refused"].items()
    }
    print(report.show_refusals(refused), end="")
    for row in found["rows"]:
        for name, value in row["figures"].items():
            print(f"{row['op']}, {row['shape']}: {name} {value:.3f}")


def _show_figures(found: Mapping[str, Any]) -> None:
    for card, rows in found["cards"].items():
        print(f"\n{find_card(card).description}\n\n{report.markdown(rows)}")
