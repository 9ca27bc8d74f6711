"""History of the policies of a run: `pruning.npz`, from which the report draws its picture."""

import io
from pathlib import Path

import numpy as np

from pbr_jax.files import write_bytes
from pbr_jax.training.loop import Observer
from pbr_jax.training.selection import SelectorState
from pbr_jax.training.state import TrainState

FILE = "pruning.npz"


class PruningHistory(Observer):
    """Snapshots of every site's probabilities, on disk after each one.

    The file holds `steps` int64 [S], `probs/<site>` float16 [S, L, A] and `counts/<site>` int32
    [L, A], the latter up to the last snapshot. Nothing is written for a method without policies.
    Snapshots after `resume_step` are dropped; None drops all.
    """

    def __init__(self, workdir: Path, resume_step: int | None):
        self._path = workdir / FILE
        self._steps: list[int] = []
        self._probs: dict[str, list[np.ndarray]] = {}
        if resume_step is None:
            self._path.unlink(missing_ok=True)
        elif self._path.is_file():
            with np.load(self._path) as file:
                kept = int(np.sum(file["steps"] <= resume_step))
                self._steps = file["steps"][:kept].tolist()
                names = [n for n in file.files if n.startswith("probs/")]
                self._probs = {n.removeprefix("probs/"): list(file[n][:kept]) for n in names}

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
