"""Times one linear layer: dense, BackRazor, pruned columns (the paper's Figure 1 and Table 3).

    pbr bench linear                                       the paper's input on a GPU
    pbr bench linear --shape 16 197 768 768 --rounds 11    less, for a CPU
    pbr bench linear --dtype bfloat16 --figure linear.png --out linear.json

Everything of one keep is timed in turn in one process; ratios are taken within each round. `keep`
is the fraction that is kept: it must be what the paper's Table 3 calls sparsity, since its times
grow with that. BackRazor's elements are found by a sort (as its authors do), by counting (this
package in plain JAX) or by this package's kernel (needs a GPU and jax-triton). The data are random
numbers, never zeros.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pbr_jax.bench import linear, report
from pbr_jax.files import user_path

_KEEPS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        metavar=("B", "N", "D", "F"),
        help="input [B, N, D], F features; default 128 197 768 768 on a GPU, else 8 197 768 768",
    )
    parser.add_argument("--keeps", type=float, nargs="+", default=_KEEPS, metavar="KEEP")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--figure", type=user_path, metavar="FILE.png", help="the paper's Figure 1")
    report.add_arguments(parser, rounds=21)


def main(args: argparse.Namespace) -> int:
    report.check_rounds(args.rounds)
    batch = 128 if jax.default_backend() == "gpu" else 8
    *inputs, features = shape = args.shape or [batch, 197, 768, 768]
    report.check_shape(shape)
    found = linear.measure(linear.LayerShape(*shape), args.keeps, args.dtype, args.rounds)
    if args.figure:
        _draw(found, args.figure)
    return report.finish(
        args,
        found,
        f"Input {inputs}, {features} features, {args.dtype}; medians.",
        "Sort, counting and kernel are three ways for BackRazor to find what it keeps.",
        "MB saved: dense, pruned, BackRazor.",
        *(report.table(linear.table(found, one), title=one) for one in linear.PASSES),
        report.refusals({n: why for row in found["rows"] for n, why in row["refused"].items()}),
    )


def _draw(found: Mapping[str, Any], file: Path) -> None:
    """Milliseconds of both passes against keep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, one in zip(figure.subplots(1, 2), linear.PASSES, strict=True):
        rows = [row for row in found["rows"] if row["pass"] == one]
        for name in linear.VARIANTS:
            # A variant that was refused has no line.
            ran = [row for row in rows if name in row["seconds"]]
            if ran:
                times = [1e3 * statistics.median(row["seconds"][name]) for row in ran]
                keeps = [row["keep"] for row in ran]
                axes.plot(keeps, times, marker="o", markersize=3.5, label=name)
        axes.set(title=one, xlabel="fraction kept", ylabel="ms", ylim=(0, None))
        axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
