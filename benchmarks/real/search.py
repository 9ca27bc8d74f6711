"""Which run comes next: the best rate of every row, then seeds at it and at that of `full`.

Pure functions of the lines that have been written, so that an interrupted study goes on where it
was. A line without `test` counts for the search alone: its test part was an earlier one. Rates are
those of a grid, `BASE * 2^i`. The rate of least validation loss at seed 0 is best; both its
neighbours are run too, so that the best lies inside what was tried.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from rows import Line, Row, Trial, row_of

BASE = {"adamw": 1e-4, "sgd": 0.01}
_FARTHEST = 12  # steps of the grid from its base, beyond which no best is looked for


def rate_at(optimizer: str, index: int) -> float:
    """A rate of the grid."""
    return BASE[optimizer] * 2.0**index


def index_of(optimizer: str, rate: float) -> int:
    """The place of a rate on the grid, or of that which is nearest."""
    return round(math.log2(rate / BASE[optimizer]))


def of_row(lines: Sequence[Line], row: Row) -> dict[tuple[int, int], Line]:
    """`{(index of the rate, seed): line}`."""
    return {
        (index_of(row.optimizer, line["rate"]), line["seed"]): line
        for line in lines
        if row_of(line) == row
    }


def tested(lines: Sequence[Line], row: Row) -> dict[tuple[int, int], Line]:
    """Those of `of_row` that have figures of the test part, or diverged."""
    found = of_row(lines, row).items()
    return {place: line for place, line in found if "test" in line or line.get("diverged")}


def losses(lines: Sequence[Line], row: Row) -> dict[int, float]:
    """`{index of the rate: validation loss at seed 0}`; infinite where a run diverged."""
    found = of_row(lines, row)
    return {
        index: math.inf if line.get("diverged") else line["val"]["loss"]
        for (index, seed), line in sorted(found.items())
        if seed == 0
    }


def start(lines: Sequence[Line], row: Row) -> int:
    """Where to begin to look: at the best of `full`, or above it.

    Times the mean keep to the power -1/4, and a factor on the rate of kernels to that of -1/2.
    """
    known = losses(lines, row.base)
    index = min(known, key=known.__getitem__) if known else 1
    slower = 1.0 if row.kernels is None else max(row.kernels, 1 / 16)
    return index + round(-0.25 * math.log2(row.share) - 0.5 * math.log2(slower))


def next_index(lines: Sequence[Line], row: Row) -> int | None:
    """The rate to try next, or None where the best lies inside."""
    known = losses(lines, row)
    if not known:
        return start(lines, row)
    best = min(known, key=known.__getitem__)
    missing = (i for i in (best + 1, best - 1) if i not in known and abs(i) <= _FARTHEST)
    return next(missing, None)


def best_index(lines: Sequence[Line], row: Row) -> int | None:
    """The rate of least validation loss, once it lies inside; None before."""
    known = losses(lines, row)
    if not known or next_index(lines, row) is not None:
        return None
    return min(known, key=known.__getitem__)


def trials(
    lines: Sequence[Line],
    rows: Sequence[Row],
    seeds: int,
    shared: int | None = None,
    given: float | None = None,
) -> Iterator[Trial]:
    """The runs that are still missing and can be named now, in the order to run them.

    `full` of each optimizer comes first, since the others begin at its best rate. A row's further
    seeds come when its best is known: `seeds` at its own rate, `shared` (None: as many) at that of
    `full`. Of kernels with a factor on their rate there is none at the rate of `full`.
    With a rate `given` there is no search: rows other than `full` are run at that rate alone.
    """
    if given is not None:
        for row in rows:
            if row == row.base and len(rows) > 1:  # the others are compared with its own rate
                continue
            found = tested(lines, row)
            places = [(index_of(row.optimizer, given), seed) for seed in range(seeds)]
            yield from (Trial(row, given, place[1]) for place in places if place not in found)
        return
    shared = seeds if shared is None else shared
    for row in dict.fromkeys([*(row.base for row in rows), *rows]):
        index = next_index(lines, row)
        if index is not None:
            yield Trial(row, rate_at(row.optimizer, index), 0)
            continue
        own, theirs = best_index(lines, row), best_index(lines, row.base)
        counts = {own: seeds}
        if row.kernels is None:
            counts.setdefault(theirs, shared)
        known = tested(lines, row)
        for place, count in counts.items():
            for seed in range(count):
                if place is not None and (place, seed) not in known:
                    yield Trial(row, rate_at(row.optimizer, place), seed)


def most_tested(lines: Sequence[Line], row: Row) -> int | None:
    """The rate with the most seeds on the test part, the lowest of them; None below two seeds."""
    seeds = Counter(index for index, _ in tested(lines, row))
    most = max(seeds.values(), default=0)
    return min(index for index, count in seeds.items() if count == most) if most > 1 else None


def refined(known: dict[int, float]) -> float | None:
    """The index, no whole number, of the least of a parabola through the best and its neighbours.

    None where one of the three is missing or infinite.
    """
    best = min(known, key=known.__getitem__)
    around = [known.get(best + i, math.inf) for i in (-1, 0, 1)]
    if not all(map(math.isfinite, around)):
        return None
    left, middle, right = around
    curvature = left - 2 * middle + right
    return float(best) if curvature <= 0 else best + 0.5 * (left - right) / curvature
