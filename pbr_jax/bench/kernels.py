"""Kernels on the shapes of real models: times on a GPU, and the compiler's figures without one."""

import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.bench.cases import attention, fused, optimizer, product, weight_gradient
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.gpu import find_card
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.measure import timing
from pbr_jax.measure.timing import Ceilings
from pbr_jax.runs.progress import progress

# H200: measured on one. RTX 4090: its maker's figures (Ada whitepaper), float32 accumulation.
CEILINGS = {"h200": Ceilings(790e12, 4.3e12), "rtx4090": Ceilings(165.2e12, 1.008e12)}


def all_cases() -> list[BenchCase]:
    """Cases of every kernel."""
    sources = (weight_gradient, attention, fused, optimizer, product)
    return [case for source in sources for case in source.bench_cases()]


def find_cases(only: str) -> list[BenchCase]:
    """Cases whose op and shape contain a text; raises ValueError where none does."""
    found = [case for case in all_cases() if only in f"{case.op}, {case.shape}"]
    if not found:
        names = ", ".join(sorted({case.op for case in all_cases()}))
        raise ValueError(f"--only {only}: no case has this in its name; there are {names}")
    return found


def figures(cases: Sequence[BenchCase], card: str) -> list[dict[str, Any]]:
    """The compiler's figures, one row per kernel; raises ValueError without ceilings."""
    target = find_card(card)
    if target.name not in CEILINGS:
        raise ValueError(f"--card {card}: must be one of {', '.join(CEILINGS)}")
    at_most = CEILINGS[target.name]
    return [
        {
            "op": case.op,
            "shape": case.shape,
            "kernel": use.name,
            "registers": use.registers,
            "spill bytes": use.spill_bytes,
            "shared bytes": use.shared_bytes,
            "threads": use.threads,
            "blocks": use.blocks,
            "floor us": round(1e6 * at_most.floor(case.flops, case.num_bytes), 1),
        }
        for case in cases
        if case.kernel == "triton"
        for use in kernel_use(_jitted(case, "triton"), case.args, target)
    ]


def times(cases: Sequence[BenchCase], rounds: int) -> dict[str, Any]:
    """Median seconds of each implementation of each case, all of a case in turn."""
    ceilings = timing.ceilings(jnp.bfloat16, rounds)
    rows = []
    with progress("kernels", len(cases)) as done:
        for case in cases:
            rows.append(_time(case, rounds, ceilings))
            done(case.op)
    return {"ceilings": ceilings._asdict(), "rows": rows}


def _time(case: BenchCase, rounds: int, ceilings: Ceilings) -> dict[str, Any]:
    arrays = random_arrays(case)

    def arguments() -> tuple[jax.Array, ...]:  # what is donated is copied before every call
        return tuple(jnp.copy(a) if i in case.donate else a for i, a in enumerate(arrays))

    # This package's kernel and its rivals, XLA among them.
    functions: dict[str, Callable[..., Any]] = {
        **{name: _jitted(case, name) for name in ("xla", case.kernel)},
        **{name: jax.jit(rival) for name, rival in case.rivals.items()},
    }
    runs = {name: timing.Run(function, arguments) for name, function in functions.items()}
    spent, refused = timing.in_turn(runs, rounds)
    extra = jax.jit(case.figures)(*arrays) if case.figures else {}
    return {
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


def _jitted(case: BenchCase, implementation: str):
    run = functools.partial(case.run, implementation=implementation)
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


def times_table(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each implementation of each case of `times`."""
    for row in found["rows"]:
        for name, seconds in row["seconds"].items():
            low, high = row["quartiles"][name]
            yield {
                "op": row["op"],
                "shape": row["shape"],
                "implementation": name,
                "us": f"{1e6 * seconds:.1f} ±{5e5 * (high - low):.1f}",
                "TFLOP/s": f"{row['flops'] / seconds / 1e12:.1f}",
                "GB/s": f"{row['bytes'] / seconds / 1e9:.0f}",
                "XLA / it": f"{row['seconds']['xla'] / seconds:.2f}",
                "floor us": f"{1e6 * row['floor']:.1f}",
            }
