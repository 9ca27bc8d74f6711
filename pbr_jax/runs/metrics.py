"""The files in which a run keeps its numbers: `metrics.jsonl`, `metrics.csv`, `summary.json`.

Each line of `metrics.jsonl` is one record, `{"split": "train" | "test", "step": int, ...}`, on disk
as soon as it is written. A resumed run first removes what an interrupted one wrote after the
checkpoint, so that every step has one record and a curve has no second branch.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pbr_jax.files import (
    NUMBER,
    Appended,
    DamagedFile,
    misfit,
    read_bytes,
    read_json,
    set_aside,
    write_json,
    write_text,
)
from pbr_jax.memory.use import MemoryUse
from pbr_jax.training.loop import Observer
from pbr_jax.training.state import TrainState

Split = Literal["train", "test"]
FILE = "metrics.jsonl"
SUMMARY = "summary.json"
SUMMARY_KEYS = (
    "method",
    "accuracy",  # fraction in [0, 1] on the test split
    "steps",
    "seconds_per_step",
    "activation_bytes",  # what is saved between forward and backward pass
    "compiled_peak_bytes",  # of the compiled train step, arguments included
)
_KNOWN = (*NUMBER, type(None))  # a figure, or None for what is unknown or not finite
_RECORD = {"split": str, "step": int, ...: _KNOWN}


class MetricsWriter(Observer):
    """Appends records to `metrics.jsonl` in `workdir`.

    Records after `resume_step`, the step of the restored checkpoint, are removed; None removes all.
    A file with broken lines is set aside, which `notify` is told; its sound ones are kept.
    """

    def __init__(
        self,
        workdir: Path | str,
        resume_step: int | None = None,
        notify: Callable[[str], None] = print,
    ):
        path = Path(workdir) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        records, fault = _read(path)
        if fault:
            notify(f"{fault}\nIt is now {set_aside(path)}; {len(records)} sound lines are kept.")
        # What an interrupted run wrote after its checkpoint will be written again.
        last = -1 if resume_step is None else resume_step
        write_text(path, "".join(_line(record) for record in records if record["step"] <= last))
        self._file = Appended(path)

    def logged(self, line: dict[str, float]) -> None:
        self.write(line)

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        self.write({"step": step, **test}, "test")

    def write(self, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Appends one record: of numbers, among them `step`; what is not finite becomes null."""
        self._file.append(_line({"split": split, **metrics}).encode())

    def close(self) -> None:
        self._file.close()


def read_metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order; none when there is no such file.

    A last line without its end was cut off when the run was killed, and is left out.

    Raises:
      DamagedFile: naming the file and the line that is no record.
    """
    records, fault = _read(Path(workdir) / FILE)
    if fault:
        advice = "Remove that line, or move the file away; the checkpoints do not depend on it."
        raise DamagedFile(f"{fault}\n{advice}")
    return records


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The sound records of a file, and its first fault; "" if it has none."""
    if not os.path.lexists(path):
        return [], ""
    try:
        *lines, _cut_off = read_bytes(path, "the checkpoints do not depend on it").split(b"\n")
    except DamagedFile as error:
        return [], str(error)
    records, faults = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            fault = misfit(record, _RECORD)
        except (ValueError, RecursionError) as error:
            fault = str(error)
        if fault:
            shown = line[:80].decode(errors="replace")
            faults.append(f"{path}, line {number}: no record of metrics: {shown!r}")
        else:
            records.append(record)
    return records, next(iter(faults), "")


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no other form for what is not finite than null.
    odd = {name for name, x in record.items() if isinstance(x, float) and not math.isfinite(x)}
    return json.dumps({**record, **dict.fromkeys(odd)}, allow_nan=False) + "\n"


def write_csv(workdir: Path | str) -> None:
    """Writes `metrics.csv`: a row per record, a column per name, empty where a record lacks it."""
    records = read_metrics(workdir)
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    table = csv.DictWriter(text, names)
    table.writeheader()
    table.writerows(records)
    write_text(Path(workdir) / "metrics.csv", text.getvalue())


def write_summary(workdir: Path | str, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json`; raises ValueError where keys lack or accuracy is no fraction."""
    missing = [name for name in SUMMARY_KEYS if name not in summary]
    if missing:
        raise ValueError(f"summary: lacks {', '.join(missing)}; give None for what is unknown")
    accuracy = summary["accuracy"]
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"summary: accuracy = {accuracy} must be a fraction in [0, 1]")
    write_json(Path(workdir) / SUMMARY, summary)


def read_summary(workdir: Path | str) -> dict[str, Any]:
    """The content of `summary.json`, as `write_summary` wrote it; raises DamagedFile."""
    advice = "remove it, and the same training command makes it anew"
    path = Path(workdir) / SUMMARY
    form: dict[str, Any] = dict.fromkeys(SUMMARY_KEYS, _KNOWN)
    form |= {"method": str, "steps": int, "activation_bytes": NUMBER}
    summary = read_json(path, form, advice)
    # What only the report shows may be missing, but not be something else.
    uses = {name: dict.fromkeys(MemoryUse._fields, NUMBER) for name in ("memory", "full_memory")}
    seen = {"seconds": _KNOWN, "examples_per_second": _KNOWN, **uses}
    fault = misfit(summary, {name: form for name, form in seen.items() if name in summary})
    if fault:
        raise DamagedFile(f"{path}: {fault}; {advice}")
    return summary
