"""Times every kernel against XLA and other implementations, on the shapes of real models.

    pbr bench kernels                       on a machine with a GPU: times, rates, the floor
    pbr bench kernels --card h200,rtx4090   anywhere: registers, spills, shared memory, the floor
    pbr bench kernels --only attention

The floor is arithmetic: the longer of what the matrix products take at the card's rate and what the
bytes take at its bandwidth. On a GPU both are measured in the same run; elsewhere they are those of
`CEILINGS`. Without a GPU no time is printed, since there is none.
"""

import argparse

import jax

from pbr_jax.bench import kernels, report
from pbr_jax.gpu import find_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cards = ",".join(kernels.CEILINGS)
    parser.add_argument("--card", help=f"instead of timing compile for these, of {cards}")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    report.add_arguments(parser, rounds=30)


def main(args: argparse.Namespace) -> int:
    cases = kernels.find_cases(args.only)
    report.check_rounds(args.rounds)

    # With a GPU and no named card there are times.
    if args.card is None and jax.default_backend() == "gpu":
        found = kernels.times(cases, args.rounds)
        refused: dict[str, str] = {}
        figures: list[str] = []
        for row in found["rows"]:
            case = f"{row['op']}, {row['shape']}"
            refused |= {f"{case}, {name}": why for name, why in row["refused"].items()}
            figures += [f"{case}: {name} {value:.3f}" for name, value in row["figures"].items()]
        rows = report.table(kernels.times_table(found))
        return report.finish(args, found, rows, report.refusals(refused), *figures)

    # Elsewhere there is only what the compiler says.
    if args.card is None and not args.json:
        print("There is no GPU here, so there is nothing to time: figures of the compiler.")
    cards = (args.card or ",".join(kernels.CEILINGS)).split(",")
    figures_of = {card: kernels.figures(cases, card) for card in cards}
    tables = (report.table(rows, find_card(card).description) for card, rows in figures_of.items())
    return report.finish(args, {"cards": figures_of}, *tables, headed=False)
