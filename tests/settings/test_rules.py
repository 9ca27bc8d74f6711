"""Bounds of settings, and what is said of a value that breaks its rule or of a key of others."""

import dataclasses
import re

import numpy as np
import pytest

from pbr_jax.configs.common import Config, Keep, Optimizer, Pruning, size_in_bytes, within
from pbr_jax.settings import foreign, rules
from pbr_jax.settings.flags import number_faults, parse_config
from pbr_jax.settings.load import SHIPPED, ConfigError, collect
from pbr_jax.settings.variants import split_methods

DIGITS = str(SHIPPED / "digits.py")


def fault_of(*overrides: str) -> str:
    _, (fault,) = collect(DIGITS, overrides)
    return fault


@pytest.mark.parametrize("entry", [*rules.settings()], ids=lambda entry: entry.key)
def test_a_number_beyond_its_bounds_is_refused(entry):
    """A seed of 2**32 had the key of 0; 400 digits and 1e300 were tracebacks or infinities."""
    rule = entry.field.metadata["rule"]
    if rule is None or rule.most is None:
        return
    assert rule.holds(rule.least) and rule.holds(rule.most)
    whole = int in rules.alternatives(entry.annotation)
    beyond = [rule.most + 1, rule.least - 1] if whole else [2 * rule.most, -rule.least]
    for value in (*beyond, "9" * 400, "9" * 5000, "1e400", "-1e400"):
        text = str(value)
        if text.lstrip("-") == "0" and rule.holds(0):
            continue
        _, faults = collect(DIGITS, [f"{entry.key}={text}"])
        assert faults[0].startswith(f"{entry.key} = ") and len(faults[0]) < 400, value


def test_bounds_are_written_in_few_characters():
    assert within(1, 10**9).text == "must be from 1 to 1e9"
    assert within(1e-30, 0.9999999).phrase == "from 1e-30 to 0.9999999"
    assert within(0, 2**32 - 1, why="so").text == "must be from 0 to 4294967295; so"
    assert within(1e-6, 1000, or_zero=True).text == "must be 0, or from 1e-6 to 1000"
    assert within(1e-6, 1000, or_zero=True).holds(0) and not within(1e-6, 1).holds(0)


def test_a_number_of_too_many_digits_is_named_in_a_file_too():
    for value in (10**400, 10**5000, -(10**5000)):
        config = dataclasses.replace(Config(), seed=value, optimizer=Optimizer(learning_rate=value))
        faults = rules.field_faults(config)
        assert re.match(r"seed = a number of \d+ digits: must be from 0", faults["seed"])
        assert set(faults) == {"seed", "optimizer.learning_rate"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.float64(0.1), "learning_rate = 0.1: must be a finite number .*; it is a numpy.float64"),
        (np.ones(3), "learning_rate = .1. 1. 1..: must be .*; it is a numpy.ndarray"),
        (True, "learning_rate = true: must be a finite number"),
        (object(), "learning_rate = <object object>: must be"),
        ([1], "must be a finite number .*; it is a builtins.list"),
    ],
)
def test_a_value_of_a_foreign_type_is_named_with_its_type(value, told):
    config = dataclasses.replace(Config(), optimizer=Optimizer(learning_rate=value))
    assert re.search(told, rules.field_faults(config)["optimizer.learning_rate"])


@pytest.mark.parametrize("key", ["name", "data.name", "method", "model.family", "plan.linear"])
def test_what_is_no_text_is_no_name(key):
    section, _, name = key.rpartition(".")
    for value in (np.ones(3), 3, ["lean"], {}):
        tree = dataclasses.replace(
            getattr(Config(), section) if section else Config(), **{name: value}
        )
        config = dataclasses.replace(Config(), **{section: tree}) if section else tree
        assert key in rules.field_faults(config)


def test_a_site_that_is_none_takes_the_methods_own():
    config, faults = collect(DIGITS, ["pruning.keep.fc2=0.2", "pruning.keep.fc2=none"])
    assert not faults and config.pruning.keep == Keep()
    assert Pruning(keep=Keep(0.5, fc2=None)).keep == Keep(0.5)


