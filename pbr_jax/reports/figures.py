"""Figures of the report, as SVG that follows the page's colours in light and in dark.

Text, axes and grid are drawn in a marker colour that becomes `currentColor`, backgrounds are
transparent, and both colour maps fade to transparent at "nothing to see". matplotlib's `Figure`
is used without pyplot, so that no global state changes.

Shapes: S snapshots, L blocks, A arms (columns, or groups of them), R records.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from pbr_jax.measure.text import format_bytes
from pbr_jax.memory.use import MemoryUse

_INK = "#010203"  # becomes currentColor
_BLUE, _ORANGE, _GREEN, _VIOLET = "#3f7fe0", "#e07b39", "#2f9e77", "#9268d6"
_PURPOSES = dict(zip(MemoryUse._fields, ("#8b93a1", _GREEN, _VIOLET, _BLUE), strict=True))
PLAIN: Any = {  # matplotlib types its keys one by one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
"""Style of every figure of this package."""

_STYLE: Any = {
    **PLAIN,
    "axes.linewidth": 0.6,
    "axes.grid.axis": "y",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.alpha": 0.15,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "pbr_jax",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
}
_WIDTH = 9.6  # inches; the page scales it
# Columns drawn as one row of a heatmap are averaged, so that a wide layer stays readable.
_ROWS = 96
_SHARE = LinearSegmentedColormap.from_list("share", [(0.25, 0.5, 0.88, 0), (0.25, 0.5, 0.88, 1)])
_MOVE = LinearSegmentedColormap.from_list(
    "move", [(0.25, 0.5, 0.88, 1), (0.55, 0.6, 0.65, 0), (0.88, 0.48, 0.22, 1)]
)


def curves(records: Sequence[Mapping[str, Any]]) -> str:
    """Loss and accuracy against the step, for both splits, from R records of `metrics.jsonl`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            axes.set_title(name.capitalize())
            axes.set_xlabel("step")
            train_steps, train = _series(records, "train", name)
            test_steps, test = _series(records, "test", name)
            # Every record is drawn faintly behind the smoothed curve.
            axes.plot(train_steps, train, color=_BLUE, linewidth=0.8, alpha=0.35)
            axes.plot(train_steps, smooth(train), color=_BLUE, linewidth=1.6, label="train")
            marks: Any = {"linewidth": 1.4, "marker": "o", "markersize": 3.5}
            axes.plot(test_steps, test, color=_ORANGE, label="test", **marks)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if name == "accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            else:
                axes.set_ylim(bottom=0)
                axes.legend(loc="upper right")
        return _svg(figure, "Loss and accuracy against the step")


