"""Compares what the compiler plans for a train step with what the GPU then has in use.

    pbr bench memory --config configs/vit_b16.py --methods full,fast,lean,tiny

Each method is compiled and takes three steps in a process of its own. Without a GPU only the
compiler's plan for this device is printed; `pbr fit` has that for a named card.
"""

import argparse

from pbr_jax.bench import live, report, step
from pbr_jax.settings.flags import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    step.add_methods(parser)
    report.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    found = live.measure(
        args.arguments.config, step.checked_methods(args.arguments.config, args.methods)
    )
    return report.finish(
        args, found, report.table(live.table(found)), report.refusals(found["refused"])
    )
