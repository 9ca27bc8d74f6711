"""One self-contained HTML page about a run, from the files in its work directory.

    write_report("runs/digits-lean")

Nothing is loaded from elsewhere, and the page follows the reader's light or dark setting.
"""

import html
import os
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pbr_jax.files import read_json, write_text
from pbr_jax.measure.text import format_bytes, format_ratio, format_seconds, three_digits
from pbr_jax.memory.use import MemoryUse
from pbr_jax.runs.history import Columns, read_columns
from pbr_jax.runs.metrics import SUMMARY, read_metrics, read_summary


def write_report(workdir: Path | str) -> Path:
    """Writes `report.html` into `workdir` and returns its path.

    Reads `config.json` and, where they exist, `metrics.jsonl`, `summary.json` and `pruning.npz`:
    a run that is under way or prunes nothing has a shorter page. From the summary the page also
    shows `seconds`, `examples_per_second`, `device`, and `memory` and `full_memory`, each the
    fields of a `MemoryUse`, of this run and of full fine-tuning.

    Raises:
      ValueError: `workdir` is no work directory.
      DamagedFile: a file in it is damaged.
    """
    workdir = Path(workdir)
    if not os.path.lexists(workdir / "config.json"):
        raise ValueError(
            f"workdir = {workdir}: has no config.json, so no run was started there; "
            f"give the folder that train.py printed"
        )
    advice = "copy that of a run with the same settings"
    config = read_json(workdir / "config.json", {}, advice)
    summary = read_summary(workdir) if os.path.lexists(workdir / SUMMARY) else {}
    path = workdir / "report.html"
    write_text(path, _page(config, summary, read_metrics(workdir), read_columns(workdir)))
    return path


def _page(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    columns: Columns | None,
) -> str:
    # matplotlib takes a while to import, and only the page needs it.
    from pbr_jax.reports import figures

    title = f"{config.get('name', 'run')}: {config.get('method', '')}"
    tests = (record for record in records if record.get("split") == "test")
    evaluations = [record for record in tests if record.get("accuracy") is not None]
    # What one looks for first comes first; a part that is not known is left out.
    sections = [_cards(summary, evaluations)]
    if records:
        sections.append(_section("Training", figures.curves(records)))
    sections += _memory(summary)
    if columns is not None:
        sections.append(
            _section(
                "Which columns were trained",
                figures.columns(*columns),
                "Left: every block is a row, every column (or group) of the activation a cell; the "
                "stronger its colour, the more often its row of the weights was trained. "
                "Right: the probability of being chosen against an even choice, for the columns of "
                "all blocks; orange became likelier, blue less likely.",
                _table(*_site_table(columns)),
            )
        )
    if evaluations:
        judged = any(e.get("perplexity") is not None for e in evaluations)
        rows = []
        for e in evaluations:
            loss = "not finite" if e.get("loss") is None else f"{e['loss']:.4f}"
            rows.append([str(e["step"]), loss, *[_perplexity(e)] * judged, f"{e['accuracy']:.2%}"])
        names = ("step", "test loss", *["test perplexity"] * judged, "test accuracy")
        sections.append(_details("Evaluations", _table(names, rows)))
    table = _table(("key", "value"), _flatten(config), words=True)
    sections.append(_details("Settings", table))
    steps = summary.get("steps", config.get("steps"))
    subtitle = [f"{steps} steps of {config.get('batch_size')} examples"]
    subtitle.append(str(summary.get("device") or "") if summary else "not finished yet")
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        subtitle=html.escape(" · ".join(filter(None, subtitle))),
        body="\n".join(sections),
    )


def _cards(summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The four figures one looks for first; those that are unknown are left out."""
    cards = []
    if summary.get("perplexity") is not None:
        known = [e for e in evaluations if e.get("perplexity") is not None]
        best = min(known, key=lambda e: e["perplexity"], default=None)
        note = f"best {_perplexity(best)} at step {best['step']}" if best else ""
        cards.append(("test perplexity", _perplexity(summary), note))
    elif summary.get("accuracy") is not None:
        best = max(evaluations, key=lambda e: e["accuracy"], default=None)
        note = f"best {best['accuracy']:.1%} at step {best['step']}" if best else ""
        cards.append(("test accuracy", f"{summary['accuracy']:.1%}", note))
    if summary.get("activation_bytes") is not None:
        size, full = summary["activation_bytes"], summary.get("full_memory")
        ratio = format_ratio(size, full["activations"]) if full else ""
        note = f"{ratio} than full fine-tuning" if ratio else "kept for the backward pass"
        cards.append(("activations", format_bytes(size), note))
    if summary.get("compiled_peak_bytes") is not None:
        peak = format_bytes(summary["compiled_peak_bytes"])
        cards.append(("compiled peak", peak, "the whole step, as compiled"))
    if summary.get("seconds_per_step") is not None:
        speed = summary.get("examples_per_second")
        note = f"{speed:,.0f} examples per second" if speed else ""
        cards.append(("time per step", format_seconds(summary["seconds_per_step"]), note))
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note in cards
    )
    return f"<dl class=cards>{cells}</dl>" if cards else ""


def _perplexity(record: Mapping[str, Any]) -> str:
    value = record.get("perplexity")
    return "not finite" if value is None else three_digits(value)


def _memory(summary: Mapping[str, Any]) -> list[str]:
    if not summary.get("memory"):
        return []
    from pbr_jax.reports import figures

    method = summary["method"]
    # Full fine-tuning is drawn for comparison, unless this is it.
    uses = {method: _use(summary["memory"])}
    if summary.get("full_memory") and method != "full":
        uses["full fine-tuning"] = _use(summary["full_memory"])
    rows = [[name, *map(format_bytes, (*use, use.total))] for name, use in uses.items()]
    return [
        _section(
            "Memory",
            figures.memory(uses, summary["compiled_peak_bytes"]),
            "Activations are what is kept between the forward and the backward pass. The compiled "
            "peak is what the compiler plans for the whole step, temporary arrays included, and "
            "reuses space: it may lie below or above the sum.",
            _table(("", *MemoryUse._fields, "total"), rows),
        )
    ]


def _use(saved: Mapping[str, int]) -> MemoryUse:
    return MemoryUse(**{name: saved[name] for name in MemoryUse._fields})


def _site_table(columns: Columns) -> tuple[tuple[str, ...], list[list[str]]]:
    rows = []
    for site, counts in columns.counts.items():
        last, arms = columns.probs[site][-1], counts.shape[1]
        chosen = f"{last.sum(axis=1).mean():.0f} of {arms}"
        # How unevenly columns are drawn: the share of the busiest tenth.
        ranked = np.sort(counts, axis=1)[:, ::-1]
        top = ranked[:, : max(arms // 10, 1)].sum() / max(counts.sum(), 1)
        probability = f"{last.min():.3f} to {last.max():.3f}"
        rows.append([site, chosen, f"{(counts > 0).mean():.0%}", f"{top:.0%}", probability])
    head = ("site", "chosen per step", "ever trained", "draws of the busiest tenth", "probability")
    return head, rows


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, bool):
            yield prefix + key, str(value).lower()  # as it would be typed
        else:
            yield prefix + key, str(value)


def _section(title: str, figure: str, caption: str = "", table: str = "") -> str:
    note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f"<section><h2>{html.escape(title)}</h2>"
        f"<figure><div class=scroll>{figure}</div>{note}</figure>{table}</section>"
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: bool = False) -> str:
    """A table; cells after the first are numbers, aligned to the right, unless `words`."""
    kind = "words" if words else "numbers"
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table class={kind}><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
