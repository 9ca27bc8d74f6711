"""A run goes on with the data that it began with, or less of it, and says so."""

import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import CLASSES, bert_config, config
from small_data import write_vocabulary

from pbr_jax.configs.common import Data
from pbr_jax.data import Dataset
from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.data.tables import Row, TextRecords
from pbr_jax.families import find
from pbr_jax.files import DamagedFile
from pbr_jax.runs import manifest
from pbr_jax.runs import start as starting
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.claim import look
from pbr_jax.runs.ownership import Gone, Ownership
from pbr_jax.training.begin import train_batches
from pbr_jax.training.loop import Run
from pbr_jax.training.mesh import ONE_DEVICE

NAMES = ("a", "b", "c", "d")


STATE = {"w": jnp.zeros(3)}


def begin(config, parts, dataset, saved, alive):
    """As `training.begin.begin`, without a model."""
    batches = train_batches(config, dataset, parts.placement)
    if saved is not None:
        batches.restore(saved.data_state["batches"])
    start = 0 if saved is None else saved.step
    run = Run(STATE, start, 50, None, None, batches, None, 8, None, "accuracy")
    return run, []


@pytest.fixture(scope="module", autouse=True)
def no_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "compile_step", lambda config, parts: None)
        patch.setattr(starting, "begin", begin)
        patch.setattr(starting.from_config, "state_shapes", lambda config, parts: STATE)
        yield


def dataset(train=range(24), test=range(100, 108)):
    """Images that are told apart by their grey."""

    def records(name, greys):
        grey = np.array(greys, np.uint8)
        pixels = np.broadcast_to(grey[:, None, None, None], (len(grey), 4, 4, 1))
        return ArrayRecords(name, pixels, (grey % 2).astype(np.int32))

    return Dataset(records("training", [*train]), records("test", [*test]), NAMES)


def parts_of(family):
    return SimpleNamespace(family=find(family), placement=ONE_DEVICE)


def go(folder, data, step=None, settings=None, force=False):
    """Starts a run in a folder; saves it as if it had had `step` steps. Its notes and position."""
    settings = settings or config()
    with Ownership(folder) as owner, Checkpointer(folder / "checkpoints", 2) as checkpoints:
        claim = look(folder, checkpoints.steps(), force)
        parts = parts_of(settings.model.family)
        started = starting.start(settings, owner, claim, parts, data, checkpoints)
        run = started.run
        if step is not None:
            for _ in range(step - run.start):
                next(run.batches)
            position = {"batches": run.batches.state(), "best": -1.0}
            run.save(step, run.state, position, None)
    return started.notes, run.batches.state()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    notes, _ = go(folder, dataset(), step=2)
    assert notes == []
    return folder


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def without(*gone):
    """24 images without some."""
    return [grey for grey in range(24) if grey not in gone]


def test_the_same_data_goes_on_without_a_word(run):
    notes, position = go(run, dataset())
    assert notes == ["resumed from checkpoint 2"]
    assert (position["batch_index"], position["num_examples"]) == (2, 24)


def test_checkpoints_that_force_replaces_are_not_gone_on_from(run):
    (run / "config.json").unlink()
    notes, position = go(run, dataset(), force=True)
    assert notes == [] and position["batch_index"] == 0
    assert not (run / "checkpoints").exists()


def test_only_as_many_checkpoints_as_there_can_be_need_room(tmp_path):
    """A run of 50 steps saves 5 of them, whatever it may keep."""
    go(tmp_path, dataset(), settings=config(steps=50, checkpoint_every=10, keep_checkpoints=10**9))


def test_examples_that_are_gone_are_said_and_the_run_goes_on(run):
    less = dataset(without(3, 7), range(100, 107))
    notes, position = go(run, less)
    train, test, _ = notes
    assert train == (
        "train: 2 lost (training example 3, training example 7) since the run began;"
        " from step 3 on batches are drawn from the 22 that are left"
    )
    assert test.startswith("test: 1 lost (test example 7)") and "evaluations are on the 7" in test
    assert (position["batch_index"], position["num_examples"]) == (2, 22)
    # From now on that is its data; the checkpoint is still one of 24.
    assert go(run, less, step=3) == (["resumed from checkpoint 2"], position | {"batch_index": 3})
    assert go(run, less)[0] == ["resumed from checkpoint 3"]
    with pytest.raises(ValueError, match=r"train: 2 gained"):
        go(run, dataset())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dataset([*range(24), 50]), "train: 1 gained (training example 24)"),
        (dataset([*range(23), 50]), "train: 1 gained (training example 23), 1 lost"),
        (dataset([2, 1, 0, *range(3, 24)]), "train: in another order"),
        (dataset(test=[1, *range(101, 108)]), "test: 1 gained (test example 0), 1 lost"),
    ],
)
def test_other_data_is_refused_by_name(run, changed, words):
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match="the data changed since the run in") as error:
        go(run, changed)
    assert words in str(error.value) and f"another --workdir than {run}" in str(error.value)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("count", [24, 20])
def test_a_run_from_before_lists_were_kept_goes_on_with_a_note(run, count):
    shutil.rmtree(run / "inputs")
    notes, position = go(run, dataset(range(count)))
    assert "whether the data changed is not known" in notes[0] and position["num_examples"] == count
    with pytest.raises(ValueError, match=r"train: 1 gained"):
        go(run, dataset([*range(count), 77]))


def test_a_damaged_list_is_named_and_the_advice_works(run):
    file = run / "inputs" / "examples.npz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=r"examples.npz: is not what the run began with"):
        go(run, dataset())
    shutil.rmtree(run / "inputs")
    assert "whether the data changed is not known" in go(run, dataset())[0][0]


def test_a_folder_that_is_gone_is_noticed_before_anything_is_saved(run):
    moved = run.with_name("moved")
    with Ownership(run) as owner, Checkpointer(run / "checkpoints", 2) as checkpoints:
        claim = look(run, checkpoints.steps(), False)
        parts = parts_of("vit")
        started = starting.start(config(), owner, claim, parts, dataset(), checkpoints)
        run.rename(moved)
        with pytest.raises(Gone, match=f"{run} was removed or moved"):
            started.run.save(3, started.run.state, {}, None)
    assert not run.exists() and not (moved / "checkpoints" / "3").exists()


def test_a_folder_that_goes_during_a_save_is_what_is_told(run, monkeypatch):
    write = manifest.write

    def slow(directory, *args):
        run.rename(run.with_name("moved"))
        write(directory, *args)

    with Ownership(run) as owner, pytest.raises(Gone):
        with Checkpointer(run / "checkpoints", 2) as checkpoints:
            claim = look(run, checkpoints.steps(), False)
            parts = parts_of("vit")
            started = starting.start(config(), owner, claim, parts, dataset(), checkpoints)
            monkeypatch.setattr(manifest, "write", slow)
            started.run.save(3, started.run.state, {}, None)
            started.run.wait()


def test_a_run_on_texts_takes_its_tokenizer_along(tmp_path):
    mine = write_vocabulary(tmp_path)
    rows = [Row(f"a man {'walks' * (i % 2)}", None, NAMES[i % CLASSES], f"t:{i}") for i in range(8)]
    texts = Dataset(TextRecords(rows, NAMES), TextRecords(rows[:4], NAMES), NAMES)
    settings = bert_config(data=Data(name="jsonl", path="no", tokenizer=mine))
    go(tmp_path / "run", texts, 1, settings)
    copy = tmp_path / "run" / "inputs" / "vocab.txt"
    assert copy.read_text() == (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").unlink()
    assert go(tmp_path / "run", texts, None, settings)[0] == ["resumed from checkpoint 1"]
    # A run from before it held one takes that of its configuration.
    shutil.rmtree(copy.parent)
    write_vocabulary(tmp_path)
    go(tmp_path / "run", texts, None, settings)
    assert copy.is_file()