def _series(
    records: Sequence[Mapping[str, Any]], split: str, name: str
) -> tuple[Int[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    chosen = [r for r in records if r.get("split") == split and r.get(name) is not None]
    steps = np.array([record["step"] for record in chosen], int)
    return steps, np.array([record[name] for record in chosen], float)


def smooth(values: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Centred mean over a twentieth of the records, narrower at both ends, where less is known."""
    reach = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # As far to the left as to the right: a one-sided window would bend a falling curve at its ends.
    reach_here = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    low, high = index - reach_here, index + reach_here + 1
    return (sums[high] - sums[low]) / (high - low)


def memory(uses: Mapping[str, MemoryUse], compiled_peak: int | None) -> str:
    """Stacked bars of the bytes by purpose, a row per method; the peak of the first is a mark."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.95 + 0.42 * len(uses)), layout="constrained")
        axes = figure.subplots()
        rows = list(uses)
        left = np.zeros(len(rows))
        for purpose, colour in _PURPOSES.items():
            sizes = np.array([getattr(use, purpose) for use in uses.values()], float)
            axes.barh(rows, sizes, left=left, color=colour, height=0.55, label=purpose)
            left += sizes
        # Totals stand beside the bars; the peak may lie beyond them.
        furthest = max(float(left.max()), compiled_peak or 0)
        for row, total in enumerate(left):
            axes.text(total + furthest * 0.008, row, format_bytes(total), va="center")
        if compiled_peak is not None:
            mark: Any = {"color": _ORANGE, "linewidth": 2.2, "label": "compiled peak"}
            axes.plot([compiled_peak] * 2, [-0.4, 0.4], **mark)
        axes.set_xlim(0, furthest * 1.12)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        unit = 10 ** (3 * int(np.log10(furthest) // 3))
        name = format_bytes(unit).split()[1]
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / unit:g} {name}"))
        handles, labels = axes.get_legend_handles_labels()
        order = [labels.index(label) for label in (*_PURPOSES, "compiled peak") if label in labels]
        figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="outside upper left",
            ncols=5,
            columnspacing=1.4,
            handlelength=1.1,
        )
        return _svg(figure, "Memory by purpose")


def columns(
    steps: Int[np.ndarray, " S"],
    probs: Mapping[str, Float[np.ndarray, "S L A"]],
    counts: Mapping[str, Int[np.ndarray, "L A"]],
) -> str:
    """Per site: which columns were trained how often, and how their probabilities moved."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        height = sum(max(1.55, 0.85 + 0.09 * len(counts[site])) for site in probs)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        grid = figure.subplots(len(probs), 2, squeeze=False, width_ratios=(1.35, 1))
        for (left, right), site in zip(grid, probs, strict=True):
            _draw_counts(figure, left, site, counts[site] / max(int(steps[-1]), 1))
            _draw_moves(figure, right, site, steps, probs[site])
        for axes in grid[-1]:
            axes.set_xlabel("column" if axes is grid[-1, 0] else "step")
        return _svg(figure, "Columns trained and their probabilities, by site")


def _draw_counts(figure: Figure, axes: Axes, site: str, share: Float[np.ndarray, "L A"]) -> None:
    # A few columns that are always trained must not pale all others.
    top = max(float(np.percentile(share, 99.5)), 1e-3)
    image = axes.imshow(
        share, aspect="auto", cmap=_SHARE, vmin=0, vmax=top, interpolation="nearest"
    )
    axes.set_title(f"{site}: share of steps each column was trained")
    axes.set_ylabel("block")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.ax.yaxis.set_major_locator(MaxNLocator(3))
    bar.outline.set_visible(False)


def _draw_moves(
    figure: Figure,
    axes: Axes,
    site: str,
    steps: Int[np.ndarray, " S"],
    probs: Float[np.ndarray, "S L A"],
) -> None:
    change = probability_moves(probs)
    # At least a quarter either way, so that rounding does not look like learning.
    limit = max(float(np.percentile(np.abs(change), 99)), np.log2(1.25))
    image = axes.pcolormesh(
        _snapshot_edges(steps),
        np.linspace(1, 0, len(change) + 1),
        change,
        cmap=_MOVE,
        vmin=-limit,
        vmax=limit,
        rasterized=True,
    )
    axes.set_title(f"{site}: probability, likeliest columns on top")
    axes.set_yticks([])
    axes.set_ylabel("columns")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    end = np.floor(limit) if limit >= 1 else limit * 0.9
    bar.set_ticks([-end, 0, end], labels=[f"{2**-end:.2g}x", "1x", f"{2**end:.2g}x"])
    bar.outline.set_visible(False)


def _snapshot_edges(steps: Int[np.ndarray, " S"]) -> Float[np.ndarray, " S+1"]:
    """Borders half-way between snapshots; a single snapshot is one step wide."""
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[steps[0] - 0.5], middle, [steps[-1] + 0.5]])


def probability_moves(probs: Float[np.ndarray, "S L A"]) -> Float[np.ndarray, "rows S"]:
    """log2 of each column's probability over the mean one, by its last probability.

    The columns of all blocks are sorted together, likeliest first, and averaged in at most 96 equal
    parts. Sums of probabilities are fixed, so the mean is what every column started with.
    """
    snapshots = probs.reshape(len(probs), -1)
    order = np.argsort(-snapshots[-1], kind="stable")
    parts = np.array_split(snapshots[:, order], min(_ROWS, snapshots.shape[1]), axis=1)
    rows = np.stack([part.mean(axis=1) for part in parts])
    # A policy may give some columns no chance at all; a thousandth is as far as the picture goes.
    return np.log2(np.maximum(rows / snapshots.mean(axis=1), 1e-3))


def _svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element whose ids differ from those of every other figure."""
    # Only the element: what comes before it, and its metadata, is of no use in a page.
    out = io.StringIO()
    figure.savefig(out, format="svg", dpi=200)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids are unique within a page, not only within a figure.
    prefix = re.sub(r"\W+", "-", label.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace(_INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
