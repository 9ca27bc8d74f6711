"""Times a train step by every method and says its memory (the paper's Tables 1, 4 and 5).

    pbr bench step                                        the small ViT of the digits, anywhere
    pbr bench step --config configs/vit_b16.py --config.model.dtype=bfloat16
    pbr bench step --config configs/bert_rte.py --config.batch_size=8 --config.model.max_length=128
    pbr bench step --config configs/vit_b16.py --config.model.size=S --config.batch_size=8 \
        --methods full,remat,prebackrazor,fast,lean,tiny --rounds 7     for a CPU

All methods are in one process and take their steps in turn, ratios are taken within each round.
Data and weights are random, none are read. Memory is what the compiler planned; `pbr bench memory`
measures it. On a GPU the last column is the ratio that `pbr fit` expects, by arithmetic.
"""

import argparse

from pbr_jax.bench import report, step
from pbr_jax.settings.flags import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    step.add_methods(parser)
    report.add_arguments(parser, rounds=11)


def main(args: argparse.Namespace) -> int:
    methods = step.checked_methods(args.arguments.config, args.methods)
    report.check_rounds(args.rounds)
    found = step.measure(args.arguments.config, methods, args.rounds)
    # The least that a full step could take, by its matrix products alone.
    least = found["dense_flops"] / found["ceilings"]["flops"]
    return report.finish(
        args,
        found,
        f"{found['family']}, batch {found['batch']}, {found['dtype']}; at"
        f" that rate the matrix products of a full step take {1e3 * least:.3g} ms.",
        report.table(step.table(found)),
        "\nms: median and half of the distance of the quartiles; ratios: median and quartiles."
        " temp and peak: the compiler's plan.",
        report.refusals(found["refused"]),
    )
