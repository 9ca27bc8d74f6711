"""A work directory: started or gone on with by training, opened by prediction and export."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from pbr_jax.configs.common import Config
from pbr_jax.data import Dataset
from pbr_jax.files import DamagedFile, read_json, write_json
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.metrics import SUMMARY, read_summary
from pbr_jax.settings import load as settings
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin, compile_step
from pbr_jax.training.from_config import Parts
from pbr_jax.training.inputs import settled
from pbr_jax.training.loop import Run
from pbr_jax.training.state import TrainState

CLASSES = "classes.json"
CONFIG = "config.json"


class Started(NamedTuple):
    """A run that is ready to train."""

    run: Run  # for `training.loop.train`; it saves into the work directory
    train_step: jax.stages.Compiled
    resumed: int | None  # the checkpoint from which it goes on, None if it begins
    notes: list[str]  # what a reader should know of its beginning


def start(
    config: Config, workdir: Path, parts: Parts, dataset: Dataset, checkpoints: Checkpointer
) -> Started:
    """Begins the run in `workdir`, or goes on from the newest sound one of its `checkpoints`.

    The folder is made if it is not there. `check_resume` has found that the run may go on with
    `config`, of which `parts` are built.

    Raises:
      CheckpointError: checkpoints are damaged, or there is too little space for new ones.
      ValueError: weights or a checkpoint do not fit.
    """
    shapes = from_config.state_shapes(config, parts)
    restored = checkpoints.restore(shapes)
    checkpoints.check_space(checkpoints.bytes_needed(shapes))
    run, notes = begin(config, parts, dataset, restored)
    # Nothing is written before all that can be wrong has been looked at.
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, settings.to_dict(config))
    names = {str(label): name for label, name in enumerate(dataset.class_names)}
    write_json(workdir / CLASSES, names)
    train_step = compile_step(config, parts)
    run = run._replace(train_step=train_step, save=checkpoints.save, wait=checkpoints.wait)
    resumed = None if restored is None else restored.step
    notes += [] if resumed is None else [f"resumed from checkpoint {resumed}"]
    return Started(run, train_step, resumed, notes)


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


def saved_settings(workdir: Path) -> dict[str, Any]:
    """The settings with which a run was started; raises ValueError where there are none."""
    saved = workdir / CONFIG
    if not saved.is_file():
        raise ValueError(
            f"{workdir} has checkpoints but no {CONFIG}, so they may be of another run;"
            " take another --workdir"
        )
    return _read_config(workdir)


class OpenRun(NamedTuple):
    """A run and one of its checkpoints."""

    workdir: Path
    config: Config  # as in its `config.json`
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
    config, _ = settled(read_config(workdir), {})
    parts = from_config.build(config)
    with Checkpointer(workdir / "checkpoints", config.keep_checkpoints, notify) as checkpoints:
        step = checkpoints.best_step() if checkpoint == "best" else None
        restored = checkpoints.restore(from_config.state_shapes(config, parts), step)
    if restored is None:
        raise ValueError(f"{workdir}: has no checkpoint yet")
    # A run from before it saved the names of its classes has numbers.
    names, file = tuple(map(str, range(config.model.num_classes))), workdir / CLASSES
    if os.path.lexists(file):
        names = _read_classes(file, len(names))
    return OpenRun(workdir, config, parts, restored.state, restored.step, names)


def read_config(workdir: Path) -> Config:
    """The configuration of a run; raises ValueError where none is there, or it cannot be read."""
    file = workdir / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{workdir}: not a run, there is no config.json; give the work directory of train.py,"
            " such as runs/digits-lean"
        )
    return settings.from_dict(_read_config(workdir), str(file))


def _read_config(workdir: Path) -> dict[str, Any]:
    advice = "copy that of a run with the same settings, or take another work directory"
    form = {"name": str, "method": str, "model": dict, "data": dict, "optimizer": dict}
    return read_json(workdir / CONFIG, form, advice)


def _read_classes(file: Path, count: int) -> tuple[str, ...]:
    """The names of the `count` classes of a run, in the order of their labels."""
    advice = "remove it, and classes have numbers for names"
    saved = read_json(file, dict.fromkeys(map(str, range(count)), str), advice)
    if len(saved) != count:
        raise DamagedFile(f"{file}: names {len(saved)} classes, the model has {count}; {advice}")
    return tuple(saved[str(label)] for label in range(count))
