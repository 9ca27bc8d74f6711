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
from collections.abc import Mapping
from typing import Any

from pbr_jax.bench import report, step
from pbr_jax.runs.progress import progress
from pbr_jax.settings.flags import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_config(parser)
    step.add_methods(parser)
    report.add_arguments(parser, rounds=11)


def main(args: argparse.Namespace) -> int:
    """Measures, then prints one table."""
    config, methods = args.arguments.config, step.checked_methods(args.methods)
    report.check_rounds(args.rounds)
    with progress("train step", len(methods) * (args.rounds + 3)) as done:
        measured = step.measure(config, methods, args.rounds, done)
    return report.finish(args, measured, _show)


def _show(found: Mapping[str, Any]) -> None:
    print(report.headline(found))
    least = found["dense_flops"] / found["ceilings"]["flops"]
    print(
        f"{found['family']}, {found['tokens']} tokens, batch {found['batch']}, {found['dtype']}; at"
        f" that rate the matrix products of a full step take {1e3 * least:.3g} ms.\n"
    )
    print(report.markdown(list(step.table(found))))
    print(
        "\nms: median and half of the distance of the quartiles; ratios: median and quartiles."
        " temp and peak: the compiler's plan."
    )
    print(report.show_refusals(found["refused"]), end="")
