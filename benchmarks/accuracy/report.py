"""Tables and the figure of the accuracy study, from its results.

    python benchmarks/accuracy/report.py

writes `docs/images/accuracy.png`, and the tables into `docs/accuracy.md` between the marks
`<!-- table LETTER -->` and `<!-- end -->`; the text around them is written by hand.
"""

import argparse
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from arms import QUESTIONS, Question
from matplotlib.figure import Figure
from study import OUT, read

from pbr_jax.training.comparison import half_interval

PAGE, FIGURE = Path("docs/accuracy.md"), Path("docs/images/accuracy.png")
_TABLE = re.compile(r"(<!-- table (\w) -->\n).*?(<!-- end -->)", re.DOTALL)


class Line(NamedTuple):
    """An arm over its seeds, in percent; gaps are paired with the base of the same seed.

    Attributes:
      arm: name.
      accuracy, test_loss: means over the seeds.
      gap, half: mean gap of accuracy, and half of its 95 % interval; None for the base.
      seeds: that the gap is over.
    """

    arm: str
    accuracy: float
    test_loss: float
    gap: float | None
    half: float | None
    seeds: int


def lines(question: Question, runs: dict[str, Any]) -> list[Line]:
    """What has been run of a question."""
    base, found = runs.get(question.base, {}), []
    for arm in question.arms:
        ends = {seed: curve[-1] for seed, curve in runs.get(arm, {}).items()}
        if not ends:
            continue
        paired = [seed for seed in ends if seed in base and arm != question.base]
        gaps = [100 * (ends[s]["accuracy"] - base[s][-1]["accuracy"]) for s in paired]
        found.append(
            Line(
                arm,
                100 * statistics.fmean(end["accuracy"] for end in ends.values()),
                statistics.fmean(end["test_loss"] for end in ends.values()),
                statistics.fmean(gaps) if gaps else None,
                half_interval(gaps) if len(gaps) > 1 else None,
                len(ends),
            )
        )
    return found


def table(question: Question, runs: dict[str, Any]) -> str:
    """In Markdown, with the arms that were not run below it."""
    rows = ["| arm | accuracy % | test loss | gap to base | seeds |", "|---|---|---|---|---|"]
    known = lines(question, runs)
    for line in known:
        half = "" if line.half is None else f" ± {line.half:.2f}"
        gap = "" if line.gap is None else f"{line.gap:+.2f}{half}"
        rows.append(
            f"| {line.arm} | {line.accuracy:.2f} | {line.test_loss:.3f} | {gap} | {line.seeds} |"
        )
    missing = [arm for arm in question.arms if arm not in {line.arm for line in known}]
    if missing:
        rows += ["", f"Not run: {'; '.join(missing)}."]
    return "\n".join(rows) + "\n"


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
    heights = [len(measured) + 1 for measured in drawn.values()]
    figure = Figure(figsize=(7.5, 0.28 * sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (title, measured) in zip(panels[:, 0], drawn.items(), strict=True):
        ranks = range(len(measured))
        gaps, halves = [m.gap for m in measured], [m.half for m in measured]
        axes.errorbar(gaps, ranks, xerr=halves, fmt="o", color="#31688e", capsize=2, markersize=4)
        axes.axvline(0, color="#888", linewidth=0.8)
        axes.set_yticks(ranks, [m.arm for m in measured], fontsize=8)
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("accuracy, percent points from full fine-tuning; 95 % interval")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Rewrites the tables of the page and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=OUT)
    args = parser.parse_args()
    runs = read(args.results).get("runs", {})
    if not runs:
        raise SystemExit(f"{args.results} has no runs: run study.py first")

    def filled(match: re.Match[str]) -> str:
        return match[1] + table(QUESTIONS[match[2]], runs) + match[3]

    PAGE.write_text(_TABLE.sub(filled, PAGE.read_text()))
    plot(runs, FIGURE)


if __name__ == "__main__":
    main()
