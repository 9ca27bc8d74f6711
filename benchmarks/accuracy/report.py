"""Tables and the figure of the accuracy study, from its results.

    python benchmarks/accuracy/report.py

writes `docs/images/accuracy.png`, and the tables into `docs/accuracy.md` between the marks
`<!-- table LETTER -->` and `<!-- end -->`; the text around them is written by hand. Each file of
results is of other pretrained weights: runs are paired within a file only, and pairs pooled.
"""

import argparse
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from arms import QUESTIONS, Question
from matplotlib.figure import Figure, SubFigure
from study import OUT, read

from pbr_jax.compare.table import half_interval

PAGE, FIGURE = Path("docs/accuracy.md"), Path("docs/images/accuracy.png")
_LIMITS = (-6.0, 2.5)  # of the figure, points of accuracy
_TABLE = re.compile(r"(<!-- table (\w) -->\n).*?(<!-- end -->)", re.DOTALL)


class Line(NamedTuple):
    """An arm over its runs that have one of the base beside them, of the same weights and seed.

    Attributes:
      arm: name.
      gap, half: mean gap of accuracy in percent points, and half of its 95 % interval.
      loss_gap: mean gap of the test loss.
      pairs: how many.
    """

    arm: str
    gap: float
    half: float | None
    loss_gap: float
    pairs: int


def lines(question: Question, runs: dict[str, Any]) -> list[Line]:
    """What has been run of a question."""
    base, found = runs.get(question.base, {}), []
    for arm in question.arms:
        keys = runs.get(arm, {}).keys() & base.keys()
        if arm == question.base or not keys:
            continue
        ends = [(runs[arm][key][-1], base[key][-1]) for key in keys]
        gaps = [100 * (end["accuracy"] - other["accuracy"]) for end, other in ends]
        found.append(
            Line(
                arm,
                statistics.fmean(gaps),
                half_interval(gaps) if len(gaps) > 1 else None,
                statistics.fmean(end["test_loss"] - other["test_loss"] for end, other in ends),
                len(gaps),
            )
        )
    return found


def table(question: Question, runs: dict[str, Any]) -> str:
    """In Markdown, with the arms that were not run below it."""
    rows = [
        f"| arm | accuracy, points from `{question.base}` | test loss, from it | pairs |",
        "|---|---|---|---|",
    ]
    base = runs.get(question.base, {})
    means = [
        statistics.fmean(100 * curve[-1]["accuracy"] for (f, _), curve in base.items() if f == file)
        for file in dict.fromkeys(file for file, _ in base)
    ]
    shown = ", ".join(f"{mean:.2f} %" for mean in means)
    rows.append(f"| {question.base}, by pretraining | {shown} |  | {len(base)} runs |")
    known = lines(question, runs)
    for line in known:
        half = "" if line.half is None else f" ± {line.half:.2f}"
        rows.append(f"| {line.arm} | {line.gap:+.2f}{half} | {line.loss_gap:+.3f} | {line.pairs} |")
    missing = {*question.arms} - {line.arm for line in known} - {question.base}
    if missing:
        rows += ["", f"Not run: {'; '.join(arm for arm in question.arms if arm in missing)}."]
    return "\n".join(rows) + "\n"


def pooled(files: list[Path]) -> dict[str, Any]:
    """`{arm: {(file, seed): curve}}`."""
    runs: dict[str, Any] = {}
    for file in files:
        for arm, seeds in read(file).get("runs", {}).items():
            found = runs.setdefault(arm, {})
            found.update({(file.name, seed): curve for seed, curve in seeds.items()})
    return runs


def plot(runs: dict[str, Any], path: Path) -> None:
    """Gap of every arm with its interval, a panel for each question that has been run in full."""
    drawn = {
        question.title: measured
        for question in QUESTIONS.values()
        if (measured := [line for line in lines(question, runs) if line.half is not None])
        and len(measured) == len(question.arms) - 1
    }
    if not drawn:
        return
    half = sum(map(_height, drawn.values())) / 2
    columns: list[dict[str, list[Line]]] = [{}, {}]
    for title, measured in drawn.items():
        full = sum(map(_height, columns[0].values())) + _height(measured) / 2 > half
        columns[full or bool(columns[1])][title] = measured
    figure = Figure(figsize=(13, 0.28 * half + 1.2), layout="constrained")
    for part, column in zip(figure.subfigures(1, 2), columns, strict=True):
        _draw(part, column)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _height(measured: list[Line]) -> int:
    return len(measured) + 2


def _draw(part: SubFigure, column: dict[str, list[Line]]) -> None:
    """Panels below each other; arms to the left of `_LIMITS` as numbers at the edge."""
    heights = [_height(measured) for measured in column.values()]
    panels = part.subplots(len(column), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (title, measured) in zip(panels[:, 0], column.items(), strict=True):
        for rank, line in enumerate(measured):
            if line.gap < _LIMITS[0]:
                axes.annotate(f"\u25c0 {line.gap:.0f}", (_LIMITS[0] + 0.1, rank), va="center")
                continue
            style = {"fmt": "o", "color": "#31688e", "capsize": 2, "markersize": 4}
            axes.errorbar(line.gap, rank, xerr=line.half, **style)
        axes.axvline(0, color="#888", linewidth=0.8)
        axes.set_yticks(range(len(measured)), [m.arm for m in measured], fontsize=8)
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.set_xlim(*_LIMITS)
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("accuracy, percent points from full fine-tuning; 95 % interval")


def main() -> None:
    """Rewrites the tables of the page and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = sorted(OUT.parent.glob(f"{OUT.stem}*.json"))
    parser.add_argument("--results", type=Path, nargs="+", default=default)
    parser.add_argument("--base", help="print gaps to this arm instead, and write nothing")
    args = parser.parse_args()
    runs = pooled(args.results)
    if not runs:
        raise SystemExit(f"{', '.join(map(str, args.results))}: no runs; run study.py first")

    if args.base:
        for question in QUESTIONS.values():
            print(f"\n{question.title}\n\n{table(question._replace(base=args.base), runs)}")
        return

    def filled(match: re.Match[str]) -> str:
        return match[1] + table(QUESTIONS[match[2]], runs) + match[3]

    PAGE.write_text(_TABLE.sub(filled, PAGE.read_text()))
    plot(runs, FIGURE)


if __name__ == "__main__":
    main()
