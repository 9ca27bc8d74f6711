"""A work directory of `train.py`, opened for use: prediction, export, inspection."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pbr_jax.configs.common import Config
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.metrics import write_json
from pbr_jax.settings import load as configuration
from pbr_jax.training import from_config
from pbr_jax.training.state import TrainState

CLASSES = "classes.json"


class Run(NamedTuple):
    """A run and one of its checkpoints.

    Attributes:
      workdir: of `train.py`.
      config: as in its `config.json`.
      parts: what the run is made of.
      state: as saved after `step` steps.
      step: of the checkpoint.
      class_names: what the classes are called.
    """

    workdir: Path
    config: Config
    parts: from_config.Parts
    state: TrainState
    step: int
    class_names: tuple[str, ...]

    @property
    def params(self) -> Any:
        """The model's parameters."""
        return self.state.params


def open_run(
    workdir: Path,
    checkpoint: Literal["best", "last"] = "best",
    notify: Callable[[str], None] = print,
) -> Run:
    """Opens a run at its most accurate checkpoint or at its last one that verifies.

    Args:
      workdir: of `train.py`.
      checkpoint: "best" is the last one where none was evaluated.
      notify: receives one message for each checkpoint that is passed over.

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
    names = _class_names(workdir, config.model.num_classes)
    return Run(workdir, config, parts, restored.state, restored.step, names)


def read_config(workdir: Path) -> Config:
    """The configuration of the run in `workdir`.

    Raises:
      ValueError: there is none, or this version cannot read it.
    """
    file = workdir / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{workdir}: not a run, there is no config.json; give the work directory of train.py,"
            " such as runs/digits-lean"
        )
    try:
        saved = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: damaged ({error})") from error
    return configuration.from_dict(saved, str(file))


def save_class_names(workdir: Path, names: Sequence[str]) -> None:
    """Writes what the classes are called, label -> name, for whoever uses the run."""
    write_json(workdir / CLASSES, {str(label): name for label, name in enumerate(names)})


def _class_names(workdir: Path, num_classes: int) -> tuple[str, ...]:
    """The names that the run saved; numbers for a run from before it did."""
    file = workdir / CLASSES
    if not file.is_file():
        return tuple(map(str, range(num_classes)))
    return tuple(json.loads(file.read_text()).values())
