"""A work directory: started or gone on with by training, opened by prediction and export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from pbr_jax.configs.common import Config
from pbr_jax.data import Dataset
from pbr_jax.files import write_json
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.settings import load as settings
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin, compile_step
from pbr_jax.training.from_config import Parts
from pbr_jax.training.loop import Run
from pbr_jax.training.state import TrainState

CLASSES = "classes.json"
CONFIG = "config.json"
SUMMARY = "summary.json"


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


def is_complete(config: Config, workdir: Path, checkpoints: Checkpointer) -> bool:
    """Whether the run in `workdir` has had its last step and said so."""
    return config.steps in checkpoints.steps() and (workdir / SUMMARY).is_file()


def saved_settings(workdir: Path) -> dict[str, Any]:
    """The settings with which a run was started; raises ValueError where there are none."""
    saved = workdir / CONFIG
    if not saved.is_file():
        raise ValueError(
            f"{workdir} has checkpoints but no {CONFIG}, so they may be of another run;"
            " take another --workdir"
        )
    return json.loads(saved.read_text())


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
    config = read_config(workdir)
    parts = from_config.build(config)
    with Checkpointer(workdir / "checkpoints", config.keep_checkpoints, notify) as checkpoints:
        step = checkpoints.best_step() if checkpoint == "best" else None
        restored = checkpoints.restore(from_config.state_shapes(config, parts), step)
    if restored is None:
        raise ValueError(f"{workdir}: has no checkpoint yet")
    # A run from before it saved the names of its classes has numbers.
    names, file = tuple(map(str, range(config.model.num_classes))), workdir / CLASSES
    if file.is_file():
        names = tuple(json.loads(file.read_text()).values())
    return OpenRun(workdir, config, parts, restored.state, restored.step, names)


def read_config(workdir: Path) -> Config:
    """The configuration of a run; raises ValueError where none is there, or it cannot be read."""
    file = workdir / CONFIG
    if not file.is_file():
        raise ValueError(
            f"{workdir}: not a run, there is no config.json; give the work directory of train.py,"
            " such as runs/digits-lean"
        )
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error})") from error
    return settings.from_dict(saved, str(file))
