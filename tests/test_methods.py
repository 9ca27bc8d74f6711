"""Methods by name, their overrides, and that the configuration offers what the library has."""

import dataclasses

import pytest

from pbr_jax import methods, plans, pruning
from pbr_jax.configs import common
from pbr_jax.plans import Keep
from pbr_jax.settings import rules

# What a block keeps: linear inputs, LayerNorm, attention, GELU, and whether it is run again; who
# chooses columns.
PRESETS = {
    "full": ("dense", "dense", "flash", "dense", False, None),
    "remat": ("dense", "dense", "flash", "dense", True, None),
    "remat+offload": ("dense", "dense", "flash", "dense", True, None),
    "lora": ("dense", "dense", "flash", "dense", True, None),
    "backrazor": ("elements", "elements", "elements", "dense", False, None),
    "prebackrazor-": ("magnitude", "elements", "elements", "dense", False, None),
    "prebackrazor": ("columns", "dense", "flash", "dense", False, "bandit"),
    "prebackrazor++": ("columns", "dense", "channels", "dense", False, "bandit"),
    "fast": ("columns", "int8", "qkv", "code2", False, "bandit"),
    "lean": ("columns", "int8", "recompute", "code2", False, "bandit"),
    "tiny": ("columns", "dense", "flash", "dense", True, "bandit"),
    "static": ("columns", "dense", "flash", "dense", False, "uniform"),
    "static-groups": ("columns", "dense", "flash", "dense", False, "uniform"),
    "tiny+offload": ("columns", "dense", "flash", "dense", True, "bandit"),
}


def test_every_preset_is_listed():
    assert set(methods.METHODS) == set(PRESETS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_preset_is_what_its_name_says(name):
    method = methods.resolve(name)
    plan = method.plan
    found = (plan.linear, plan.layer_norm, plan.attention, plan.gelu, plan.recompute, method.policy)
    assert found == PRESETS[name]
    assert (method.name, method.joint_spar) == (name, None)
    assert (plan.offload, method.adapters) == (name.endswith("+offload"), name == "lora")
    keep = 1.0 if name in ("full", "remat", "remat+offload", "lora") else 0.1
    fc1 = 0.4 if name in ("fast", "lean", "tiny", "tiny+offload") else keep
    assert {site: plan.keep[site] for site in plans.SITES} == dict.fromkeys(plans.SITES, keep) | {
        "fc1": fc1
    }


@pytest.mark.parametrize("name", methods.OF_HALF_BLOCKS)
@pytest.mark.parametrize(("suffix", "share"), [("/js50", 0.5), ("/js5", 0.05), ("/js99", 0.99)])
def test_a_suffix_adds_joint_spar_to_any_method(name, suffix, share):
    method = methods.resolve(name + suffix)
    assert method.joint_spar == share
    assert method.plan == methods.resolve(name).plan
    assert method.name == name + suffix


def test_a_suffix_sets_the_chunks():
    plain = methods.resolve("remat/chunks1/js50")
    assert (plain.plan.batch_chunks, plain.joint_spar) == (1, 0.5)
    assert methods.resolve("fast/chunks16").plan.batch_chunks == 16
    assert methods.resolve("fast/chunks16", batch_chunks=2).plan.batch_chunks == 2


def test_what_is_offloaded_is_the_input_of_a_block():
    assert methods.resolve("remat", offload=True).plan == methods.resolve("remat+offload").plan
    assert methods.resolve("tiny+offload/chunks2/js50").name == "tiny+offload/chunks2/js50"
    with pytest.raises(ValueError, match=r"plan.offload = true: .* method 'lean' keeps more"):
        methods.resolve("lean", offload=True)


def test_lora_trains_all_of_a_and_b():
    for how in ({"name": "lora/js50"}, {"name": "lora", "joint_spar": 0.5}):
        with pytest.raises(ValueError, match="trains A and B at all times"):
            methods.resolve(**how)


def test_a_given_share_goes_before_the_suffix():
    assert methods.resolve("full/js50", joint_spar=0.25).joint_spar == 0.25
    assert methods.resolve("full", joint_spar=0.25).joint_spar == 0.25


@pytest.mark.parametrize(
    "name",
    ["", "ful", "full/js", "full/js0", "full/js100", "full/js50/js50", "/js50", "full ", "full/"],
)
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"method = .*must be one of full, remat.*/js50"):
        methods.resolve(name)


def test_fields_can_be_overridden_one_by_one():
    method = methods.resolve(
        "prebackrazor",
        keep=0.25,
        policy="uniform",
        layer_norm="int8",
        attention=None,
        gelu="code3",
        recompute=None,
        batch_chunks=2,
        attention_keep=0.5,
    )
    own = methods.resolve("prebackrazor").plan
    assert method.plan == dataclasses.replace(
        own,
        keep=Keep(0.25),
        layer_norm="int8",
        gelu="code3",
        batch_chunks=2,
        attention_keep=0.5,
    )
    assert method.policy == "uniform"


def test_false_is_an_override_and_none_is_not():
    assert not methods.resolve("remat", recompute=False).plan.recompute
    assert methods.resolve("remat", recompute=None).plan.recompute


def test_sites_that_keep_leaves_open_take_the_methods_own():
    assert methods.resolve("fast", keep=Keep(fc2=0.2)).plan.keep == Keep(0.1, fc1=0.4, fc2=0.2)
    assert methods.resolve("fast", keep=Keep(0.3, fc2=0.2)).plan.keep == Keep(0.3, fc2=0.2)


@pytest.mark.parametrize("name", ["full", "remat"])
def test_keep_is_refused_where_nothing_is_pruned(name):
    with pytest.raises(ValueError, match=rf"pruning.keep = 0.1: method '{name}' prunes nothing"):
        methods.resolve(name, keep=0.1)


@pytest.mark.parametrize("name", ["full", "remat", "backrazor", "prebackrazor-"])
def test_a_policy_is_refused_where_none_chooses(name):
    with pytest.raises(ValueError, match=rf"pruning.policy = 'uniform': method '{name}'"):
        methods.resolve(name, policy="uniform")


def test_an_unknown_kind_names_the_field_and_its_choices():
    with pytest.raises(ValueError, match="gelu = 'code9': must be one of dense, code2"):
        methods.resolve("fast", gelu="code9")


# --- the configuration offers what the library has ---


def offered(key: str) -> set[str]:
    """The names that a setting can take."""
    return {entry.key: set(rules.choices(entry)) for entry in rules.settings()}[key]


@pytest.mark.parametrize("field", plans.KINDS)
def test_settings_of_the_plan_are_those_of_the_library(field):
    assert offered(f"plan.{field}") == set(plans.KINDS[field])
    for choice in offered(f"plan.{field}"):
        plans.ResidualPlan(**{field: choice})


def test_settings_of_pruning_are_those_of_the_library():
    assert offered("pruning.policy") <= set(pruning.policy.NAMES)
    assert offered("pruning.sampler") == set(pruning.policy.SAMPLERS)
    for policy in offered("pruning.policy"):
        for sampler in offered("pruning.sampler"):
            for offset in offered("pruning.offset"):
                learning = pruning.Learning(offset=offset)
                pruning.make_policy(policy, 16, 8, sampler=sampler, learning=learning)


def test_every_setting_of_the_plan_is_a_field_of_a_plan():
    names = {field.name for field in dataclasses.fields(plans.ResidualPlan)}
    assert {field.name for field in dataclasses.fields(common.Plan)} <= names
