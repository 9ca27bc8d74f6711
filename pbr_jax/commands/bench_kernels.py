"""Times every kernel against XLA and other implementations, on the shapes of real models.

    pbr bench kernels                       on a machine with a GPU: times, rates, the floor
    pbr bench kernels --card h200,rtx4090   anywhere: registers, spills, shared memory, the floor
    pbr bench kernels --only attention

The floor is arithmetic: the longer of what the matrix products take at the card's rate and what the
bytes take at its bandwidth. On a GPU both are measured in the same run; elsewhere they are those of
`CEILINGS`. Without a GPU no time is printed, since there is none.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import jax

from pbr_jax.bench import kernels, report
from pbr_jax.gpu import find_card
from pbr_jax.runs.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "--card",
        help=f"instead of timing compile for these, of {','.join(kernels.CEILINGS)}",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    report.add_arguments(parser, rounds=30)


def main(args: argparse.Namespace) -> int:
    """Prints one table per card, or one of times."""
    cases = [case for case in kernels.all_cases() if args.only in f"{case.op}, {case.shape}"]
    if not cases:
        names = ", ".join(sorted({case.op for case in kernels.all_cases()}))
        raise ValueError(f"--only {args.only}: no case has this in its name; there are {names}")
    report.check_rounds(args.rounds)
    if args.card is None and jax.default_backend() == "gpu":
        with progress("kernels", len(cases)) as done:
            found = kernels.times(cases, args.rounds, done)
        return report.finish(args, found, _show_times)
    if args.card is None and not args.json:
        print("There is no GPU here, so there is nothing to time: figures of the compiler.")
    cards = (args.card or ",".join(kernels.CEILINGS)).split(",")
    found = {"cards": {card: kernels.figures(cases, card) for card in cards}}
    return report.finish(args, found, _show_figures)


def _show_times(found: Mapping[str, Any]) -> None:
    print(f"{report.headline(found)}\n\n{report.markdown(list(kernels.times_table(found)))}")
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
