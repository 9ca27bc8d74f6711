"""What a work directory holds before a training writes into it, and what becomes of that.

A run that has checkpoints goes on. A run that never had one begins anew, and an empty folder is
free. Everything else may be of value to somebody and is refused, unless the user says --force.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.files import DamagedFile
from pbr_jax.hosts import Job
from pbr_jax.runs import held, history, metrics
from pbr_jax.runs.ownership import LOCK
from pbr_jax.runs.run import CHECKPOINTS, CLASSES, CONFIG, saved_settings
from pbr_jax.settings.load import ConfigError
from pbr_jax.settings.saved import from_dict

# All that a run writes into its directory, beside TensorBoard's events.
WRITTEN = (
    *(CONFIG, CLASSES, CHECKPOINTS, held.FOLDER, history.FILE),
    *(metrics.FILE, "metrics.csv", metrics.SUMMARY, "report.html"),
)


class Claim(NamedTuple):
    """A work directory that a training may take."""

    saved: dict[str, Any] | None  # settings of the run that goes on there, None where one begins
    replaced: tuple[Path, ...]  # what is removed when one begins
    notes: list[str]

    @classmethod
    def of_first(cls, job: Job, find: Callable[[], "Claim"]) -> "Claim":
        """What the first process of a job finds; the others learn of the settings alone."""
        found = find() if job.first else None
        saved = job.shared(found and found.saved)
        return found or cls(saved, (), [])

    def clear(self) -> None:
        """Removes what is replaced."""
        for path in self.replaced:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def look(workdir: Path, steps: Sequence[int], force: bool) -> Claim:
    """What may be done with a folder in which checkpoints of `steps` were found.

    `force` replaces what would otherwise be refused; a run that can go on goes on all the same.

    Raises:
      ValueError: it holds something of value, and not `force`; says what, and what to do.
    """
    entries = [path for path in sorted(workdir.iterdir()) if not _may_lie_there(path)]
    saved, fault = _settings(workdir)
    if steps and saved is not None:
        return Claim(saved, (), [])
    written = tuple(p for p in entries if p.name in WRITTEN or p.name.startswith("events.out."))
    names = ", ".join(path.name for path in written)
    why = _value(workdir, entries, steps, saved, fault)
    if not why:
        anew = f"the run that was begun in {workdir} has no checkpoint: it begins anew"
        return Claim(None, written, [anew] if written else [])
    if not force:
        does = f"replaces {names}" if names else "puts the run beside them"
        raise ValueError(f"{why}\nTake another --workdir, or add --force, which {does}.")
    return Claim(None, written, [f"--force: replaced {names} of {workdir}"] if names else [])


def _value(
    workdir: Path,
    entries: Sequence[Path],
    steps: Sequence[int],
    saved: dict[str, Any] | None,
    fault: str,
) -> str:
    """What of value a folder holds from which no run can go on; "" if there is nothing."""
    listed = ", ".join(path.name for path in entries[:5]) + (" ..." if entries[5:] else "")
    if fault:
        return fault
    if saved is None and steps:
        return f"{workdir} has checkpoints but no {CONFIG}, so they may be of another run"
    if saved is None:
        return listed and f"{workdir} is no work directory of ours, and is not empty: {listed}"
    # A run of ours without a checkpoint: was there one?
    lost = f"{workdir / CHECKPOINTS}, its checkpoints, is missing or empty"
    if os.path.lexists(workdir / metrics.SUMMARY):
        return f"{workdir} holds a finished run, but {lost}; put them back to use it"
    if (step := _saved_step(workdir, saved)) and not (workdir / CHECKPOINTS).is_dir():
        return f"{workdir} holds a run with metrics up to step {step}, but {lost}; put them back"
    return ""


def _settings(workdir: Path) -> tuple[dict[str, Any] | None, str]:
    """The settings of the run in a folder, None without one; and what is wrong with its file."""
    if not os.path.lexists(workdir / CONFIG):
        return None, ""
    try:
        saved = saved_settings(workdir)
        from_dict(saved, str(workdir / CONFIG))
    except (DamagedFile, ConfigError) as error:
        return None, str(error)
    return saved, ""


def _saved_step(workdir: Path, saved: dict[str, Any]) -> int:
    """The last step in the metrics of a run, 0 if none of them was ever saved."""
    try:
        records = metrics.read_metrics(workdir)
    except DamagedFile:  # what cannot be read is not used
        return 0
    last = max((record["step"] for record in records), default=0)
    # The first evaluation is the best so far, and is saved.
    evaluated = any(record["split"] == "test" for record in records)
    return last if evaluated or last > saved.get("checkpoint_every", last) else 0


def _may_lie_there(path: Path) -> bool:
    """Whether a file is nobody's work: hidden, a log of this very command, or half written."""
    if path.name == LOCK or path.name.startswith("."):
        return True
    if path.suffix in (".log", ".out", ".err", ".tmp"):
        return True
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is closed, or no file
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return True
    return False
