"""The beginning of a training in a work directory, or the point from which it goes on there."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pbr_jax import __version__
from pbr_jax.configs.common import Config
from pbr_jax.data import Dataset
from pbr_jax.data.listing import Change, Listing, digest, listing
from pbr_jax.files import user_path, write_json
from pbr_jax.runs import held
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError, Restored
from pbr_jax.runs.claim import Claim
from pbr_jax.runs.ownership import Guest, Ownership
from pbr_jax.runs.run import CLASSES, CONFIG
from pbr_jax.settings import rules
from pbr_jax.settings import saved as settings
from pbr_jax.settings.rules import show, value_at
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin, compile_step, on_batches
from pbr_jax.training.from_config import Parts
from pbr_jax.training.loop import Run


class Started(NamedTuple):
    """A run that is ready to train."""

    run: Run  # for `training.loop.train`; it saves into the work directory
    train_step: jax.stages.Compiled
    resumed: int | None  # the checkpoint from which it goes on, None if it begins
    notes: list[str]  # what a reader should know of its beginning


def start(
    config: Config,
    owner: Ownership | Guest,
    claim: Claim,
    parts: Parts,
    dataset: Dataset,
    checkpoints: Checkpointer,
) -> Started:
    """Begins the run in the folder of `owner`, or goes on from the newest sound checkpoint.

    `claim` says which; the settings may go on with what it found there. Nothing is written before
    all that can be wrong has been looked at.

    Raises:
      CheckpointError: checkpoints are damaged, or there is too little space for new ones.
      ValueError: weights, a checkpoint or the data do not fit.
    """
    workdir, job = owner.folder, checkpoints.job
    shapes = from_config.state_shapes(config, parts)
    # The data first: it is soon looked at.
    lists = {split: listing(getattr(dataset, split)) for split in held.SPLITS}
    # Checkpoints that --force replaces are nobody's beginning.
    if job.count > 1:
        job.check_same(_of_every_process(config, lists))
    gone: dict[str, Change] | None = {}
    restored = None
    if claim.saved is not None:
        gone, restored = held.check_examples(workdir, lists), checkpoints.restore(shapes)
    checkpoints.check_space(checkpoints.bytes_needed(shapes, _saves(config, restored)))
    # A run that goes on reads its own tokenizer, wherever the user's is by now.
    own = config if claim.saved is None else held.with_own_tokenizer(config, workdir)
    at = _on_fewer(restored, len(dataset.train))
    run, notes = begin(own, parts, dataset, at, alive=job.alive)
    train_step = compile_step(config, parts)

    job.meet()  # nothing is replaced before every process has looked, and could begin
    if job.first:
        claim.clear()
        write_json(workdir / CONFIG, settings.to_dict(config))
        names = {str(label): name for label, name in enumerate(dataset.class_names)}
        if names:
            write_json(workdir / CLASSES, names)
        if gone or gone is None or claim.saved is None:
            held.write(workdir, held.examples_file(lists))
        if config.data.source.kind != "image" and not held.tokenizer(workdir):
            assert config.data.tokenizer is not None  # a rule of the configuration
            held.write(workdir, held.tokenizer_files(user_path(config.data.tokenizer)))

    save, wait = _in_own_folder(owner, checkpoints.save), _in_own_folder(owner, checkpoints.wait)
    step = on_batches(parts, train_step, job.alive)
    run = run._replace(train_step=step, save=save, wait=wait)
    if restored is None:
        return Started(run, train_step, None, notes)
    notes += [*_on_data(gone, dataset, restored.step), f"resumed from checkpoint {restored.step}"]
    return Started(run, train_step, restored.step, notes)


def _of_every_process(config: Config, lists: Mapping[str, Listing]) -> dict[str, Any]:
    """What decides a run, which the processes of a job must have alike."""
    chosen = {entry.key: show(value_at(config, entry.key)) for entry in rules.settings()}
    versions = {"pbr_jax": __version__, "jax": jax.__version__}
    return {**versions, **chosen, "data (a digest)": digest(lists)}


def _saves(config: Config, restored: Restored | None) -> int:
    """The most checkpoints that a run still saves: at intervals, of a best, and of a stop."""
    left = config.steps - (0 if restored is None else restored.step)
    return left // config.checkpoint_every + left // config.eval_every + 2


def _in_own_folder(owner: Ownership | Guest, write: Callable[..., None]) -> Callable[..., None]:
    """The same function, which ends with what became of the folder where that is why it fails."""

    def checked(*args: Any) -> None:
        owner.check()  # Orbax would make the folder anew
        try:
            write(*args)
        except CheckpointError:
            owner.check()
            raise

    return checked


def _on_fewer(restored: Restored | None, num_examples: int) -> Restored | None:
    """The same checkpoint, its position in a list of so many examples if it was in a longer one."""
    position = {} if restored is None else restored.data_state["batches"]
    if restored is None or position["num_examples"] <= num_examples:
        return restored
    batches = {**position, "num_examples": num_examples}
    return restored._replace(data_state={**restored.data_state, "batches": batches})


def _on_data(gone: Mapping[str, Change] | None, dataset: Dataset, step: int) -> list[str]:
    """Notes on what became of the data of a run that goes on from `step`."""
    if gone is None:
        return [
            f"{held.FOLDER}/{held.EXAMPLES} is not there, as in runs of older versions: whether the"
            " data changed is not known; from now on it is"
        ]
    what = {"train": "batches are drawn from", "test": "evaluations are on"}
    return [
        f"{split}: {change} since the run began; from step {step + 1} on"
        f" {what[split]} the {len(getattr(dataset, split))} that are left"
        for split, change in gone.items()
    ]
