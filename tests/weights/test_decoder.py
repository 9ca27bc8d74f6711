"""Weights of decoders: shards and `config.json`, both ways, and what is refused by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from decoder_oracle import SHAPES, drawn, small
from safetensors.numpy import load_file, save_file

from pbr_jax import weights as public
from pbr_jax.configs.common import Model, named_decoder
from pbr_jax.decoders import SHAPES as PUBLISHED
from pbr_jax.training import pretrained
from pbr_jax.weights import beside, decoder_config, export, files
from pbr_jax.weights.decoder import HEAD

FORM = public.published("decoder")
GEMMA_1B = {  # as its authors have it, but for what is not of its program
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
LLAMA_1B = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


def save(path, model, params):
    """Our export."""
    sizes, said = FORM.sizes(model), FORM.described(model)
    public.save(path, "safetensors", "decoder", params, sizes, (), described=said)


def shapes_of(module):
    return jax.eval_shape(module.init, jax.random.key(0), module.input_specs(1))["params"]


def load(path, model, module):
    return pretrained.load_weights(dataclasses.replace(model, weights=str(path)), shapes_of(module))


def change(path, **changes):
    """Other arrays, `name -> array or None`, in a file."""
    arrays = load_file(path / files.SAFETENSORS) | changes
    kept = {name: array for name, array in arrays.items() if array is not None}
    save_file(kept, path / files.SAFETENSORS)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_export_in_shards_reads_back_bit_for_bit(kind, dtype, tmp_path, monkeypatch):
    model, module = small(kind, param_dtype=dtype)
    params = drawn(module)
    monkeypatch.setattr(export, "LARGEST_FILE", 3000)
    save(tmp_path, model, params)
    index = json.loads((tmp_path / files.INDEX).read_text())
    shards = {*index["weight_map"].values()}
    assert len(shards) > 2 and f"model-00001-of-{len(shards):05d}.safetensors" in shards
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    assert index["metadata"]["total_size"] == sum(sizes)
    kept = {name for name in index["weight_map"] if name.startswith("model.layers.1.mlp.")}
    assert kept == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}

    again, notes = load(tmp_path, model, module)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again)} == {dtype}
    # All that the model is, but for the length of its rows, its files say too.
    said = beside.model_config(tmp_path)
    assert said["torch_dtype"] == dtype
    blank = Model(max_length=model.max_length, param_dtype=dtype)
    found = decoder_config.applied(blank, said)
    assert FORM.differences(said, found) == [] == FORM.differences(said, model)
    assert FORM.described(found) == FORM.described(model)


def test_kernels_lie_as_pytorch_has_them(tmp_path):
    model, module = small("qwen3")
    params = drawn(module)
    save(tmp_path, model, params)
    theirs, blocks = load_file(tmp_path / files.SAFETENSORS), params["blocks"]
    q = theirs["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(q, blocks["q"]["kernel"][1].T)
    norm = theirs["model.layers.0.post_attention_layernorm.weight"]
    np.testing.assert_array_equal(norm, blocks["norm2"]["scale"][0])
    assert HEAD not in theirs  # which is the embedding


def test_files_are_read_where_they_lie(tmp_path):
    """Arrays are views of a mapped file: a large model is in memory once, as our leaves."""
    model, module = small()
    save(tmp_path, model, drawn(module))
    for array in files.read(tmp_path).values():
        while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_bfloat16_in_a_file_is_the_same_number_in_float32(tmp_path):
    _, module = small(param_dtype="bfloat16")
    params = drawn(module)
    model, wide = small()
    save(tmp_path, model, params)
    again, _ = load(tmp_path, model, wide)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(jnp.float32, params))
    assert load_file(tmp_path / files.SAFETENSORS)[HEAD].dtype == ml_dtypes.bfloat16


def test_missing_and_superfluous_arrays_are_named(tmp_path):
    model, module = small()
    save(tmp_path, model, drawn(module))
    norm = np.ones(8, np.float32)
    change(
        tmp_path,
        **{
            "model.layers.0.mlp.up_proj.weight": None,
            "model.layers.1.mlp.up_proj.weight": None,
            "model.layers.1.self_attn.q_norm.weight": norm,
            "model.rotary_emb.inv_freq": norm,
        },
    )
    with pytest.raises(public.WeightsError) as caught:
        load(tmp_path, model, module)
    assert caught.value.faults == (
        "missing: model.layers.*.mlp.up_proj.weight of blocks 0 to 1",
        "not in the model: model.layers.1.self_attn.q_norm.weight",
    )


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_the_embedding_may_be_there_twice(same, tmp_path):
    model, module = small("qwen3")
    params = drawn(module)
    save(tmp_path, model, params)
    change(tmp_path, **{HEAD: params["embedding"]["table"] + np.float32(not same)})
    if same:
        again, notes = load(tmp_path, model, module)
        assert notes == []
        jax.tree.map(np.testing.assert_array_equal, again, params)
    else:
        with pytest.raises(public.WeightsError, match="not in the model: lm_head"):
            load(tmp_path, model, module)


def test_a_model_without_a_head_lacks_the_prefix(tmp_path):
    model, module = small("gemma3")
    params = drawn(module)
    save(tmp_path, model, params)
    arrays = load_file(tmp_path / files.SAFETENSORS)
    short = {name.removeprefix("model."): array for name, array in arrays.items()}
    save_file(short, tmp_path / files.SAFETENSORS)
    again, _ = load(tmp_path, model, module)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_settings_that_no_array_shows_are_compared_with_the_config(tmp_path):
    model, module = small("gemma3")
    save(tmp_path, model, drawn(module))
    other = dataclasses.replace(model.decoder, rope_base=1e4, window=4, head_dim=16, kv_heads=1)
    wrong = dataclasses.replace(model, heads=2, decoder=other)
    with pytest.raises(public.WeightsError) as caught:
        load(tmp_path, wrong, module)
    assert caught.value.faults == (
        "its config.json says model.decoder.head_dim = 8, the model has 16",
        "its config.json says model.decoder.window = 3, the model has 4",
        "its config.json says model.decoder.rope_base = 1000000.0, the model has 10000.0",
    )
    text = str(caught.value)
    for flag in ("heads=4", "decoder.window=3", "decoder.rope_base=1000000.0"):
        assert f"--config.model.{flag}" in text


def test_what_a_config_leaves_out_and_a_model_has_is_a_difference():
    model = decoder_config.applied(Model(), LLAMA_1B)
    assert FORM.differences(LLAMA_1B, model) == [] == FORM.differences({}, model)
    windowed = dataclasses.replace(model.decoder, window=9, query_scale=1.0)
    other = dataclasses.replace(model, decoder=windowed)
    assert FORM.differences(LLAMA_1B, other) == [
        "its config.json says model.decoder.query_scale = none, the model has 1.0",
        "its config.json says model.decoder.window = none, the model has 9",
    ]
    scaled = dataclasses.replace(model.decoder, query_scale=64.0)  # of heads of 64 channels
    assert FORM.differences(LLAMA_1B, dataclasses.replace(model, decoder=scaled)) == []


@pytest.mark.parametrize(
    ("config", "name"), [(GEMMA_1B, "gemma3-1b"), (LLAMA_1B, "llama3.2-1b")], ids=str
)
def test_a_published_config_is_the_shape_that_we_have_of_it(config, name):
    expected = named_decoder(name)
    found = decoder_config.applied(Model(), config)
    assert (found.width, found.depth, found.heads) == (*PUBLISHED[name][:3],)
    assert found == expected
    written = FORM.described(found)
    shared = config.keys() & written.keys()
    assert {key: written[key] for key in shared} == {key: config[key] for key in shared}


def test_a_config_of_transformers_5_says_the_same():
    rope = {"rope_theta": 1000000, "rope_type": "default"}
    local = {"rope_theta": 10000, "rope_type": "default"}
    newer = {k: v for k, v in GEMMA_1B.items() if not k.startswith("rope")}
    newer["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    del newer["sliding_window_pattern"]
    newer["layer_types"] = [
        "sliding_attention" if n % 6 else "full_attention" for n in range(1, 27)
    ]
    assert decoder_config.settings(newer) == decoder_config.settings(GEMMA_1B)
    newer = {k: v for k, v in LLAMA_1B.items() if not k.startswith("rope")}
    newer["rope_parameters"] = {**LLAMA_1B["rope_scaling"], "rope_theta": 500000.0}
    assert decoder_config.settings(newer) == decoder_config.settings(LLAMA_1B)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "smollm3"}, "model_type = smollm3: must be one of llama, qwen3, gemma3"),
        ({"attention_bias": True, "mlp_bias": True}, "attention_bias = True.*; mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu: must be silu"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type = yarn: must be default, linear or llama3"),
        ({"rope_scaling": {"type": "linear"}}, "damaged .KeyError: 'factor'."),
        ({"num_key_value_heads": "8"}, "model.decoder.kv_heads = 8: must be a whole number"),
        ({"rms_norm_eps": 0}, "model.decoder.norm_eps = 0"),
        ({"rope_theta": None}, "damaged .TypeError"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused_by_its_key(changes, told):
    with pytest.raises(ValueError, match=told):
        decoder_config.settings(LLAMA_1B | changes)


def test_layers_at_unequal_distances_are_refused():
    types = ["sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"layer_types = .*: must be full_attention at equal"):
        decoder_config.settings(GEMMA_1B | {"layer_types": types})


@pytest.mark.parametrize("change", [{"norm_offset": True}, {"window": 4}, {"query_scale": 4.0}])
def test_a_model_that_nobody_published_is_not_exported_as_another(change, tmp_path):
    shape = dataclasses.replace(SHAPES["qwen3"], **change)
    model, module = small(decoder=shape)
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"{name} = {value}.*export --to orbax"):
        save(tmp_path / "out", model, drawn(module))
    assert not (tmp_path / "out").exists()
