"""Checks on this device that kernels and train steps compute what they should.

    pbr bench check                                          kernels, steps and the card
    pbr bench check --what kernels --only attention
    pbr bench check --what steps --config configs/vit_b16.py --config.batch_size=16 \\
        --config.model.dtype=bfloat16

Kernels run on the shapes of `pbr bench kernels` and are compared with XLA's code and, where the
formula is known, with float64. Steps are compared with those of XLA alone and with the gradient of
a plain model in float64. The card's own description is compared with the one that `pbr fit` uses.
Exit code 1: something is not what it should be.
"""

import argparse
from typing import Any

from pbr_jax.bench import checks, kernels, report, step
from pbr_jax.gpu import present_card
from pbr_jax.runs.progress import progress
from pbr_jax.settings.flags import add_config

_WHAT = ("kernels", "steps", "card")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--what", default=",".join(_WHAT), help="of %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has it")
    step.add_methods(parser)
    report.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Checks, prints the tables, and returns 1 if anything failed."""
    what, methods = args.what.split(","), step.checked_methods(args.arguments.config, args.methods)
    if unknown := sorted({*what} - {*_WHAT}):
        raise ValueError(f"--what {','.join(unknown)}: must be of {', '.join(_WHAT)}")
    found: dict[str, Any] = {}
    shown: list[str] = []
    if "kernels" in what:
        cases = kernels.find_cases(args.only)
        rows = found["kernels"] = []
        with progress("kernels", len(cases)) as done:
            for case in cases:
                rows.append(checks.check_case(case, kernels.random_arrays(case)))
                done(case.op)
        ran = map(_kernel, (row for row in rows if not row["refused"]))
        refused = {f"{r['op']}, {r['shape']}": r["refused"] for r in rows if r["refused"]}
        shown.append(report.table(ran, "Deviation of each result from the reference"))
        shown.append(report.refusals(refused))
    if "steps" in what:
        rows = found["steps"] = checks.check_steps(args.arguments.config, methods)
        shown.append(report.table(map(_step, rows), "Deviation of the applied gradient"))
    if "card" in what:
        card = present_card()
        if card is None:
            shown.append("\nThere is no GPU here, so no card to compare with its description.")
        else:
            found["card"] = checks.compare_cards(card)
            shown += _card(**found["card"])
    report.finish(args, found, *shown)
    # What was refused has neither passed nor failed.
    rows = found.get("kernels", []) + found.get("steps", [])
    return int(any(row["passed"] is False for row in rows))


def _kernel(row: dict[str, Any]) -> dict[str, str]:
    def numbers(errors):
        return ", ".join(f"{error:.1e}" for error in errors)

    return {
        "op": row["op"],
        "shape": row["shape"],
        "by": row["implementation"],
        "deviation": numbers(row["errors"]),
        "of XLA": numbers(row["xla_errors"]),
        "reference": row["reference"],
        "": "passed" if row["passed"] else "FAILED",
    }


def _step(row: dict[str, Any]) -> dict[str, str]:
    return {
        "method": row["method"],
        "kernels from XLA": f"{row['kernels_to_xla']:.1e}",
        "float32 from float64": f"{row['to_float64']:.1e}",
        "in its dtype": f"{row['low_to_float64']:.1e}",
        "that by XLA": f"{row['low_xla_to_float64']:.1e}",
        "rows moved": f"{row['rows']:.1%}",
        "": "passed" if row["passed"] else "FAILED",
    }


def _card(name: str | None, differing: dict[str, Any]) -> list[str]:
    return [
        f"\nThe card and the table's {name}:",
        *(
            f"  {field}: {table} in the table, {its} by its own description"
            for field, (table, its) in differing.items()
        ),
        "" if differing else "  all the same",
    ]
