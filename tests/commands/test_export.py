"""`pbr export`: what is written is the checkpoint asked for, bit for bit, and whole."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from fakes import param_shapes
from saved_runs import NAMES, bert_run, vit_run

from pbr_jax import cli
from pbr_jax.configs.common import Data
from pbr_jax.data import TextInputs
from pbr_jax.files import write_json
from pbr_jax.runs.run import read_config
from pbr_jax.training import from_config
from pbr_jax.training.pretrained import load_weights
from pbr_jax.weights import preparation_of

RUNS = {"vit": vit_run, "bert": bert_run}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: (folder / name, write(folder / name)) for name, write in RUNS.items()}


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("vit", "npz"),
        ("vit", "safetensors"),
        ("vit", "orbax"),
        ("bert", "safetensors"),
        ("bert", "orbax"),
    ],
)
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_an_export_starts_a_run_with_the_same_bits(runs, tmp_path, family, form, checkpoint):
    workdir, saved = runs[family]
    out = tmp_path / "out [x]"
    flags = ["--to", form, "--out", str(out), "--checkpoint", checkpoint]
    assert cli.main(["export", str(workdir), *flags]) == 0
    model = from_config.build(read_config(workdir)).model.module
    settings = dataclasses.replace(read_config(workdir).model, weights=str(out))
    params, notes = load_weights(settings, param_shapes(model), NAMES)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, params, saved[checkpoint == "last"])
    assert list(tmp_path.iterdir()) == [out]


def test_the_classes_and_the_tokenizer_are_in_the_export(runs, tmp_path):
    workdir, _ = runs["bert"]
    assert (
        cli.main(["export", str(workdir), "--to", "safetensors", "--out", str(tmp_path / "b")]) == 0
    )
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["id2label"] == {"0": "none", "1": "one", "2": "two", "3": "three"}
    assert (tmp_path / "b" / "vocab.txt").read_text() == (workdir / "vocab.txt").read_text()
    settings = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is True and settings["model_max_length"] == 12


def test_an_export_changes_texts_as_the_run_did(runs, tmp_path):
    workdir, _ = runs["bert"]
    run = shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["tokenizer"] = str(run / "vocab.txt")  # a run exports its own files alone
    # A tokenizer.json that keeps capital letters: Transformers would believe the file beside it.
    cased = run / "tokenizer.json"
    TextInputs(config["data"]["tokenizer"], 8, lower_case=False)._tokenizer.save(str(cased))
    for changed in ({"lower_case": False}, {"tokenizer": str(cased)}):
        write_json(run / "config.json", config | {"data": config["data"] | changed})
        out = tmp_path / next(iter(changed))
        assert cli.main(["export", str(run), "--to", "safetensors", "--out", str(out)]) == 0
        settings = json.loads((out / "tokenizer_config.json").read_text())
        assert settings["do_lower_case"] is settings["strip_accents"] is False
        assert settings["tokenize_chinese_chars"] is True
        # What is written is what is read again.
        (name,) = {path.name for path in out.iterdir()} & {"vocab.txt", "tokenizer.json"}
        again = TextInputs(str(out / name), 12)
        assert not again.normalization["do_lower_case"] and not again.notes


def test_no_file_outside_the_run_is_copied_into_an_export(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs["bert"][0], run, symlinks=True)
    (tmp_path / "secret.txt").write_text("key")
    saved = json.loads((run / "config.json").read_text())
    saved["data"]["tokenizer"] = str(tmp_path / "secret.txt")
    (run / "config.json").write_text(json.dumps(saved))
    command = ["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert f"Copy the vocab.txt or tokenizer.json of its model to {run / 'inputs'}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    # The advice.
    (run / "inputs").mkdir()
    shutil.copy(run / "vocab.txt", run / "inputs")
    assert cli.main(command) == 0
    assert (tmp_path / "out" / "vocab.txt").read_text() == (run / "vocab.txt").read_text()


def test_the_default_place_is_in_the_run_and_is_never_overwritten(tmp_path, capsys):
    vit_run(tmp_path / "run")
    command = ["export", str(tmp_path / "run"), "--to", "npz"]
    assert cli.main(command) == 0
    out = tmp_path / "run" / "export" / "model.npz"
    assert f"checkpoint 1 of {tmp_path / 'run'} to {out}" in capsys.readouterr().out
    before = out.read_bytes()
    assert cli.main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_format_that_cannot_hold_the_model_leaves_nothing(runs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(runs["bert"][0]), "--to", "npz", "--out", str(out)]
    assert cli.main(command) == 2
    assert (
        "--to npz: is no layout of a bert; there are safetensors, orbax" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_an_export_says_how_images_were_normalised_and_an_npz_asks_for_it(tmp_path, capsys):
    data = Data(name="npz", path="gone.npz", mean=0.25, std="0.1")
    vit_run(tmp_path / "run", data=data)
    for form in ("safetensors", "orbax", "npz"):
        out = tmp_path / form
        assert cli.main(["export", str(tmp_path / "run"), "--to", form, "--out", str(out)]) == 0
        if form != "npz":
            assert preparation_of(out).normalization == ((0.25,), (0.1,))
    printed = capsys.readouterr().out
    assert printed.count("--config.data.mean=0.25 --config.data.std=0.1") == 1


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_a_delta_holds_what_differs_from_the_weights_of_the_run(tmp_path, capsys, family):
    """Wherever it is read from, and made whole again; the tokenizer lies beside it."""
    first, second = tmp_path / "first", tmp_path / "second"
    RUNS[family](first)
    base = tmp_path / "base"
    assert cli.main(["export", str(first), "--to", "orbax", "--out", str(base)]) == 0
    # The second run began with that, and changed four rows of a kernel.
    saved = RUNS[family](second)[0]
    config = json.loads((second / "config.json").read_text())
    config["model"]["weights"] = str(base)
    write_json(second / "config.json", config)
    command = ["export", str(second), "--to", "delta", "--out", str(tmp_path / "delta")]
    assert cli.main(command) == 0
    assert "it holds 0 bytes of" in capsys.readouterr().out
    whole = tmp_path / "whole"
    command = ["export", str(tmp_path / "delta"), "--to", "orbax", "--out", str(whole)]
    assert cli.main(command) == 0
    model = from_config.build(read_config(second)).model.module
    for path in (tmp_path / "delta", whole):
        settings = dataclasses.replace(read_config(second).model, weights=str(path))
        params, notes = load_weights(settings, param_shapes(model), NAMES)
        assert notes == []
        jax.tree.map(np.testing.assert_array_equal, params, saved)
    assert (tmp_path / "delta" / "vocab.txt").exists() == (family == "bert")
    command[3:] = ["npz", "--out", str(tmp_path / "no")]
    assert cli.main(command) == 2
    assert "is a delta, which is made whole by --to orbax" in capsys.readouterr().err


def test_a_run_from_random_parameters_has_no_delta(runs, tmp_path, capsys):
    command = ["export", str(runs["vit"][0]), "--to", "delta", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "--to delta: the run began with random parameters" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
