"""The table of a comparison: what each method costs and what it reaches, against two baselines.

A comparison is a JSON file that grows: costs of a method as soon as they are known, a trial for
each seed. An interrupted one goes on where it was.
"""

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from pbr_jax.files import NUMBER, read_json, write_json
from pbr_jax.measure.text import format_bytes, format_seconds


class Result(NamedTuple):
    """Result of one method, a line of the table; None where something was not measured (yet)."""

    method: str
    activation_bytes: int | None = None  # saved between forward and backward pass
    host_bytes: int | None = None  # of what is saved, in the memory of the host instead
    compiled_peak_bytes: int | None = None  # planned for the step
    measured_peak_bytes: int | None = None  # in use on the accelerator
    memory_to_full: float | None = None  # ratio of peaks, of measured ones where both are
    seconds_per_step: float | None = None  # median
    time_to_full: float | None = None  # ratio of step times
    time_to_backrazor: float | None = None
    accuracy: float | None = None  # mean over seeds, a fraction
    accuracy_std: float | None = None
    gap: float | None = None  # mean difference of accuracy to full fine-tuning, paired by seed
    gap_interval: float | None = None  # half of its 95 % interval (Student's t)
    seeds: int = 0  # that have been run


_POINT = {"step": int, "seconds": NUMBER, "loss": (*NUMBER, type(None)), "accuracy": NUMBER}
_FORM = {
    "setting": dict,
    "costs": {...: {...: (*NUMBER, list)}},
    "trials": {...: {...: {"accuracy": NUMBER, "curve": [_POINT]}}},
}


class Comparison:
    """The growing JSON file of a comparison.

    Its content: `setting`, all that makes results comparable; `costs`, method -> figures; `trials`,
    method -> seed -> accuracy and curve.

    Raises:
      DamagedFile: the file cannot be read.
      ValueError: it is of another setting; the message names what differs.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"setting": dict(setting), "costs": {}, "trials": {}}
        if not os.path.lexists(path):
            return
        self.content = read_json(path, _FORM, "take another --out, or remove it to measure anew")
        there, here = self.content["setting"], json.loads(json.dumps(dict(setting)))
        if there != here:
            differing = sorted(k for k in here | there if there.get(k, ...) != here.get(k, ...))
            raise ValueError(
                f"{path} is a comparison with other {', '.join(differing)}; take another --out, or"
                " remove it"
            )

    def record_cost(self, method: str, **figures: Any) -> None:
        self.content["costs"].setdefault(method, {}).update(figures)
        self._save()

    def has_cost(self, method: str) -> bool:
        """True if memory and time are known."""
        return "seconds_per_step" in self.content["costs"].get(method, {})

    def record_trial(self, method: str, seed: int, trial: Any) -> None:
        curve = [point._asdict() for point in trial.curve]
        runs = self.content["trials"].setdefault(method, {})
        runs[str(seed)] = {"accuracy": trial.accuracy, "curve": curve}
        self._save()

    def has_trial(self, method: str, seed: int) -> bool:
        return str(seed) in self.content["trials"].get(method, {})

    def results(self, methods: Iterable[str]) -> list[Result]:
        return [self._result(method) for method in methods]

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def _result(self, method: str) -> Result:
        costs, trials = self.content["costs"], self.content["trials"]
        cost, full, backrazor = (costs.get(m, {}) for m in (method, "full", "backrazor"))
        runs, full_runs = trials.get(method, {}), trials.get("full", {})
        accuracies = [run["accuracy"] for run in runs.values()]
        shared = [seed for seed in runs if seed in full_runs and method != "full"]
        gaps = [runs[seed]["accuracy"] - full_runs[seed]["accuracy"] for seed in shared]
        # A ratio of peaks is between two of one kind: measured, or else planned.
        source = "measured_peak_bytes"
        if None in (cost.get(source), full.get(source)):
            source = "compiled_peak_bytes"
        return Result(
            method,
            # The costs that are a column as they stand.
            **{name: cost[name] for name in Result._fields if name in cost},
            memory_to_full=_ratio(cost.get(source), full.get(source)),
            time_to_backrazor=_ratio(cost.get("time_to_full"), backrazor.get("time_to_full")),
            accuracy=statistics.fmean(accuracies) if accuracies else None,
            accuracy_std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            gap=statistics.fmean(gaps) if gaps else None,
            gap_interval=half_interval(gaps) if len(gaps) > 1 else None,
            seeds=len(runs),
        )


def half_interval(differences: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two paired differences."""
    n = len(differences)
    return float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or not theirs else mine / theirs


HEADER = (
    *("method", "saved", "peak", "/ full", "step", "/ full", "/ BackRazor"),
    *("accuracy %", "gap to full"),
)


def cells(result: Result) -> list[str]:
    """A result as text; what is not known is a hyphen."""

    def show(value, form):
        return "-" if value is None else form(value)

    def ratio(value):
        return f"{value:.2f}"

    def percent(value, spread, form):
        return show(value, lambda v: f"{100 * v:{form}}") + show_spread(spread)

    host = f" + {format_bytes(result.host_bytes)} on host" if result.host_bytes else ""
    peak = result.measured_peak_bytes or result.compiled_peak_bytes
    return [
        result.method,
        show(result.activation_bytes, format_bytes) + host,
        show(peak, format_bytes),
        show(result.memory_to_full, ratio),
        show(result.seconds_per_step, format_seconds),
        show(result.time_to_full, ratio),
        show(result.time_to_backrazor, ratio),
        percent(result.accuracy, result.accuracy_std, ".2f"),
        "" if result.method == "full" else percent(result.gap, result.gap_interval, "+.2f"),
    ]


def show_spread(value: float | None) -> str:
    """` ± 0.42` in percent points, or nothing."""
    return "" if value is None else f" ± {100 * value:.2f}"


def csv_text(results: Iterable[Result]) -> str:
    """The table in CSV, in bytes, seconds and fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Result._fields)
    writer.writerows(["" if v is None else v for v in result] for result in results)
    return out.getvalue()
