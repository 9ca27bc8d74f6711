"""Tables of the study of rate and keep, from its lines."""

import itertools
import math
import statistics
from collections.abc import Sequence

from rows import Line, Row, row_of
from scipy import stats
from search import best_index, losses, most_tested, rate_at, refined, tested

from pbr_jax.compare.table import half_interval


def rows(lines: Sequence[Line]) -> list[Row]:
    """All rows, by optimizer, then `full` first, then by name, and by mean keep from 1 down."""

    def order(row: Row) -> tuple:
        return row.optimizer, row.method != "full", row.name, -row.share

    return sorted({row_of(line) for line in lines}, key=order)


def mean_and_half(values: Sequence[float], digits: int) -> str:
    """`mean ± half of the 95 % interval`, without the latter where there is one value."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {half_interval(values):.{digits}f}"


def figures(lines: Sequence[Line], row: Row, index: int | None) -> list[str]:
    """Accuracy in %, the paired difference to `full` in points, loss, and seeds, at a rate."""
    found, base = tested(lines, row), tested(lines, row.base)
    place = best_index(lines, row.base)
    if index is None:
        return ["-"] * 4
    mine = {seed: x for (i, seed), x in found.items() if i == index and not x.get("diverged")}
    theirs = {seed: x for (i, seed), x in base.items() if i == place and not x.get("diverged")}
    if not mine:
        return ["diverged" if any(i == index for i, _ in found) else "-", "-", "-", "0"]
    gaps = [points(mine[s]) - points(theirs[s]) for s in sorted(mine.keys() & theirs.keys())]
    own = row == row.base and index == place
    return [
        mean_and_half([points(x) for x in mine.values()], 2),
        "" if own else mean_and_half(gaps, 2),
        mean_and_half([x["test"]["loss"] for x in mine.values()], 3),
        str(len(mine)),
    ]


def points(line: Line) -> float:
    """Accuracy on the test part, in %."""
    return 100 * line["test"]["accuracy"]


HEADER = (
    *("method", "mean keep", "own rate", "accuracy %", "from `full`", "loss", "seeds"),
    *("at `full`'s rate: accuracy %", "from `full`", "loss", "seeds"),
)


def table(lines: Sequence[Line], optimizer: str) -> str:
    """In Markdown: every row at its own best rate, and at that of `full`."""
    text = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    for row in rows(lines):
        if row.optimizer != optimizer or not tested(lines, row):
            continue
        index, searched = _place(lines, row)
        rate = "open" if index is None else f"{rate_at(optimizer, index):.2g}"
        if index is not None and not searched:
            rate += " (given)"
        shared = None if row.kernels is not None else best_index(lines, row.base)
        keep = "" if row == row.base else f"{row.share:.2g}"
        cells = [row.name, keep, rate, *figures(lines, row, index), *figures(lines, row, shared)]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _place(lines: Sequence[Line], row: Row) -> tuple[int | None, bool]:
    """A row's rate on the grid, and whether it was searched or is that of most seeds."""
    own = best_index(lines, row)
    return (own, True) if own is not None else (most_tested(lines, row), False)


def choosers(lines: Sequence[Line], optimizer: str) -> list[str]:
    """Differences of paired seeds between rows that differ in who chooses, each at its rate."""
    told = []
    mine = [row for row in rows(lines) if row.optimizer == optimizer]
    for one, other in itertools.combinations(mine, 2):
        if one._replace(policy=None) != other._replace(policy=None):
            continue
        found = [
            {seed: x for (i, seed), x in tested(lines, row).items() if i == _place(lines, row)[0]}
            for row in (one, other)
        ]
        pairs = [(found[0][seed], found[1][seed]) for seed in found[0].keys() & found[1].keys()]
        pairs = [(a, b) for a, b in pairs if not (a.get("diverged") or b.get("diverged"))]
        if len(pairs) > 1:
            gain = mean_and_half([points(b) - points(a) for a, b in pairs], 2)
            loss = mean_and_half([b["test"]["loss"] - a["test"]["loss"] for a, b in pairs], 4)
            label = f"{other.name} less {one.name}, keep {one.share:.2g}"
            told.append(f"{label}: {gain} points, loss {loss} ({len(pairs)} pairs)")
    return told


def power(
    lines: Sequence[Line], optimizer: str, name: str | None = None, rest: float | None = None
) -> tuple[float, float, int] | None:
    """`(a, half of its 95 % interval, rows)` of the fit `rate = c keep^-a`; None below 3 rows.

    Of the rows of that name; None is all that draw in every step, with `rest` as the rate of all
    but the kernels.

    Rates are the least of a parabola of the validation loss over the logarithm of the rate.
    """
    known = []
    for row in rows(lines):
        alike = (row.interval, row.kernels, row.rest, row.extra) == (None, None, rest, ())
        if row.optimizer != optimizer or not (alike if name is None else row.name == name):
            continue
        if best_index(lines, row) is not None:
            place = refined(losses(lines, row))
            if place is not None:
                known.append((math.log2(row.share), place))
    if len(known) < 3:
        return None
    fit = stats.linregress(*zip(*known, strict=True))
    half = stats.t.ppf(0.975, len(known) - 2) * fit.stderr
    return -float(fit.slope), float(half), len(known)


def report(lines: Sequence[Line]) -> str:
    """The tables of all optimizers, and the fitted powers below each."""
    parts = []
    for optimizer in dict.fromkeys(row.optimizer for row in rows(lines)):
        parts += [f"### {optimizer}", "", table(lines, optimizer), ""]
        groups: dict[str, tuple[str | None, float | None]] = {}
        for row in rows(lines):
            all_alike = "all rows" if row.rest is None else f"all rows, the rest at {row.rest:g}"
            groups |= {all_alike: (None, row.rest), row.name: (row.name, None)}
        for label, group in groups.items():
            if fitted := power(lines, optimizer, *group):
                a, half, count = fitted
                parts.append(f"{label}: own rate ~ keep^-{a:.2f} ± {half:.2f} ({count} keeps)")
        parts += [*choosers(lines, optimizer), ""]
    return "\n".join(parts)
