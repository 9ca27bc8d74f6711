"""Whatever a configuration says, it is a run or is refused by name, at once and without a crash."""

import contextlib
import dataclasses
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbr_jax.configs.common import Config, Keep
from pbr_jax.memory import fit
from pbr_jax.methods import METHODS
from pbr_jax.settings import rules
from pbr_jax.settings.load import SHIPPED, collect
from pbr_jax.settings.rules import Setting
from pbr_jax.settings.saved import from_dict, to_dict

TINY = str(SHIPPED / "digits.py:tiny")
SETTINGS = list(rules.settings())
KEYS = [entry.key for entry in SETTINGS]
SECONDS = 2.0  # of this process: others may be busy
# What a user types or a file computes, of no setting in particular.
WORDS = ["", " ", "none", "nan", "-inf", "1e400", "-1", "0", "1e-300", "9" * 400, "9" * 5000, "0x1"]
WORDS += [
    "true",
    "~",
    "a\0b",
    "a\x1b[1mb",
    "٣",
    "1_0",
    "lean/js50",
    "../x",
    "é" * 300,
    "\udcff",
    "=",
]
OBJECTS = [None, True, -1, 0, 1.5, 10**400, 10**5000, float("nan"), -0.0, np.float32(1), np.ones(2)]
OBJECTS += ["", "x", b"x", [], {}, (1,), object(), Config, Keep(0.1), Keep(fc1=[]), lambda: 0]
PLACES = ["os:path", "os:nothing", ":", "a:b", "json:dumps", "..x:y", "\0:x", "vit"]


def sound(entry: Setting) -> st.SearchStrategy[Any]:
    """Values of a setting that obey its own rule, those at the bounds more often than others."""
    rule, members = entry.field.metadata["rule"], rules.alternatives(entry.annotation)
    of: list[st.SearchStrategy[Any]] = [st.just(entry.field.default)]
    if names := rules.choices(entry):
        of.append(st.sampled_from(names))
    if entry.key == "method":
        of.append(st.sampled_from([f"{name}{suffix}" for name in METHODS for suffix in SUFFIXES]))
    if rule is not None and rule.most is not None:
        least, most = (int if int in members else float)(rule.least), rule.most
        of.append(st.sampled_from([least, most, min(2 * least + 1, most)]))
        of.append(st.integers(1, 64) if int in members else st.floats(least, min(most, 1.0)))
    if bool in members:
        of.append(st.booleans())
    if Keep in members:
        shares = st.dictionaries(st.sampled_from(["qkv", "fc1", "fc2"]), st.floats(1e-6, 1.0))
        of.append(shares.map(lambda given: Keep(0.1, **given)))
    return st.one_of(of)


SUFFIXES = ["", "/js1", "/js99", "/chunks1", "/chunks3/js50", "/chunks999999"]
SOUND = {entry.key: sound(entry) for entry in SETTINGS}


def some(values) -> st.SearchStrategy[dict[str, Any]]:
    """A few keys with values, `values(key)` gives the strategy of one."""
    keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=6, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: values(key) for key in chosen}))


def replaced(config: Any, values: dict[str, Any]) -> Any:
    """`config` with values under dotted keys."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        inner = replaced(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: inner})
    return config


def refused_kernels(config: Config) -> contextlib.AbstractContextManager[Any]:
    """Kernels that are asked for by name are refused where they are traced for a CPU."""
    name = config.plan.implementation
    if name in (None, "xla"):
        return contextlib.nullcontext()
    return pytest.raises(ValueError, match=f"^implementation = '{name}'")


def check(config: Config, faults: list[str], began: float) -> None:
    """Faults are lines that begin with a key; without any the run is built, but for its arrays."""
    for fault in faults:
        key = fault.replace(":", " ").split(" ")[0].split("=")[0]
        assert fault.isprintable() and len(fault) < 2000, fault
        assert key == "" or any(known.startswith(key) or key.startswith(known) for known in KEYS)
    if not faults:
        with refused_kernels(config):
            fit.estimated(config)  # model, state, loss and gradient, as shapes
        assert from_dict(to_dict(config), "here") == config
    assert time.process_time() - began < SECONDS


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(WORDS + PLACES)), max_size=4))
def test_any_words_are_refused_by_name(words):
    began = time.process_time()
    overrides = [f"{key}={word}" for key, word in words]
    _, faults = collect(TINY, overrides)
    assert time.process_time() - began < SECONDS
    check(Config(), faults or ["steps = 0: "], began)


@settings(max_examples=40)
@given(some(lambda key: st.sampled_from(OBJECTS)))
def test_any_values_of_a_file_are_refused_by_name(values):
    began = time.process_time()
    config = replaced(collect(TINY, ())[0], values)
    wrong = rules.field_faults(config)
    check(config, [*wrong.values()] or ["steps = 0: "], began)


@settings(max_examples=8)
@given(some(SOUND.__getitem__))
def test_values_that_obey_their_rules_make_a_run_or_are_refused_by_name(values):
    began = time.process_time()
    overrides = [f"{key}={rules.show(value)}" for key, value in values.items()]
    overrides = [word for word in overrides if "Keep(" not in word]
    config, faults = collect(TINY, overrides)
    check(config, faults, began)
