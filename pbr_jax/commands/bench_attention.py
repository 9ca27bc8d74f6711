"""Times implementations of attention and says what each saves (the paper's Table 2, of the op).

    pbr bench attention                                  ViT-B/16, batch 128
    pbr bench attention --shape 32 12 512 64             BERT-base, 32 x 512
    pbr bench attention --shape 2 12 197 64 --rounds 5   less, for a CPU

All are timed in turn in one process. Cosines are those of the gradients with the exact ones. What
needs a GPU says so elsewhere. The paper's whole runs with each attention are methods of
`pbr bench step`: full, backrazor, prebackrazor, prebackrazor++, with /js50.
"""

import argparse

from pbr_jax.bench import attention, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    report.check_rounds(args.rounds)
    report.check_shape(args.shape)
    shape = attention.AttentionShape(*args.shape)
    found = attention.measure(shape, args.keeps, args.dtype, args.rounds)
    return report.finish(
        args,
        found,
        f"q, k, v {args.shape}, {args.dtype}; medians.",
        report.table(attention.table(found)),
        report.refusals(found["refused"]),
    )
