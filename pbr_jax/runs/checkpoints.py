"""Checkpoints that are either proven whole or not used.

`store.py` writes and restores; a manifest (`manifest.py`) proves. It is written once all files of a
step are, and before their temporary directory is renamed, so that one rename publishes data and
manifest together: a process killed at any moment leaves a verified step or a temporary directory
that is ignored. Old steps are deleted after that rename, so never the last verified one. Two files
that Orbax writes between manifest and rename, `_CHECKPOINT_METADATA` and `commit_success.txt`, are
not listed; restoring does not need them.
"""

import contextlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from pbr_jax.hosts import ALONE, Job
from pbr_jax.measure.text import format_bytes
from pbr_jax.runs import disk, manifest, restorable
from pbr_jax.runs.store import Store
from pbr_jax.training.task import LOSS, better

_LOGGER = logging.getLogger(__name__)
_CHANGED_LATER = frozenset({"_CHECKPOINT_METADATA"})  # by Orbax, between manifest and rename


class CheckpointError(RuntimeError):
    """Checkpoints cannot be written or trusted; the message says what, where, and what to do."""


class Restored(NamedTuple):
    """A state as `Checkpointer.restore` found it."""

    step: int
    state: PyTree
    data_state: dict[str, Any]


class _Pending(NamedTuple):
    """The save in progress."""

    step: int
    metrics: dict[str, float] | None
    tree: dict[str, str]
    num_bytes: int


def _criterion(metrics: Mapping[str, float]) -> str:
    """The figure by which the evaluation of a step is judged."""
    return "accuracy" if "accuracy" in metrics else LOSS


