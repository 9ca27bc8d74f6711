"""History of the policies of a run: `pruning.npz`, from which the report draws its picture."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pbr_jax.files import DamagedFile, read_bytes, set_aside, write_bytes
from pbr_jax.training.loop import Observer
from pbr_jax.training.selection import SelectorState
from pbr_jax.training.state import TrainState

FILE = "pruning.npz"


class Columns(NamedTuple):
    """Content of `pruning.npz`: S snapshots of L blocks with A arms each, by site."""

    steps: np.ndarray  # int64 [S], ascending
    probs: dict[str, np.ndarray]  # float16 [S, L, A]; in the file `probs/<site>`
    # int32 [L, A], steps in which an arm was trained, up to the last snapshot; `counts/<site>`
    counts: dict[str, np.ndarray]


def read_columns(workdir: Path | str) -> Columns | None:
    """The content of `pruning.npz`, None without one; raises DamagedFile."""
    path, advice = Path(workdir) / FILE, "remove it; only a picture depends on it"
    if not os.path.lexists(path):
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path, advice)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DamagedFile:
        raise
    except Exception as error:  # NumPy, zipfile and zlib have many words for damaged bytes
        kind = type(error).__name__
        raise DamagedFile(f"{path}: is damaged ({kind}: {error}); {advice}") from error
    if fault := _fault(arrays):
        raise DamagedFile(f"{path}: {fault}; {advice}")
    sites = _sites(arrays)
    found = Columns(
        arrays["steps"],
        {site: arrays[f"probs/{site}"] for site in sites},
        {site: arrays[f"counts/{site}"] for site in sites},
    )
    return found if sites and len(found.steps) else None


def _sites(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name.removeprefix("probs/") for name in arrays if name.startswith("probs/")]


def _fault(arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a history; "" if nothing is."""
    sites = _sites(arrays)
    missing = {"steps", *(f"counts/{site}" for site in sites)} - {*arrays}
    if missing:
        return f"lacks {', '.join(sorted(missing))}"
    steps = arrays["steps"]
    if steps.ndim != 1 or any(array.dtype.kind not in "iuf" for array in arrays.values()):
        return "must hold numbers, and steps in one dimension"
    for site in sites:
        probs, counts = arrays[f"probs/{site}"], arrays[f"counts/{site}"]
        expected = (len(steps), *counts.shape)
        if counts.ndim != 2 or probs.shape != expected:
            return (
                f"probs/{site} has shape {probs.shape}, must be {expected}: "
                f"snapshots, blocks and columns as in steps and counts/{site}"
            )
    return ""


class PruningHistory(Observer):
    """Snapshots of every site's probabilities, on disk after each one.

    Nothing is written for a method without policies. Snapshots after `resume_step` are dropped;
    None drops all. A damaged file is set aside, which `notify` is told, and the history begins
    anew.
    """

    def __init__(
        self, workdir: Path, resume_step: int | None, notify: Callable[[str], None] = print
    ):
        self._path = workdir / FILE
        self._steps: list[int] = []
        self._probs: dict[str, list[np.ndarray]] = {}
        try:
            found = read_columns(workdir)
        except DamagedFile as error:
            found = None
            notify(f"{error}\nIt is now {set_aside(self._path)}.")
        if resume_step is None:
            self._path.unlink(missing_ok=True)
        elif found is not None:
            kept = int(np.sum(found.steps <= resume_step))
            self._steps = found.steps[:kept].tolist()
            self._probs = {site: list(probs[:kept]) for site, probs in found.probs.items()}

    def began(self, step: int, state: TrainState) -> None:
        self.record(step, state.pruning)

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        self.record(step, state.pruning)

    def stopped(self, step: int, state: TrainState) -> None:
        self.record(step, state.pruning)

    def record(self, step: int, state: SelectorState) -> None:
        """Adds a snapshot, unless there is one of this step."""
        if not state.columns or step in self._steps:
            return
        # All of the file is written anew: it is small, and whole at any moment.
        self._steps.append(step)
        arrays: dict[str, np.ndarray] = {"steps": np.asarray(self._steps, np.int64)}
        for site, policy in state.columns.items():
            self._probs.setdefault(site, []).append(np.asarray(policy.probs, np.float16))
            arrays[f"probs/{site}"] = np.stack(self._probs[site])
            arrays[f"counts/{site}"] = np.asarray(policy.counts)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_bytes(self._path, buffer.getvalue())
