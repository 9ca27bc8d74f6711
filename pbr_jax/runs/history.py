"""History of the policies of a run: `pruning.npz`, from which the report draws its picture."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pbr_jax.files import write_bytes
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
    """The content of `pruning.npz`, None without one; raises ValueError if it is damaged."""
    path = Path(workdir) / FILE
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        sites = [name.removeprefix("probs/") for name in arrays.files if name.startswith("probs/")]
        missing = {"steps", *(f"counts/{site}" for site in sites)} - {*arrays.files}
        if missing:
            raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}")
        found = Columns(
            arrays["steps"],
            {site: arrays[f"probs/{site}"] for site in sites},
            {site: arrays[f"counts/{site}"] for site in sites},
        )
    for site in sites:
        expected = (len(found.steps), *found.counts[site].shape)
        if found.probs[site].shape != expected:
            raise ValueError(
                f"{path}: probs/{site} has shape {found.probs[site].shape}, must be {expected}: "
                f"snapshots, blocks and columns as in steps and counts/{site}"
            )
    return found if sites and len(found.steps) else None


class PruningHistory(Observer):
    """Snapshots of every site's probabilities, on disk after each one.

    Nothing is written for a method without policies. Snapshots after `resume_step` are dropped;
    None drops all.
    """

    def __init__(self, workdir: Path, resume_step: int | None):
        self._path = workdir / FILE
        self._steps: list[int] = []
        self._probs: dict[str, list[np.ndarray]] = {}
        if resume_step is None:
            self._path.unlink(missing_ok=True)
        elif (found := read_columns(workdir)) is not None:
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
