"""Which settings fit weights, and what a run says when they do not."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from fakes import SMALL, bert, config, param_shapes, random_params, vit, words
from published import google_vit, huggingface_bert

from pbr_jax import data
from pbr_jax import weights as public
from pbr_jax.configs.common import MODEL_SIZES, Model
from pbr_jax.data.arrays import ArrayRecords
from pbr_jax.training import pretrained
from pbr_jax.training.begin import begin
from pbr_jax.training.mesh import ONE_DEVICE
from pbr_jax.weights.bert import HUGGINGFACE_BERT
from pbr_jax.weights.vit import HUGGINGFACE_VIT

RGB = dataclasses.replace(SMALL, channels=3, num_classes=5)


@pytest.fixture
def google(tmp_path):
    """A small ViT in Google's layout."""
    np.savez(tmp_path / "vit.npz", **google_vit())
    return tmp_path / "vit.npz"


def sized(name, patch=16, **changes):
    """Weights of a public size, without the arrays."""
    words = ("width", "depth", "heads", "mlp_dim")
    sizes = dict(zip(words, MODEL_SIZES[name], strict=True)) | {"patch": patch, "channels": 3}
    form = HUGGINGFACE_VIT
    arrays = {"vit.embeddings.cls_token": np.zeros(1)}
    return public.Weights(None, form, arrays, {}, {}, sizes | changes, {})


def test_sizes_of_a_model_are_those_of_its_export(tmp_path):
    for model in (vit(), vit(pool="mean", image_size=6), bert()):
        family, sizes = words(model)
        if family == "vit":
            public.save_npz(tmp_path / "vit.npz", "vit", random_params(model), sizes)
            assert public.read(tmp_path / "vit.npz").sizes == sizes
        else:
            public.save(tmp_path, "safetensors", family, random_params(model), sizes, "abcde")
            assert public.read(tmp_path).sizes == sizes


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        (sized("L"), "ViT-L/16"),
        (sized("B", patch=32), "ViT-B/32"),
        (sized("Ti"), "ViT-Ti/16"),
        (sized("S", heads=3), "a ViT of width 384, depth 12, heads 3, mlp_dim 1536, patch 16"),
        (sized("S", depth=3), "a ViT of width 384, depth 3, heads 6, mlp_dim 1536, patch 16"),
    ],
)
def test_weights_have_names(weights, name):
    assert pretrained.describe(weights) == name


def test_the_heads_may_be_unknown():
    weights = sized("B")
    del weights.sizes["heads"]
    assert pretrained.describe(weights) == "ViT-B/16"
    assert pretrained.changes(weights, Model(size="B")) == []


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        (sized("B"), Model(size="B"), []),
        (sized("L"), Model(size="B"), ["size=L"]),
        (sized("B", patch=32), Model(size="B"), ["patch=32"]),
        (sized("B", channels=1), Model(size="B", patch=8), ["patch=16", "channels=1"]),
        (sized("B"), Model(size="B", pool="mean"), []),
        (
            sized("L"),
            Model(width=768, depth=12, heads=12, mlp_dim=3072),
            ["size=L", "width=none", "depth=none", "heads=none", "mlp_dim=none"],
        ),
        (
            sized("B", depth=10),
            Model(size="B"),
            ["size=none", "width=768", "depth=10", "heads=12", "mlp_dim=3072"],
        ),
    ],
)
def test_the_settings_that_fit_are_named(weights, settings, expected):
    assert pretrained.changes(weights, settings) == expected


def test_weights_without_a_class_token_ask_for_the_mean():
    weights = sized("B")
    weights.arrays.clear()
    assert pretrained.changes(weights, Model(size="B")) == ["pool=mean"]


def load(path, settings, model):
    settings = dataclasses.replace(settings, weights=str(path))
    return pretrained.load_weights(settings, param_shapes(model))


def test_weights_that_fit_are_loaded(google):
    params, notes = load(google, RGB, vit())
    assert params["norm"]["scale"].shape == (16,) and notes == []


def test_the_error_ends_with_what_it_is_and_what_to_set(google):
    settings = dataclasses.replace(RGB, depth=3)
    with pytest.raises(ValueError, match="do not fit the model") as raised:
        load(google, settings, vit(depth=3))
    assert str(raised.value).splitlines()[-1] == (
        "This is a ViT of width 16, depth 2, heads 2, mlp_dim 32, patch 2: --config.model.depth=2"
    )


def test_a_damaged_file_that_has_the_right_sizes_asks_for_no_setting(google):
    arrays = google_vit()
    del arrays["embedding/bias"]
    np.savez(google, **arrays)
    with pytest.raises(ValueError, match=r"missing: embedding/bias\nThis is a ViT of [^-]*$"):
        load(google, RGB, vit())


def test_another_family_is_named(tmp_path):
    np.savez(tmp_path / "bert.npz", **huggingface_bert())
    with pytest.raises(ValueError, match="they are a bert, the model is a vit") as raised:
        load(tmp_path / "bert.npz", RGB, vit())
    assert str(raised.value).splitlines()[-1] == (
        "This is a BERT of width 16, depth 2, mlp_dim 32: --config.model.family=bert"
        " --config.model.vocab_size=20 --config.model.max_length=8"
    )


def test_bert_weights_have_names_and_settings():
    weights = sized("B")._replace(format=HUGGINGFACE_BERT)
    weights.sizes.update(vocab=28996, positions=512)
    assert pretrained.describe(weights) == "BERT-base"
    settings = Model(family="bert", size="B", vocab_size=28996, max_length=128)
    assert pretrained.changes(weights, settings) == []
    assert pretrained.changes(weights, Model(family="bert", size="L", max_length=1024)) == [
        "size=B",
        "vocab_size=28996",
        "max_length=512",
    ]


def test_shipped_weights_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.find_weights("weights/vit_digits04.npz").is_file()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vit_digits04.npz").write_bytes(b"mine")
    assert pretrained.find_weights("weights/vit_digits04.npz").read_bytes() == b"mine"


def test_a_run_that_begins_tells_its_weights_the_classes():
    """So that the rows of a head can be put into their order."""
    images = np.zeros((4, 8, 8, 1), np.uint8)
    records = ArrayRecords("training", images, np.arange(4), 4)
    parts = mock.Mock(placement=ONE_DEVICE)
    parts.model.begin.side_effect = InterruptedError
    with pytest.raises(InterruptedError):
        begin(config(batch_size=4), parts, data.Dataset(records, records, tuple("abcd")))
    assert parts.model.begin.call_args.args[1] == tuple("abcd")


def test_the_classes_reach_the_weights(tmp_path):
    family, sizes = words(vit())
    public.save(tmp_path, "safetensors", family, random_params(vit()), sizes, "abcde")
    settings = dataclasses.replace(RGB, weights=str(tmp_path))
    _, (note,) = pretrained.load_weights(settings, param_shapes(vit()), "edcba")
    assert "its classes lie in another order, a, b, c, d, e" in note
