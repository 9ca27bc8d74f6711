"""`pbr weights check`: what a file is, what fits it, and the exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
from published import as_huggingface_vit, google_vit, huggingface_bert
from safetensors.numpy import save_file

from pbr_jax import cli

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.py")
SHIPPED = "weights/vit_digits04.npz"


def check(*words):
    return cli.main(["weights", "check", *map(str, words)])


def test_the_shipped_weights_fit_the_default_configuration(capsys):
    assert check(SHIPPED) == 0
    printed = capsys.readouterr().out
    for text in (
        "a ViT of width 96, depth 4, heads 4, mlp_dim 384, patch 2, ViT in Google's layout",
        "0.45 M, float16",
        "classes 5",
        "positions 17",
        "--config.model.width=96",
        "digits.py",
        "It is whole.",
    ):
        assert text in printed


def test_against_a_configuration(capsys):
    assert check(SHIPPED, "--config", DIGITS) == 0
    assert "a head of 5 classes; the head of 10 classes starts afresh" in capsys.readouterr().out
    assert check(SHIPPED, "--config", DIGITS, "--config.model.depth=3") == 1
    printed = capsys.readouterr().out
    assert "not in the model: Transformer/encoderblock_3/LayerNorm_0/bias" in printed
    assert printed.splitlines()[-1].endswith("patch 2: --config.model.depth=4")


def test_the_settings_that_are_named_fit(tmp_path, capsys):
    """Taken from the output and given back."""
    np.savez(tmp_path / "vit.npz", **google_vit())
    assert check(tmp_path / "vit.npz") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("  settings"))
    flags = [word for word in line.split() if word.startswith("--")]
    size = ["--config.model.image_size=8", "--config.model.channels=3"]
    assert check(tmp_path / "vit.npz", "--config", DIGITS, *size, *flags) == 0
    assert "positions resized from a grid of 2 x 2 to 4 x 4" in capsys.readouterr().out


def test_a_file_that_is_not_whole_fails(tmp_path, capsys):
    arrays = google_vit()
    del arrays["embedding/bias"]
    np.savez(tmp_path / "vit.npz", **arrays)
    assert check(tmp_path / "vit.npz") == 1
    assert "  missing: embedding/bias" in capsys.readouterr().out


def test_bert_and_what_is_not_used(tmp_path, capsys):
    save_file(huggingface_bert() | {"cls.predictions.bias": np.zeros(20)}, tmp_path / "model")
    assert check(tmp_path / "model") == 0
    printed = capsys.readouterr().out
    assert "a BERT of width 16, depth 2, mlp_dim 32, BERT in Hugging Face's layout" in printed
    assert "cls.predictions.bias (the heads of pretraining)" in printed
    assert "--config.model.family=bert" in printed and "vocab 20" in printed
    assert check(tmp_path / "model", "--config", DIGITS) == 1
    assert "they are a bert, the model is a vit" in capsys.readouterr().out


def test_what_is_no_file_of_weights_is_an_error(tmp_path, capsys):
    assert check(tmp_path / "nowhere.npz") == 2
    assert "Nothing is downloaded for you" in capsys.readouterr().err


def test_settings_without_a_configuration_are_refused(capsys):
    assert check(SHIPPED, "--config.model.depth=3") == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """A ViT of Hugging Face's, and files beside it that say something of each kind."""
    save_file(as_huggingface_vit(google_vit()), tmp_path / "model.safetensors")
    config = {"model_type": "vit", "hidden_act": "gelu_new", "num_attention_heads": 2}
    config |= {"id2label": {str(i): name for i, name in enumerate("abcde")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {"image_mean": [0.485, 0.456, 0.406], "image_std": 0.25, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path


def test_what_lies_beside_is_said(folder, capsys):
    assert check(folder) == 0
    printed = capsys.readouterr().out
    for title, text in (
        ("classes", "a, b, c, d, e\n"),
        ("images", "mean 0.485,0.456,0.406, deviation 0.25, by preprocessor_config.json\n"),
        ("note", f"{folder}/preprocessor_config.json: resample = 3; here images are resized bili"),
        ("note", "its config.json says hidden_act = gelu_new, the model computes gelu\n"),
    ):
        assert f"  {title:<12}{text}" in printed
    # With a configuration each is said once.
    line = next(x for x in printed.splitlines() if x.startswith("  settings"))
    flags = ["--config.model.image_size=8", "--config.model.channels=3", *line.split()[1:]]
    assert check(folder, "--config", DIGITS, *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count("gelu_new") == 1
    assert "the head of 10 classes starts afresh" in printed


def test_what_is_damaged_beside_is_an_error(folder, capsys):
    (folder / "preprocessor_config.json").write_text('{"image_std": 0}')
    assert check(folder) == 2
    assert "preprocessor_config.json: image_std = 0: for pixels in" in capsys.readouterr().err


def test_heads_that_nothing_tells_are_asked_for(folder, capsys):
    (folder / "config.json").unlink()
    assert check(folder) == 0
    printed = capsys.readouterr().out
    line = next(x for x in printed.splitlines() if x.startswith("  settings"))
    assert line.endswith("--config.model.heads=H (no array tells H; their authors do)")
    words = [word for word in line.split() if word.startswith("--")]
    flags = [word.replace("heads=H", "heads=2") for word in words]
    flags += ["--config.model.image_size=8", "--config.model.channels=3"]
    assert check(folder, "--config", DIGITS, *flags) == 0


def test_a_patch_that_does_not_divide_the_image_brings_its_image_along(folder, capsys):
    config = ["--config", DIGITS, "--config.model.image_size=9", "--config.model.patch=3"]
    assert check(folder, *config) == 1
    advice = capsys.readouterr().out.splitlines()[-1]
    flags = [word for word in advice.split() if word.startswith("--")]
    assert "--config.model.image_size=4" in flags
    assert check(folder, *config, *flags) == 0


def test_a_tilde_is_a_home_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert check(f"~/{folder.name}") == 0
    assert "It is whole." in capsys.readouterr().out
