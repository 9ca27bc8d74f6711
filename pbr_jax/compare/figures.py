"""Figures of a comparison as PNG: memory against time, and curves against steps and clock."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pbr_jax.compare.table import Result
from pbr_jax.reports.figures import PLAIN

_DPI = 150


def frontier(results: Sequence[Result], path: Path) -> None:
    """Peak memory against time per step, both relative to full fine-tuning, accuracy as colour.

    Left of and below the lines at 1 is better than full fine-tuning in time and in memory.
    """
    known = [result for result in results if result.time_to_full and result.memory_to_full]
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.axvline(1, color="#8b93a1", linewidth=0.8)
        axes.axhline(1, color="#8b93a1", linewidth=0.8)
        x = np.array([result.time_to_full for result in known])
        y = np.array([result.memory_to_full for result in known])
        scored = np.array([result.accuracy is not None for result in known], bool)
        accuracy = np.array([100 * r.accuracy for r in known if r.accuracy is not None])
        # A method whose accuracy is not known yet is an empty ring.
        if scored.any():
            points = axes.scatter(
                x[scored], y[scored], c=accuracy, cmap="viridis", s=60, zorder=3, edgecolor="white"
            )
            figure.colorbar(points, label="test accuracy, %")
        axes.scatter(x[~scored], y[~scored], s=50, zorder=3, facecolor="none", edgecolor="#555")
        _label(axes, [result.method for result in known], x, y)
        axes.set_title("Memory against time, full fine-tuning = 1")
        axes.set_xlabel("time per step")
        axes.set_ylabel("peak memory")
        axes.set_xlim(0, 1.18 * x.max(initial=1))  # room for the names
        axes.set_ylim(bottom=0)
        figure.savefig(path, dpi=_DPI)


def _label(axes: Any, names: Sequence[str], x: np.ndarray, y: np.ndarray) -> None:
    """Names beside the points; of points that nearly coincide the names stand below each other."""
    width, height = max(x.max(initial=1), 1), max(y.max(initial=1), 1)
    placed: list[tuple[float, float]] = []
    for name, px, py in sorted(zip(names, x, y, strict=True), key=lambda point: -point[2]):
        # Downwards until no name that stands already is near.
        ty = py
        while any(
            abs(px - qx) < 0.2 * width and abs(ty - qy) < 0.035 * height for qx, qy in placed
        ):
            ty -= 0.035 * height
        placed.append((px, ty))
        axes.annotate(
            name,
            (px, py),
            (px + 0.015 * width, ty),
            fontsize=7.5,
            va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#999"} if ty != py else None,
        )


def curves(trials: Mapping[str, Mapping[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Training loss and test accuracy against steps and seconds: the paper's Figures 3 and 4.

    Draws `methods` in their order, means over seeds; `trials` is method -> seed -> `{"curve":
    [{step, seconds, loss, accuracy}]}`.
    """
    drawn = [method for method in methods if trials.get(method)]
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, max(len(drawn), 2)))
    with matplotlib.rc_context(PLAIN):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        grid = figure.subplots(2, 2)
        for row, quantity in enumerate(("loss", "accuracy")):
            for column, against in enumerate(("step", "seconds")):
                axes = grid[row, column]
                for method, colour in zip(drawn, colours, strict=False):
                    axes.plot(
                        *(_mean(trials[method], name) for name in (against, quantity)),
                        color=colour,
                        linewidth=1.3,
                        label=method,
                    )
                axes.set_xlabel("seconds of training" if against == "seconds" else "step")
                if quantity == "accuracy":
                    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
                axes.set_title("Training loss" if quantity == "loss" else "Test accuracy")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(path, dpi=_DPI)


def _mean(runs: Mapping[str, Any], name: str) -> np.ndarray:
    return np.mean([[point[name] for point in run["curve"]] for run in runs.values()], axis=0)
