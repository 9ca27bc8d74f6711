"""Compares what the compiler plans for a train step with what the GPU then has in use.

    pbr bench memory --config configs/vit_b16.py --methods full,fast,lean,tiny

Each method is compiled and takes three steps in a process of its own. Without a GPU only the
compiler's plan for this device is printed; `pbr fit` has that for a named card.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from pbr_jax.bench import live, report, step
from pbr_jax.runs.progress import progress
from pbr_jax.settings.flags import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_config(parser)
    step.add_methods(parser)
    report.add_output(parser)


def main(args: argparse.Namespace) -> int:
    """Measures, then prints one table."""
    methods = step.checked_methods(args.methods)
    with progress("memory", len(methods)) as done:
        measured = live.measure(args.arguments.config, methods, done)
    return report.finish(args, measured, _show)


def _show(found: Mapping[str, Any]) -> None:
    print(f"{report.headline(found)}\n")
    if found["memory"]:
        print(report.markdown(list(live.table(found))))
    print(report.show_refusals(found["refused"]), end="")
