"""Times implementations of attention and says what each saves (the paper's Table 2, of the op).

    pbr bench attention                                  ViT-B/16, batch 128
    pbr bench attention --shape 32 12 512 64             BERT-base, 32 x 512
    pbr bench attention --shape 2 12 197 64 --rounds 5   less, for a CPU

All are timed in turn in one process. Cosines are those of the gradients with the exact ones. What
needs a GPU says so elsewhere. The paper's whole runs with each attention are methods of
`pbr bench step`: full, backrazor, prebackrazor, prebackrazor++, with /js50.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from pbr_jax.bench import attention, report
from pbr_jax.runs.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=[128, 12, 197, 64],
        metavar=("B", "H", "N", "HEAD"),
        help="of q, k and v; default 128 12 197 64",
    )
    parser.add_argument(
        "--keeps", type=float, nargs="+", default=[0.1, 0.2], metavar="KEEP", help="of the sparse"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    report.add_arguments(parser, rounds=21)


def main(args: argparse.Namespace) -> int:
    """Measures, then prints one table."""
    report.check_rounds(args.rounds)
    shape = attention.AttentionShape(*args.shape)
    if min(shape) < 1:
        raise ValueError(f"--shape {' '.join(map(str, shape))}: must be 1 or more each")
    samples = 2 * len(attention.variants(args.keeps)) * (args.rounds + 2)
    with progress("attention", samples) as done:
        measured = attention.measure(shape, args.keeps, args.dtype, args.rounds, done)
    found = {"shape": shape, "dtype": args.dtype} | measured
    return report.finish(args, found, _show)


def _show(found: Mapping[str, Any]) -> None:
    batch, heads, tokens, head = found["shape"]
    print(report.headline(found))
    print(f"q, k, v [{batch}, {heads}, {tokens}, {head}], {found['dtype']}; medians.\n")
    print(report.markdown(list(attention.table(found))))
    print(report.show_refusals(found["refused"]), end="")
