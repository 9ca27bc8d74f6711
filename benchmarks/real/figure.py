"""The figure of docs/columns.md: accuracy against columns kept, at two learning rates.

    python benchmarks/real/figure.py --part test_of_3000

draws `docs/images/columns.png` from lines of `rates.py`: every row at its own rate, and at that of
`full`. A mark is the mean over seeds on the test part, its bar goes from the least to the largest.
Rows that are still searched are left out.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import rates
from matplotlib.figure import Figure
from rows import Line, Row
from search import best_index, tested
from tables import points, rows

FIGURE = Path("docs/images/columns.png")
_COLOURS = {"at its own rate": "#31688e", "at the rate of full": "#d1495b"}


class Mark(NamedTuple):
    """A row at a rate: its mean keep, and its accuracies in %, one for each seed."""

    share: float
    found: list[float]


def at(lines: Sequence[Line], row: Row, index: int | None) -> list[float]:
    """Accuracies in % of a row at a place on the grid of rates."""
    known = tested(lines, row).items()
    return [points(x) for (i, _), x in known if i == index and not x.get("diverged")]


def marks(lines: Sequence[Line], series: Row) -> dict[str, list[Mark]]:
    """`{rate: marks}` of rows that differ from `series` in keep, from few columns to `full`."""
    base = series.base
    alike = [row for row in rows(lines) if row._replace(keep=None, scale=None) == series]
    found: dict[str, list[Mark]] = {name: [] for name in _COLOURS}
    for row in sorted([base, *alike], key=lambda row: row.share):
        places = best_index(lines, row), best_index(lines, base)
        for name, place in zip(_COLOURS, places, strict=True):
            if measured := at(lines, row, place):
                found[name].append(Mark(row.share, measured))
    return found


def draw(lines: Sequence[Line], rest: float | None, path: Path) -> None:
    """Writes the figure."""
    frozen = Row("full", "adamw", kernels=0.0)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method, policy, style in (("prebackrazor", "uniform", "o-"), ("lean", None, "s--")):
        series = Row(method, "adamw", policy=policy, rest=rest)
        for name, told in marks(lines, series).items():
            means = [statistics.fmean(mark.found) for mark in told]
            bars = [
                [mean - min(mark.found) for mean, mark in zip(means, told, strict=True)],
                [max(mark.found) - mean for mean, mark in zip(means, told, strict=True)],
            ]
            axes.errorbar(
                [100 * mark.share for mark in told],
                means,
                yerr=bars,
                fmt=style,
                capsize=3,
                color=_COLOURS[name],
                label=f"{series.name}, {name}",
            )
    if measured := at(lines, frozen, best_index(lines, frozen)):
        axes.axhline(statistics.fmean(measured), color="#888", ls=":", label="frozen kernels")
    axes.set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 40, 100]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("columns kept, % (mean over the sites; 100 = full)")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=Path, default=rates.RESULTS / "rates_swapped.jsonl")
    parser.add_argument("--rest", type=float, help="rate of all but the blocks' kernels")
    parser.add_argument("--out", type=Path, default=FIGURE)
    parser.add_argument("--part", default="test", help="see rates.py")
    args = parser.parse_args()
    draw(rates.of_part(rates.read(args.lines), args.part), args.rest, args.out)


if __name__ == "__main__":
    main()
