"""The files in which a run keeps its numbers: `metrics.jsonl`, TensorBoard events, `summary.json`.

Each line of `metrics.jsonl` is one record, `{"split": "train" | "test", "step": int, ...}`, on disk
as soon as it is written. A resumed run first removes what an interrupted one wrote after the
checkpoint, so that every step has one record and a curve has no second branch.
"""

import contextlib
import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pbr_jax.files import write_json, write_text
from pbr_jax.training.loop import Observer
from pbr_jax.training.state import TrainState

Split = Literal["train", "test"]
SUMMARY_KEYS = (
    "method",
    "accuracy",  # fraction in [0, 1] on the test split
    "steps",
    "seconds_per_step",
    "activation_bytes",  # what is saved between forward and backward pass
    "compiled_peak_bytes",  # of the compiled train step, arguments included
)


class MetricsWriter(Observer, contextlib.AbstractContextManager["MetricsWriter", None]):
    """Appends records to `metrics.jsonl` and to TensorBoard events in `workdir`.

    Records after `resume_step`, the step of the restored checkpoint, are removed; None removes all.

    Raises:
      ValueError: `metrics.jsonl` has a broken line before its last one.
    """

    def __init__(self, workdir: Path | str, resume_step: int | None = None):
        # tensorboardX takes a while to import and only training needs it.
        from tensorboardX import SummaryWriter

        self.workdir = Path(workdir)
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / "metrics.jsonl"
        # What an interrupted run wrote after its checkpoint will be written again.
        last = -1 if resume_step is None else resume_step
        kept = [record for record in read_metrics(workdir) if record["step"] <= last]
        write_text(path, "".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")
        # TensorBoard itself hides events from purge_step on.
        self._events = SummaryWriter(str(self.workdir), purge_step=last + 1, flush_secs=10)

    def logged(self, line: dict[str, float]) -> None:
        self.write(line)

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        self.write({"step": step, **test}, "test")

    def write(self, metrics: Mapping[str, float], split: Split = "train") -> None:
        """Appends one record: of numbers, among them `step`; what is not finite becomes null."""
        self._file.write(_line({"split": split, **metrics}))
        self._file.flush()
        for name, value in metrics.items():
            if name != "step":
                self._events.add_scalar(f"{split}/{name}", value, int(metrics["step"]))

    def close(self) -> None:
        """Closes the files and writes all records as one table, `metrics.csv`."""
        self._file.close()
        self._events.close()
        write_csv(self.workdir)

    def __exit__(self, *error: object) -> None:
        self.close()


def read_metrics(workdir: Path | str) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order; none when there is no such file.

    A last line without its end was cut off when the run was killed, and is left out.

    Raises:
      ValueError: naming the file and the line that is no record.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        return []
    records = []
    *lines, _cut_off = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no record of metrics: {line[:80]!r}\n"
                f"Remove that line, or move the file away; the checkpoints do not depend on it."
            ) from error
        records.append(record)
    return records


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no other form for what is not finite than null.
    odd = {name for name, x in record.items() if isinstance(x, float) and not math.isfinite(x)}
    return json.dumps({**record, **dict.fromkeys(odd)}, allow_nan=False) + "\n"


def write_csv(workdir: Path | str) -> None:
    """Writes `metrics.csv`: a row per record, a column per name, empty where a record lacks it."""
    records = read_metrics(workdir)
    names = list(dict.fromkeys(name for record in records for name in record))
    path = Path(workdir) / "metrics.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(records)


def write_summary(workdir: Path | str, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json`; raises ValueError where keys lack or accuracy is no fraction."""
    missing = [name for name in SUMMARY_KEYS if name not in summary]
    if missing:
        raise ValueError(f"summary: lacks {', '.join(missing)}; give None for what is unknown")
    accuracy = summary["accuracy"]
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"summary: accuracy = {accuracy} must be a fraction in [0, 1]")
    write_json(Path(workdir) / "summary.json", summary)
