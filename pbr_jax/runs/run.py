"""A work directory: what is in it, and how prediction and export open it."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pbr_jax.configs.common import Config, Mesh
from pbr_jax.files import DamagedFile, read_json
from pbr_jax.runs import held
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError
from pbr_jax.runs.metrics import SUMMARY, read_summary
from pbr_jax.settings import saved as settings
from pbr_jax.training import from_config
from pbr_jax.training.from_config import Parts
from pbr_jax.training.inputs import settled
from pbr_jax.training.state import TrainState

CHECKPOINTS = "checkpoints"
CLASSES = "classes.json"
CONFIG = "config.json"


def finished(
    config: Config, workdir: Path, checkpoints: Checkpointer, notify: Callable[[str], None]
) -> dict[str, Any] | None:
    """The summary of the run in `workdir`, or None if it has not had its last step and said so.

    A summary that is damaged is named to `notify`: going on from the last step makes it anew.
    """
    if config.steps not in checkpoints.steps() or not os.path.lexists(workdir / SUMMARY):
        return None
    try:
        return read_summary(workdir)
    except DamagedFile as error:
        notify(str(error))
        return None


class OpenRun(NamedTuple):
    """A run and one of its checkpoints."""

    workdir: Path
    config: Config  # as in its `config.json`, with the tokenizer that it holds
    parts: Parts
    state: TrainState  # as saved after `step` steps
    step: int
    class_names: tuple[str, ...]

    @property
    def params(self) -> Any:
        return self.state.params


def open_run(
    workdir: Path,
    checkpoint: Literal["best", "last"] = "best",
    notify: Callable[[str], None] = print,
) -> OpenRun:
    """Opens a run at its most accurate checkpoint or at its last one that verifies.

    Where none was evaluated, "best" is the last one. `notify` receives one message for each
    checkpoint that is passed over.

    Raises:
      ValueError: there is no run, or it has no checkpoint yet.
      CheckpointError: its checkpoints are damaged.
    """
    config, _ = settled(held.with_own_tokenizer(read_config(workdir), workdir), {})
    # One device will do for what is read of it.
    parts = from_config.build(dataclasses.replace(config, mesh=Mesh(data=1)))
    shapes = from_config.state_shapes(config, parts)
    while True:
        with Checkpointer(workdir / CHECKPOINTS, config.keep_checkpoints, notify) as checkpoints:
            there = checkpoints.steps()
            step = checkpoints.best_step() if checkpoint == "best" else None
            try:
                restored = checkpoints.restore(shapes, step)
                break
            except CheckpointError:
                if checkpoints.steps() == there:
                    raise
                # Otherwise a training that goes on replaced what was about to be read.
    if restored is None:
        raise ValueError(f"{workdir}: has no checkpoint yet")
    # A run from before it saved the names of its classes has numbers; language has no classes.
    classes = 0 if config.data.source.kind == "language" else config.model.num_classes
    numbers = tuple(map(str, range(classes)))
    names = read_classes(workdir, classes) or numbers
    return OpenRun(workdir, config, parts, restored.state, restored.step, names)


def read_config(workdir: Path) -> Config:
    """The configuration of a run; raises ValueError where none is there, or it cannot be read."""
    file = workdir / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{workdir}: not a run, there is no config.json; give the work directory of train.py,"
            " such as runs/digits-lean"
        )
    return settings.from_dict(saved_settings(workdir), str(file))


def saved_settings(workdir: Path) -> dict[str, Any]:
    """The settings of a run, as they are in its file; raises `DamagedFile`."""
    advice = "copy that of a run with the same settings, or take another work directory"
    form = {"name": str, "method": str, "model": dict, "data": dict, "optimizer": dict}
    return read_json(workdir / CONFIG, form, advice)


def read_classes(workdir: Path, count: int) -> tuple[str, ...] | None:
    """The names of the `count` classes of a run by label, None if it is from before it saved them.

    Raises:
      DamagedFile: the file is something else.
    """
    file, advice = workdir / CLASSES, "remove it, and classes have numbers for names"
    if not os.path.lexists(file):
        return None
    saved = read_json(file, dict.fromkeys(map(str, range(count)), str), advice)
    if len(saved) != count:
        raise DamagedFile(f"{file}: names {len(saved)} classes, the model has {count}; {advice}")
    return tuple(saved[str(label)] for label in range(count))
