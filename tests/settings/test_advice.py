"""Advice of the rules that tie settings together: whoever follows it is not refused again."""

import re

import pytest

from pbr_jax.settings.load import SHIPPED, collect

DIGITS = str(SHIPPED / "digits.py")
FAULTY = [
    ["optimizer.accumulation_steps=7"],
    ["optimizer.accumulation_steps=1000"],
    ["batch_size=1000000", "optimizer.accumulation_steps=7"],
    ["plan.batch_chunks=5"],
    ["plan.batch_chunks=1000000"],
    ["method=lean/chunks5/js50"],
    ["batch_size=9", "optimizer.accumulation_steps=3", "plan.batch_chunks=2"],
    ["model.size=B"],
    ["model.size=B", "model.width=none", "model.depth=none"],
    ["model.width=none"],
    ["model.heads=none", "model.depth=none"],
    ["model.width=none", "model.depth=none", "model.heads=none", "model.mlp_dim=none"],
    ["model.heads=1000"],
    ["model.heads=5"],
    ["model.width=65535", "model.heads=1000"],
    ["model.patch=3"],
    ["model.image_size=16384", "model.patch=5000"],
    ["data.name=csv"],
    ["data.name=cifar100"],
    ["model.family=bert"],
    ["model.num_classes=7"],
    ["optimizer.warmup_steps=1200"],
    ["steps=1", "optimizer.warmup_steps=5"],
    ["pruning.group_size=7"],
    ["pruning.group_size=262144"],
    ["pruning.min_prob=0.9"],
    ["pruning.keep=1e-6", "model.mlp_dim=262144", "pruning.min_prob=0.5"],
    ["model.mlp_dim=262144", "pruning.keep=0.5"],
    ["method=full", "pruning.keep=0.1"],
    ["method=full", "pruning.keep.fc2=0.1", "pruning.policy=uniform"],
    ["method=full", "plan.linear=columns"],
    ["method=backrazor", "pruning.policy=bandit"],
    ["method=lean", "plan.linear=dense", "pruning.policy=bandit"],
    ["method=backrazor", "model.image_size=16384"],
    ["method=backrazor", "model.image_size=512", "model.patch=1", "pruning.keep=none"],
    ["plan.layer_norm=elements", "model.image_size=16384", "plan.attention=elements"],
]
EVERYTHING = [
    *("optimizer.accumulation_steps=7", "model.heads=5", "model.patch=3", "model.num_classes=7"),
    *("optimizer.warmup_steps=9999", "pruning.group_size=7", "data.name=csv"),
    *("method=full", "pruning.keep=0.1", "pruning.policy=uniform"),
]


def ways_out(fault: str) -> list[list[str]]:
    """The alternatives that a fault offers, each as overrides to make together."""
    key = fault.partition(" ")[0]
    found = []
    for text in re.findall(r"\bset (.*)", fault):
        for way in re.split(r"\bor\b", text):
            overrides = re.findall(r"[a-z_]+(?:\.[a-z0-9_]+)?=[^\s,;]+", way)
            found += [overrides] if overrides else []
    for of, numbers in re.findall(r"(batch_size)?; the nearest that \w+: ([\d and]+)", fault):
        found += [[f"{of or key}={number}"] for number in numbers.split(" and ")]
    return found


@pytest.mark.parametrize("overrides", [*FAULTY, EVERYTHING], ids=", ".join)
def test_whoever_follows_the_advice_is_not_refused_again(overrides):
    _, faults = collect(DIGITS, overrides)
    assert faults
    # What is left must have been told at first, by the same key.
    told = {fault.partition(" ")[0] for fault in faults}
    for fault in faults:
        ways = ways_out(fault)
        assert ways, fault
        for way in ways:
            _, left = collect(DIGITS, [*overrides, *way])
            assert fault not in left, f"{way} is no way out of: {fault}"
            new = [other for other in left if other.partition(" ")[0] not in told]
            assert not new, f"{way} leads from: {fault}\nto: {new}"


def test_following_all_advice_ends_in_a_sound_configuration():
    overrides = list(EVERYTHING)
    for _ in range(10):
        _, faults = collect(DIGITS, overrides)
        if not faults:
            return
        overrides += ways_out(faults[0])[0]
    raise AssertionError(faults)