class Checkpointer(contextlib.AbstractContextManager["Checkpointer", None]):
    """Saves in the background, keeps the last steps and the best, restores verified steps only.

    Leave it through its context manager or `close()`: a save still running when the interpreter
    exits is lost (it leaves a temporary directory, never a broken step). One process, or those of
    one job, may write to a directory at a time.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int,
        notify: Callable[[str], None] = _LOGGER.warning,
        job: Job = ALONE,
    ) -> None:
        if keep < 1:
            rule = "must be at least 1, the number of latest checkpoints to keep"
            raise ValueError(f"keep = {keep}: {rule}")
        # Holds `<step>/` for each checkpoint and the link `best`; the first save makes it.
        self.directory = Path(directory).absolute()
        self.keep = keep  # latest steps; the best one is kept besides
        self.job = job  # whose processes all save and restore; the first alone cleans and proves
        self.notify = notify  # told of each checkpoint that is passed over or set aside, and why
        self._store = Store(self.directory, self._prove)
        self._pending: _Pending | None = None
        self._writing = False
        self._links = True  # whether the link `best` can be written
        # Steps newer than the newest verified one and what is wrong with them; None before
        # `restore` has looked.
        self._faults: dict[int, manifest.BrokenCheckpoint] | None = None

    def __exit__(self, *error: object) -> None:
        try:
            self.close()
        except CheckpointError:
            if error[0] is None:
                raise
            # Otherwise the first fault is the one to tell.

    def save(
        self,
        step: int,
        state: PyTree,
        data_state: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts saving `state`, a tree of `jax.Array`s, after `step` finished steps.

        First waits for the previous save. Returns as soon as `state` may be donated; whether it was
        written, the next `save`, `wait` or `close` says. Of `metrics`, the evaluation of this state
        if there was one, `"accuracy"`, or without it `"loss"` decides which step is the best.
        `data_state` goes to JSON.

        Raises:
          ValueError: a leaf is no `jax.Array`, or `step` is there already.
          CheckpointError: this or the previous save failed; names the checkpoint that is intact.
        """
        self.wait()
        if metrics is not None:
            if _criterion(metrics) not in metrics:
                rule = "must have 'accuracy' or 'loss', which decides the best checkpoint"
                raise ValueError(f"metrics = {metrics}: {rule}")
            metrics = {name: float(value) for name, value in metrics.items()}
        for name, leaf in manifest.named_leaves(state).items():
            if not isinstance(leaf, jax.Array):
                raise ValueError(
                    f"state leaf {name} is a {type(leaf).__name__}: must be a jax.Array; "
                    "wrap it in jnp.asarray"
                )
        json.dumps(data_state)  # a TypeError here, rather than in a background thread
        num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
        pending = _Pending(step, metrics, manifest.describe(state), num_bytes)
        try:
            self._prepare()
        except OSError as error:
            raise self._failure(pending, error) from error
        if self.job.first and step in self.steps():
            rule = f"already saved in {self.directory}; save each step once"
            raise ValueError(f"step = {step}: {rule}")
        self._pending = pending
        try:
            self._store.save(step, state, data_state)
        except (OSError, ValueError) as error:
            raise self._failure(pending, error) from error

    def wait(self) -> None:
        """Waits for the save in progress, if any; raises CheckpointError where it failed."""
        if self._pending is None:
            return
        try:
            self._store.wait()
        except Exception as error:  # Orbax's threads raise ValueError, OSError or TimeoutError
            raise self._failure(self._pending, error) from error
        self._pending = None
        if self.job.first:
            self._delete_old()
            self._link_best()

    def close(self) -> None:
        """Waits for the save in progress and releases Orbax's threads."""
        try:
            self.wait()
        finally:
            self._store.close()

    def restore(self, state_like: PyTree, step: int | None = None) -> Restored | None:
        """Restores the newest step that verifies, or exactly `step`; None where there is none.

        `state_like` has the structure, shapes, dtypes and shardings wanted, as
        `jax.ShapeDtypeStruct`s or arrays; without a sharding they go to the first device of this
        process. A save that was interrupted before it was complete is no checkpoint.

        Raises:
          CheckpointError: there are checkpoints and none verifies, or `step` does not.
          ValueError: the checkpoint holds another tree than `state_like`, by the paths that differ.
        """
        self.wait()
        # All processes take the step that the first has found to be whole.
        newest = self.job.shared(self._found(state_like, step) if self.job.first else None)
        if newest is None:
            return None
        try:
            state, data_state = self._store.restore(newest, state_like)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(newest)} is whole, but cannot be restored:"
                f" {error}\nRemove it to use the one before, or use another work directory."
            ) from error
        return Restored(newest, state, data_state)

    def _found(self, state_like: PyTree, step: int | None) -> int | None:
        """The step that `restore` takes, None where there is none; raises as it does."""
        steps = sorted(self.steps(), reverse=True) if step is None else [step]
        if not steps:
            why = "is an interrupted save and is ignored; no checkpoint is complete yet"
            for path in self._store.interrupted():
                self.notify(f"{path} {why}")
            return None
        # The newest step that is whole; those above it are named, and set aside by the next save.
        found, faults = self._newest_verified(steps)
        if step is None:
            self._faults = faults
        if found is None:
            raise CheckpointError(
                f"no checkpoint to be trusted in {self.directory}:\n"
                + "\n".join(f"  {candidate}: {fault}" for candidate, fault in faults.items())
                + "\nUse another work directory, or delete these checkpoints to start anew."
            )
        for candidate, fault in faults.items():
            self.notify(
                f"checkpoint {candidate} is not used: {fault}; "
                f"using checkpoint {found.step} instead"
            )
        if lines := manifest.difference(found.tree, manifest.describe(state_like)):
            raise ValueError(
                f"checkpoint {self.directory / str(found.step)} does not fit this run:\n  "
                + "\n  ".join(lines)
                + "\nIt was saved with another model, method or optimizer: "
                "use its config, or another work directory."
            )
        return found.step

    def steps(self) -> list[int]:
        """Steps on disk, in ascending order, verified or not; without a save in progress."""
        return self._store.steps()

    def best_step(self) -> int | None:
        """The step with the best evaluation (the later of equals), or None if none was evaluated.

        Judged by the manifests; `restore(state_like, step=best_step())` verifies its data.
        """
        return self._best(self.steps())

    def bytes_needed(self, state_like: PyTree, saves: int) -> int:
        """An upper bound of what this run may still have to write in `saves`; Orbax compresses."""
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state_like))
        steps = self.steps()
        present = sum(p.stat().st_size for s in steps for p in (self.directory / str(s)).rglob("*"))
        # The last steps, the best and one in progress, less what is there.
        return max(size, size * min(self.keep + 2, len(steps) + saves) - present)

    def check_space(self, bytes_needed: int) -> None:
        """Raises `CheckpointError` unless `bytes_needed` are free where `directory` lies."""
        free = disk.free_bytes(self.directory)
        if free < bytes_needed:
            raise CheckpointError(
                f"not enough disk space for checkpoints: {format_bytes(bytes_needed)} needed, "
                f"{format_bytes(free)} free\n"
                f"in {self.directory}\n"
                "Free some space, use another work directory, or set a lower keep_checkpoints."
            )

    def _best(self, steps: Sequence[int]) -> int | None:
        best, least = None, None
        for step in sorted(steps):
            try:
                metrics = manifest.read(self.directory / str(step)).metrics
            except manifest.BrokenCheckpoint:
                continue
            if metrics is None:
                continue
            name = _criterion(metrics)
            if metrics[name] == least or better(name, metrics[name], least):
                best, least = step, metrics[name]
        return best

    def _newest_verified(
        self, steps: Sequence[int] = ()
    ) -> tuple[manifest.Manifest | None, dict[int, manifest.BrokenCheckpoint]]:
        """The first of `steps`, or of all, that verifies, and what is wrong with those before."""
        faults: dict[int, manifest.BrokenCheckpoint] = {}
        for step in steps or sorted(self.steps(), reverse=True):
            try:
                found = manifest.verify(self.directory / str(step))
                restorable.prove(self._store.path / str(step), found.tree)
            except manifest.BrokenCheckpoint as fault:
                faults[step] = fault
            else:
                return found, faults
        return None, faults

    def _prepare(self) -> None:
        """Before the first save: removes interrupted ones, and sets broken steps aside.

        A broken step would count as one of the last, and collide when its number comes again.
        """
        if self._writing:
            return
        if self.job.first:
            self._clean()
        self.job.meet()
        self._writing = True

    def _clean(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self._store.interrupted():
            shutil.rmtree(path)
        if self._faults is None:
            _, self._faults = self._newest_verified()
        for step in self._faults:
            path = self.directory / str(step)
            aside = path.with_name(f"{step}.broken")
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
            self.notify(
                f"broken checkpoint {step} is now {aside}; delete it when you no longer need it"
            )

    def _prove(self, temporary: Path) -> None:
        assert self._pending is not None
        step, metrics, tree, _ = self._pending
        # What Orbax could not restore must not be vouched for.
        restorable.prove(temporary, tree)
        manifest.write(temporary, step, metrics, tree, _CHANGED_LATER)

    def _failure(self, failed: _Pending, error: Exception) -> CheckpointError:
        """Cleans up after a failed save and explains it."""
        step, _, _, num_bytes = failed
        self._pending = None
        intact = None
        if self.job.first:  # others may still be writing
            self._store.discard(step)  # a second fault there must not replace the first
            intact, _ = self._newest_verified()
        said = str(error).replace(str(self._store.path), str(self.directory))
        why, advice = disk.cause(self.directory, said, num_bytes)
        rest = f"Checkpoint {intact.step} is intact" if intact else "No checkpoint is intact"
        if not self.job.first:
            rest = "What was saved before is as it was"
        return CheckpointError(
            f"checkpoint {step} was not saved: {why}\nin {self.directory}\n{rest}; {advice}."
        )

    def _delete_old(self) -> None:
        """Keeps the last `keep` steps and the best."""
        steps = self.steps()
        for step in {*steps} - {*steps[-self.keep :], self._best(steps)}:
            try:
                self._store.delete(step)
            except OSError as error:
                path = self.directory / str(step)
                self.notify(f"{path} cannot be deleted: {error.strerror}; the run goes on")

    def _link_best(self) -> None:
        best, link = self.best_step(), self.directory / "best"
        if best is None or not self._links:
            return
        try:
            temporary = self.directory / "best.tmp"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(str(best))
            temporary.replace(link)
        except OSError as error:  # a disk without links; nothing of ours reads it
            self._links = False
            self.notify(f"{link} cannot be written: {error.strerror}; the run goes on without")
