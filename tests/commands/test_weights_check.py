"""`pbr weights check`: what a file is, what fits it, and the exit code."""

from pathlib import Path

import numpy as np
from published import google_vit, huggingface_bert
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