@pytest.mark.parametrize("name", ["", " ", "a\x1b[31mb", "a\nb", "x" * 300])
def test_a_name_can_name_a_folder(name):
    assert fault_of(f"name={name}").endswith("must be 1 to 200 printable characters")


@pytest.mark.parametrize(
    "text", ["9" * 400 + "GB", "1e9GB", "0.1kB", "1000000TB", "٨GB", "-1GB", "GB", "8 G B"]
)
def test_a_size_is_one_that_memory_can_have(text):
    assert size_in_bytes(text) is None
    assert "must be a size with its unit from 1MB to 1000TB" in fault_of(f"memory_budget={text}")


def test_numbers_of_flags_have_bounds_too():
    rule = within(1, 1000)
    assert number_faults("--seeds", rule, 3) == []
    assert number_faults("--seeds", rule, 0) == ["--seeds 0: must be from 1 to 1000"]
    assert number_faults("--shape", rule, 3, 10**400)[0].startswith(
        "--shape 3 a number of 400 digits: must be from 1 to 1000 each"
    )
    many = ",".join(f"lean/chunks{n}" for n in range(1, 10_000))
    assert split_methods(many) == ([], ["--methods: 9999 names; at most 100 at a time"])


# --- keys that do not exist ---


def test_names_of_other_trainers_lead_to_settings_that_exist():
    keys = {entry.key for entry in rules.settings()}
    names = {key.rpartition(".")[2] for key in keys}
    assert not names & foreign.FOREIGN.keys(), "that is a setting of ours"
    for name, advice in foreign.FOREIGN.items():
        assert name == name.lower()
        # Whatever looks like a key is one, and a value that is advised is accepted.
        for key, value in re.findall(r"\b([a-z_]+(?:\.[a-z0-9_]+)?)=([\w/]+)", advice):
            assert (
                f"{key}={value}" == "JAX_PLATFORMS=cpu"
                or not collect(DIGITS, [f"{key}={value}"])[1]
            )
        if match := re.fullmatch(r"it is (\S+) here", advice):
            assert match[1] in keys


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("epochs", "set steps to epochs x training examples / batch_size"),
        ("trainer.num_train_epochs", "set steps to epochs x"),
        ("lr", "it is optimizer.learning_rate here"),
        ("model.LR", "it is optimizer.learning_rate here"),
        ("gradient-accumulation-steps", "it is optimizer.accumulation_steps here"),
        ("optimizer.label_smoothing", "cross-entropy with the labels as they are"),
        ("freeze", "method=lean/js50"),
        ("fp16", "set model.dtype=bfloat16"),
        ("output_dir", "--workdir"),
        ("optimizer.weigth_decay", "the nearest is optimizer.weight_decay"),
    ],
)
def test_a_key_of_another_trainer_has_advice_that_works(key, told):
    fault = fault_of(f"{key}=3")
    assert fault.startswith(f"{key}: no such key; ") and told in fault


@pytest.mark.parametrize("key", ["zebra", "optimizer.zebra", "xyz.abc", "e", "modell", "", "."])
def test_nonsense_gets_no_misleading_neighbour(key):
    """`epochs` was said to be nearest to `optimizer.eps`."""
    assert "nearest" not in fault_of(f"{key}=3")


def test_a_flag_of_another_trainer_has_the_same_advice():
    with pytest.raises(ConfigError) as caught:
        parse_config(DIGITS, ["--epochs", "3", "--lr=0.1", "--batch-size", "4"], ("--config",))
    epochs, rate, batch = caught.value.faults
    assert epochs.startswith("--epochs: no such flag; a run is counted in steps: set steps to ")
    assert rate == "--lr: no such flag; it is optimizer.learning_rate here"
    assert batch == "--batch-size: no such flag; settings are given as --config.batch_size"
