"""Hugging Face's ViT and BERT files: what they compute, the ways they are written, and back."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fakes import bert, random_params, vit, words
from measures import assert_close
from published import (
    as_huggingface_vit,
    google_vit,
    huggingface_bert,
    huggingface_bert_logits,
)
from safetensors.numpy import load_file, save_file

from pbr_jax import weights as public
from pbr_jax.models import bert as bert_module
from pbr_jax.models import vit as vit_module

MODELS = {"vit": vit(), "bert": bert()}
INITIAL = {family: random_params(model, 7) for family, model in MODELS.items()}


@pytest.fixture
def write(tmp_path):
    """`arrays -> path` of a safetensors file with them."""

    def write(arrays):
        save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path / "model.safetensors"

    return write


def load(path, family="bert", model=None):
    model = model or MODELS[family]
    initial = random_params(model, 7) if model is not MODELS[family] else INITIAL[family]
    return public.load(public.read(path), *words(model), initial)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def bert_arrays():
    return huggingface_bert()


@pytest.fixture
def bert_params(bert_arrays, write):
    return load(write(bert_arrays)).params


def test_a_bert_file_computes_its_own_logits(bert_arrays, write):
    params, notes = load(write(bert_arrays))
    assert notes == []
    generator = np.random.default_rng(1)
    batch = {
        "tokens": generator.integers(0, 20, (3, 6)).astype(np.int32),
        "token_types": generator.integers(0, 2, (3, 6)).astype(np.int32),
        "lengths": np.array([6, 2, 4], np.int32),
    }
    logits = jax.jit(bert().apply)({"params": params}, jax.tree.map(jnp.asarray, batch))
    assert_close(logits, huggingface_bert_logits(bert_arrays, batch), 5e-6)


def test_a_vit_has_the_same_parameters_in_both_layouts(write, tmp_path):
    google = google_vit()
    np.savez(tmp_path / "google.npz", **google)
    params, notes = load(write(as_huggingface_vit(google)), "vit")
    assert notes == []
    assert_same(params, load(tmp_path / "google.npz", "vit").params)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_an_export_reads_back_bit_for_bit_under_the_published_names(family, tmp_path):
    model, params = MODELS[family], random_params(MODELS[family])
    names = ["none", "one", "two", "three", "four"]
    family, sizes = words(model)
    public.save(tmp_path, "safetensors", family, params, sizes, names)
    published = as_huggingface_vit(google_vit()) if family == "vit" else huggingface_bert()
    exported = load_file(tmp_path / "model.safetensors")
    assert {n: (a.shape, a.dtype) for n, a in exported.items()} == {
        n: (a.shape, a.dtype) for n, a in published.items()
    }
    read = public.read(tmp_path)
    again, notes = public.load(read, family, sizes, INITIAL[family], names)
    assert notes == []
    assert_same(again, params)


def test_the_config_of_an_export_describes_the_model(tmp_path):
    """Also what no array tells: heads, epsilons, names of the classes."""
    for family, module in (("vit", vit_module), ("bert", bert_module)):
        params = random_params(MODELS[family])
        _, sizes = words(MODELS[family])
        public.save(tmp_path / family, "safetensors", family, params, sizes, list("abcde"))
        config = json.loads((tmp_path / family / "config.json").read_text())
        assert config["layer_norm_eps"] == module._EPSILON
        assert config["model_type"] == family
        assert config["num_attention_heads"] == 2
        assert config["id2label"]["4"] == "e" and config["label2id"]["e"] == 4
    assert config["max_position_embeddings"] == 8 and config["vocab_size"] == 20
    settings = json.loads((tmp_path / "vit" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 4, "width": 4} and settings["image_mean"] == [0.5] * 3
    assert public.read(tmp_path / "bert").sizes["heads"] == 2


def test_a_mean_pooled_vit_is_not_exported_as_something_else(tmp_path):
    model = vit(pool="mean")
    family, sizes = words(model)
    with pytest.raises(ValueError, match=r"model.pool = mean.*export to npz"):
        public.save(tmp_path, "safetensors", family, random_params(model), sizes, [])


def test_an_orbax_export_reads_back_bit_for_bit(tmp_path):
    for name, model in {"vit": vit(), "mean": vit(pool="mean"), "bert": bert()}.items():
        params = random_params(model)
        family, sizes = words(model)
        public.save_orbax(tmp_path / name, family, params, sizes)
        again, notes = load(tmp_path / name, model=model)
        assert notes == []
        assert_same(again, params)
    with pytest.raises(ValueError, match="not in the model: pooler/bias"):
        public.load(
            public.read(tmp_path / "bert"),
            *words(bert()),
            {name: part for name, part in random_params(bert()).items() if name != "pooler"},
        )


def test_an_orbax_export_can_get_another_head_and_grid(tmp_path):
    family, sizes = words(vit())
    params = random_params(vit())
    public.save_orbax(tmp_path / "vit", family, params, sizes)
    other = vit(num_classes=3, image_size=6)
    again, notes = load(tmp_path / "vit", model=other)
    assert_same(again["blocks"], params["blocks"])
    assert again["pos_embedding"].shape == (1, 10, 16)
    assert "a head of 5 classes" in notes[0] and "positions resized" in notes[1]
    with pytest.raises(ValueError, match="2 attention heads, the model has 4"):
        load(tmp_path / "vit", model=vit(heads=4))


def test_what_an_orbax_export_lacks_is_named(tmp_path):
    model = vit(pool="mean")
    family, sizes = words(model)
    public.save_orbax(tmp_path / "mean", family, random_params(model), sizes)
    with pytest.raises(ValueError, match="missing: cls\n"):
        load(tmp_path / "mean", model=vit())


def test_names_without_the_prefix_are_known(bert_arrays, bert_params, write):
    bare = {name.removeprefix("bert."): array for name, array in bert_arrays.items()}
    assert_same(load(write(bare)).params, bert_params)
    google = google_vit()
    full = as_huggingface_vit(google)
    bare = {name.removeprefix("vit."): array for name, array in full.items()}
    expected = load(write(full), "vit").params
    assert_same(load(write(bare), "vit").params, expected)


def test_gamma_and_beta_are_known(bert_arrays, bert_params, write):
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in bert_arrays.items()
    }
    assert len(old.keys() - bert_arrays.keys()) == 10
    assert_same(load(write(old)).params, bert_params)


def test_a_pretraining_file_has_no_head_and_its_own_heads_are_not_used(
    bert_arrays, bert_params, write
):
    pretraining = {n: a for n, a in bert_arrays.items() if not n.startswith("classifier")} | {
        "cls.predictions.bias": np.zeros(20, np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.ones(16, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 16), np.float32),
        "bert.embeddings.position_ids": np.arange(8)[None],
    }
    path = write(pretraining)
    params, notes = load(path)
    assert_same(params, bert_params | {"head": INITIAL["bert"]["head"]})
    assert notes == [
        f"{path}: no head; the head of 5 classes starts afresh",
        f"{path}: not used: bert.embeddings.position_ids (buffers without parameters)",
        f"{path}: not used: cls.predictions.bias, cls.predictions.transform.LayerNorm.gamma,"
        " cls.seq_relationship.weight (the heads of pretraining)",
    ]


def test_a_missing_pooler_starts_afresh(bert_arrays, bert_params, write):
    path = write({n: a for n, a in bert_arrays.items() if "pooler" not in n})
    params, notes = load(path)
    assert_same(params, bert_params | {"pooler": INITIAL["bert"]["pooler"]})
    assert notes == [f"{path}: no pooler; it starts afresh"]


def test_the_pooler_of_a_vit_is_not_used(write):
    arrays = as_huggingface_vit(google_vit())
    more = {"vit.pooler.dense.bias": np.zeros(16, np.float32)}
    _, notes = load(write(arrays | more), "vit")
    assert len(notes) == 1 and "not used: vit.pooler.dense.bias (the pooler" in notes[0]


def test_the_first_positions_of_a_longer_bert_are_used(bert_arrays, write):
    path = write(bert_arrays)
    params, notes = load(path, model=bert(max_length=6))
    expected = bert_arrays["bert.embeddings.position_embeddings.weight"][:6]
    np.testing.assert_array_equal(params["embedding"]["position"], expected)
    assert notes == [f"{path}: the first 6 of 8 positions are used"]
    with pytest.raises(ValueError, match=r"position_embeddings.weight is \(8, 16\).*wants \(9, 16"):
        load(path, model=bert(max_length=9))


def test_bfloat16_files_become_float32(bert_arrays, bert_params, write):
    params = load(write({n: a.astype(ml_dtypes.bfloat16) for n, a in bert_arrays.items()})).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), params, bert_params)


def test_shards_are_put_together(bert_arrays, bert_params, tmp_path):
    names = sorted(bert_arrays)
    halves = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in halves.items():
        save_file({name: bert_arrays[name] for name in part}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: file for file, part in halves.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(load(index).params, bert_params)
    assert_same(load(tmp_path).params, bert_params)
    index.write_text(json.dumps({"weight_map": weight_map | {"more": "b.safetensors"}}))
    with pytest.raises(ValueError, match="shards lack arrays of the index: more"):
        load(index)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards are not beside it: b.safetensors"):
        load(index)


def test_a_config_of_another_family_is_refused(bert_arrays, write, tmp_path):
    """RoBERTa without its prefix has the names of BERT."""
    path = write({name.removeprefix("bert."): array for name, array in bert_arrays.items()})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match=r"this is a roberta by its config.json"):
        load(path)


def test_a_config_of_other_heads_is_refused_and_another_activation_noted(
    bert_arrays, write, tmp_path
):
    path = write(bert_arrays)
    config = {"model_type": "bert", "num_attention_heads": 4, "hidden_act": "gelu_new"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="4 attention heads, the model has 2"):
        load(path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    assert "config.json says hidden_act = gelu_new, the model comp" in load(path).notes[0]


def test_all_that_does_not_fit_is_listed_in_the_names_of_the_file(bert_arrays, write):
    bare = {name.removeprefix("bert."): array for name, array in bert_arrays.items()}
    for block in range(2):
        name = f"encoder.layer.{block}.attention.output.LayerNorm"
        bare[f"{name}.gamma"] = bare.pop(f"{name}.weight")[:8]
    del bare["encoder.layer.1.output.LayerNorm.bias"]
    bare["something"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="do not fit the model") as raised:
        load(write(bare))
    assert str(raised.value).splitlines()[1:] == [
        "  missing: bert.encoder.layer.1.output.LayerNorm.bias",
        "  not in the model: something",
        "  encoder.layer.*.attention.output.LayerNorm.gamma of blocks 0 to 1 is (8,), the model"
        " wants (16,)",
    ]


def test_another_family_is_refused(write):
    with pytest.raises(ValueError, match="they are a vit, the model is a bert"):
        load(write(as_huggingface_vit(google_vit())), "bert")
