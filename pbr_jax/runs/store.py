"""States in a folder, by Orbax: written in the background, and read back.

Orbax is held here: that it globs its own path, stores no empty array, and prints several tracebacks
for a save that fails. Its `CheckpointManager` is not used: where one of several processes cannot
write, that waits for the others, which wait for it. Whether what is there can be trusted is not the
business of this module, but that of `checkpoints.py`.
"""

import contextlib
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from pbr_jax.files import plain_path

_STEP = re.compile("0|[1-9][0-9]*")  # as Orbax names its folder


class Store:
    """The steps in `directory`, which the first save makes.

    `complete` is called on a thread of the first process, with the path of a step's temporary
    directory, once all files of the step are written and before one rename publishes it; what it
    raises fails the save.
    """

    def __init__(self, directory: Path, complete: Callable[[Path], None]) -> None:
        self.directory, self._complete = directory, complete
        self._saving = 0  # the step of the last save
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._path: Path | None = None  # of `directory`, for Orbax
        self._open_path = contextlib.ExitStack()

    @property
    def path(self) -> Path:
        """A path to the existing `directory` that no library can misread."""
        if self._path is None:
            self._path = self._open_path.enter_context(plain_path(self.directory))
        return self._path

    def steps(self) -> list[int]:
        """Steps on disk, in ascending order; without a save in progress."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def interrupted(self) -> list[Path]:
        """What saves that were never completed left behind."""
        return sorted(self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))

    def save(self, step: int, state: PyTree, data: dict[str, Any]) -> None:
        """Starts to save; returns as soon as `state` may be donated."""
        self._saving = step
        items = {"state": ocp.args.StandardSave(_stored(state)), "data": ocp.args.JsonSave(data)}
        self._open().save(self.path / str(step), args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Waits for the save in progress; raises what Orbax's threads do."""
        if self._checkpointer is not None:
            self._checkpointer.wait_until_finished()

    def discard(self, step: int) -> None:
        """Removes what a failed save managed to write, which would keep a full disk full."""
        shutil.rmtree(self._temporary(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        """Removes a step, which is never seen in part: by then it is an interrupted save."""
        gone = self._temporary(step).with_name(f"{step}{ocp.utils.TMP_DIR_SUFFIX}-deleted")
        (self.path / str(step)).rename(gone)
        shutil.rmtree(gone)

    def restore(self, step: int, state_like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The state of a step, of the structure of `state_like`, and the data saved with it."""
        # Orbax is told where every array shall lie: by itself it takes the devices of the save.
        leaves, treedef = jax.tree.flatten(state_like)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        targets = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)
            for x in leaves
        ]
        stored = _stored(jax.tree.unflatten(treedef, targets))
        wanted = {"state": ocp.args.StandardRestore(stored), "data": ocp.args.JsonRestore()}
        path = self.path / str(step)
        items = self._open().restore(path, args=ocp.args.Composite(**wanted))
        # Empty arrays were not stored, and are made anew in their places.
        arrays = iter(jax.tree.leaves(items["state"]))
        filled = (
            next(arrays) if math.prod(x.shape) else jnp.zeros(x.shape, x.dtype, device=x.sharding)
            for x in targets
        )
        return jax.tree.unflatten(treedef, filled), items["data"]

    def close(self) -> None:
        """Releases Orbax's threads; what is wrong with the last save, `wait` has told."""
        if self._checkpointer is not None:
            with contextlib.suppress(Exception):
                self._checkpointer.close()
            self._checkpointer = None
        self._open_path.close()
        self._path = None

    def _open(self) -> ocp.AsyncCheckpointer:
        if self._checkpointer is None:
            logging.getLogger("absl").addFilter(_not_of_orbax)
            finished = lambda: self._complete(self._temporary(self._saving))  # noqa: E731
            self._checkpointer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler("state", "data"),
                async_options=ocp.AsyncOptions(post_finalization_callback=finished),
            )
        return self._checkpointer

    def _temporary(self, step: int) -> Path:
        return self.path / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"


def _stored(state: PyTree) -> PyTree:
    """What Orbax is given of a state: it refuses arrays of size zero, which are made anew."""
    return jax.tree.map(lambda x: x if math.prod(x.shape) else None, state)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Drops what Orbax prints of a failed save, several tracebacks: `CheckpointError` says it."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname
