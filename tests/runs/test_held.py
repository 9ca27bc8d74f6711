"""A run holds its tokenizer: it is read from there, and nothing else is taken for it."""

import dataclasses
import shutil

import pytest
from fakes import bert_config
from small_data import write_vocabulary

from pbr_jax.configs.common import Data
from pbr_jax.data import TextInputs
from pbr_jax.files import DamagedFile
from pbr_jax.runs import held


@pytest.fixture
def texts(tmp_path):
    """A configuration with a tokenizer of the user's, and a run that began with it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    tokenizer = write_vocabulary(tmp_path / "mine")
    (tmp_path / "mine" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    config = bert_config(data=Data(name="jsonl", path="no", tokenizer=tokenizer))
    held.write(tmp_path / "run", held.tokenizer_files(tmp_path / "mine" / "vocab.txt"))
    return config, tmp_path / "run"


def test_the_tokenizer_is_read_from_the_run_after_the_users_has_gone(texts, tmp_path, monkeypatch):
    config, run = texts
    shutil.rmtree(tmp_path / "mine")
    monkeypatch.chdir("/")
    own = held.with_own_tokenizer(config, run).data.tokenizer
    assert own == str(run / "inputs" / "vocab.txt")
    assert TextInputs(own, 8).vocab_size == 18
    assert {*held.tokenizer_to_copy(config, run)} == {"vocab.txt", "tokenizer_config.json"}
    (note,) = held.check_tokenizer(config, run)
    assert "mine/vocab.txt is gone: the run goes on with its own copy" in note


def test_a_run_on_images_and_an_older_one_hold_none(texts, tmp_path):
    config, _ = texts
    assert held.with_own_tokenizer(config, tmp_path) == config
    assert held.check_tokenizer(config, tmp_path) == []
    assert held.examples(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.txt", "[PAD]\n"), ("tokenizer_config.json", "{}"), ("tokenizer_config.json", None)],
)
def test_another_tokenizer_is_refused_and_the_advice_works(texts, tmp_path, name, content):
    config, run = texts
    file = tmp_path / "mine" / name
    file.write_text(content) if content else file.unlink()
    with pytest.raises(ValueError, match=f"its {name} changed since the run began") as error:
        held.check_tokenizer(config, run)
    assert f"Put back what is in {run / 'inputs'}" in str(error.value)
    shutil.copy(run / "inputs" / name, file)
    assert held.check_tokenizer(config, run) == []


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "files.json"])
@pytest.mark.parametrize("damage", ["emptied", "cut", "removed", "replaced"])
def test_a_copy_that_is_not_what_was_written_is_named(texts, name, damage):
    config, run = texts
    file = run / "inputs" / name
    whole = file.read_bytes()
    file.unlink()
    if damage != "removed":
        parts = {"emptied": b"", "cut": whole[: len(whole) // 2], "replaced": b"[1]"}
        file.write_bytes(parts[damage])
    if (name, damage) == ("files.json", "removed"):  # then nothing is known of the others
        assert {*held.tokenizer(run)} == {"vocab.txt", "tokenizer_config.json"}
        return
    for read in (held.with_own_tokenizer, held.check_tokenizer, held.tokenizer_to_copy):
        with pytest.raises(DamagedFile, match=f"{name}.*or remove .*inputs: then") as error:
            read(config, run)
    assert str(file) in str(error.value)
    # The advice: the run is then one that holds nothing.
    shutil.rmtree(run / "inputs")
    assert held.with_own_tokenizer(config, run) == config


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "inputs").touch()
    with pytest.raises(DamagedFile, match="inputs: is no folder; put it back, or remove"):
        held.examples(tmp_path)


def test_only_what_lies_in_the_run_is_copied_from_it(texts, tmp_path):
    config, run = texts
    shutil.rmtree(run / "inputs")
    secret = tmp_path / "secret.txt"
    secret.write_text("key\n")
    for named in (str(secret), f"{run}/../secret.txt", config.data.tokenizer):
        data = dataclasses.replace(config.data, tokenizer=named)
        with pytest.raises(ValueError, match=r"named in its config.json, lies elsewhere") as error:
            held.tokenizer_to_copy(dataclasses.replace(config, data=data), run)
    assert f"to {run / 'inputs'}, and export again" in str(error.value)
    # Links lead out as well.
    inputs = run / "inputs"
    inputs.mkdir()
    (inputs / "vocab.txt").symlink_to(secret)
    with pytest.raises(DamagedFile, match=r"vocab.txt: leads out of the run"):
        held.tokenizer_to_copy(config, run)
    # The advice of the first message.
    (inputs / "vocab.txt").unlink()
    shutil.copy(config.data.tokenizer, inputs)
    assert {*held.tokenizer_to_copy(config, run)} == {"vocab.txt"}


def test_a_tokenizer_in_the_folder_of_an_older_run_is_copied(texts):
    config, run = texts
    shutil.rmtree(run / "inputs")
    data = dataclasses.replace(config.data, tokenizer=write_vocabulary(run))
    assert {*held.tokenizer_to_copy(dataclasses.replace(config, data=data), run)} == {"vocab.txt"}
