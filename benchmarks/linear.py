"""One linear layer, forward and backward: dense, pruned columns, BackRazor (the paper's Table 3).

    python benchmarks/linear.py --out benchmarks/results/linear_cpu.json

All variants run in one process, in turn, after a warm-up; medians, and ratios taken within each
round.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from pbr_jax.ops.linear import linear
from pbr_jax.plans import budget_for
from pbr_jax.training.metrics import write_json


def variants(num_columns: int, keeps: list[float]) -> dict[str, tuple]:
    """Name -> (loss over differentiable arguments, extra arguments)."""

    def loss(out, dy):
        return jnp.vdot(out, dy)

    found = {"dense": lambda x, w, b, dy, rows, columns: loss(linear(x, w, b), dy)}
    for keep in keeps:
        found[f"pruned {keep}"] = lambda x, w, b, dy, rows, columns: loss(
            linear(x, w, b, columns=columns, rows=rows), dy
        )
    found["backrazor 0.1"] = lambda x, w, b, dy, rows, columns: loss(
        linear(x, w, b, residual="elements", keep=0.1), dy
    )
    return found


def main() -> None:
    """Prints the table and writes the raw times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=int, nargs=4, default=[64, 197, 768, 768], metavar=("B", "N", "D", "F")
    )
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    batch, tokens, d, f = args.shape
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (batch, tokens, d))
    w = jax.random.normal(keys[1], (d, f)) / d**0.5
    b = jnp.zeros((f,))
    dy = jax.random.normal(keys[2], (batch, tokens, f))

    steps = {}
    for name, function in variants(d, args.keeps).items():
        keep = float(name.split()[-1]) if " " in name else 1.0
        columns = jnp.sort(jax.random.permutation(keys[3], d)[: budget_for(keep, d)]).astype(
            jnp.int32
        )
        rows = jnp.zeros((columns.shape[0], f))
        wrt = (0, 2, 4) if name.startswith("pruned") else (0, 1, 2)
        # With the value, or XLA would leave the forward product out.
        compiled = (
            jax.jit(jax.value_and_grad(function, wrt)).lower(x, w, b, dy, rows, columns).compile()
        )
        steps[name] = (compiled, (x, w, b, dy, rows, columns))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
        for name, (step, arguments) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            if round_:  # the first round warms up
                times[name].append(time.perf_counter() - start)

    print("| variant | ms | dense / it | BackRazor / it |\n|---|---|---|---|")
    for name, spent in times.items():
        ratios = [
            statistics.median(o / s for o, s in zip(times[other], spent, strict=True))
            for other in ("dense", "backrazor 0.1")
        ]
        print(
            f"| {name} | {1e3 * statistics.median(spent):.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    if args.out:
        device = jax.devices()[0].device_kind
        write_json(
            args.out,
            {"shape": args.shape, "jax": jax.__version__, "device": device, "seconds": times},
        )


if __name__ == "__main__":
    main()
