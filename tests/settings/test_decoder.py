"""Settings of a decoder, and the rules between them."""

import dataclasses

import pytest

from pbr_jax.configs.common import Config, Decoder, named_decoder
from pbr_jax.decoders import SHAPES
from pbr_jax.settings import rules
from pbr_jax.settings.load import SHIPPED, ConfigError, load
from pbr_jax.settings.saved import from_dict, to_dict
from pbr_jax.settings.ties import tie_faults
from pbr_jax.settings.unused import unused

TINY = str(SHIPPED / "digits.py:tiny")


def faults(**changes):
    """Faults of a Qwen3 with other settings, but for those of its data."""
    model = named_decoder("qwen3-0.6b")
    fields = {name: changes.pop(name) for name in [*changes] if hasattr(model, name)}
    shape = dataclasses.replace(model.decoder, **changes)
    model = dataclasses.replace(model, **{"decoder": shape, **fields})
    return tie_faults(Config(model=model, method="tiny"), ("data.name",))


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_obey_every_rule(name):
    config = Config(model=named_decoder(name, dtype="bfloat16"), method="tiny")
    assert rules.field_faults(config) == {}
    assert tie_faults(config, ("data.name",)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"kv_heads": 3},
            "model.decoder.kv_heads = 3: must divide model.heads = 16, whose queries"
            " share them; set model.decoder.kv_heads=2",
        ),
        ({"head_dim": 7}, "model.decoder.head_dim = 7: must be even"),
        ({"head_dim": None, "width": 1040}, "model.decoder.head_dim = 65: must be even"),
        ({"head_dim": None, "width": 1030}, "model.width = 1030: not divisible by model.heads"),
        ({"global_every": 6}, "model.decoder.global_every = 6: says which layers"),
        ({"rope_local_base": 1e4}, "model.decoder.rope_local_base = 10000: is that of layers"),
        (
            {"rope_scaling": "llama3", "rope_high_factor": 1.0},
            "rope_high_factor = 1: must be above",
        ),
        ({"positions": 100}, "model.max_length = 512: more than the 100 tokens"),
        ({"dropout": 0.1}, "model.dropout = 0.1: a decoder has none"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changes, told):
    (fault,) = faults(**changes)
    assert told in fault


def test_a_head_may_be_wider_than_its_share():
    assert faults(width=1030) == []


def test_its_settings_are_keys_like_others():
    overrides = [
        "model.decoder.kv_heads=2",
        "model.decoder.tied=false",
        "model.decoder.window=none",
    ]
    config = load(TINY, overrides)
    assert (config.model.decoder.kv_heads, config.model.decoder.tied) == (2, False)
    assert from_dict(to_dict(config), "here") == config
    # Of a ViT they do nothing, which is said.
    assert unused(
        dataclasses.replace(config, model=dataclasses.replace(config.model, param_dtype="bfloat16"))
    ) == [
        "model.param_dtype = bfloat16 does nothing: a vit has no param_dtype",
        "model.decoder.kv_heads = 2 does nothing: a vit has no decoder.kv_heads",
        "model.decoder.tied = false does nothing: a vit has no decoder.tied",
    ]
    with pytest.raises(ConfigError, match=r"model.decoder.kv_head: no such key; the nearest is"):
        load(TINY, ["model.decoder.kv_head=2"])


def test_what_is_no_section_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from pbr_jax.configs.common import Config, Model\n"
        "def get_config(variant=None):\n    return Config(model=Model(decoder=None))\n"
    )
    with pytest.raises(ConfigError, match=r"model.decoder = none: must be a Decoder\(...\)"):
        load(str(file))
    assert Decoder() == Config().model.decoder
