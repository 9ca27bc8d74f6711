"""A run of the study of rate and keep: what is done to spare time changes no figure."""

import dataclasses
import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import random_params

from pbr_jax import data
from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.training import from_config

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks/real"


@pytest.fixture(scope="module")
def once():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("once")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("once", "rows"):
            sys.modules.pop(name, None)


def prepare(records, generator=None):
    lengths = np.array(records, np.int32)
    tokens = (np.arange(32)[None] < lengths[:, None]).astype(np.int32)
    return {"tokens": tokens, "token_types": 0 * tokens, "lengths": lengths}


def test_texts_are_evaluated_once_each_without_their_padding(once):
    lengths = [9, 32, 5, 17, 6, 30, 8]
    ordered = once.by_length(lengths, prepare)
    batches = [once.without_padding(b) for b in data.eval_batches(ordered, prepare, 2)]
    assert [b["tokens"].shape[1] for b in batches] == [8, 12, 32, 32]
    seen = [n for b in batches for n in b["lengths"][b["mask"]]]
    assert sorted(seen) == sorted(lengths)
    for batch in batches:  # no token is cut off
        np.testing.assert_array_equal(batch["tokens"].sum(1), batch["lengths"])


def test_an_evaluation_is_the_mean_over_all_examples(once, monkeypatch):
    model = Model(width=16, depth=1, heads=2, mlp_dim=32, patch=4, image_size=8, num_classes=3)
    config = Config(method="full", model=model)
    parts = from_config.build(config)
    variables = from_config.new_state(config, parts, random_params(parts.model.module)).variables
    images = np.random.default_rng(0).normal(size=(70, 8, 8, 3)).astype(np.float32)
    labels = np.arange(70) % 3
    told = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]

    def prepare(records, generator=None):
        return {name: np.stack([record[name] for record in records]) for name in told[0]}

    monkeypatch.setattr(once.configuration, "load", lambda *_: config)
    monkeypatch.setattr(once, "_data", lambda *_: types.SimpleNamespace(test=told))
    monkeypatch.setattr(once, "make_inputs", lambda _: prepare)
    found = once._evaluations.__wrapped__("a task", ())["test"](variables)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels), "mask": jnp.ones(70, bool)}
    whole = parts.eval_step(variables, batch)
    assert float(whole.pop("weight")) == 70
    for name, total in whole.items():
        assert found[name] == pytest.approx(float(total) / 70, rel=1e-5)


def test_the_rate_as_an_argument_is_that_of_the_settings(once):
    model = Model(width=16, depth=1, heads=2, mlp_dim=32, patch=4, image_size=8, num_classes=3)
    optimizer = Optimizer(name="sgd", learning_rate=3e-1, warmup_steps=1, schedule="linear")
    config = Config(method="full", model=model, steps=4, batch_size=2, optimizer=optimizer)
    parts = from_config.build(config)
    start = from_config.new_state(config, parts, random_params(parts.model.module))
    batch = {"image": jnp.ones((2, 8, 8, 3)), "label": jnp.array([0, 2])}
    other = dataclasses.replace(
        config, optimizer=dataclasses.replace(optimizer, learning_rate=7e-4)
    )
    traced = jax.jit(lambda s, b, rate: once.step_at(other, rate)(s, b))
    ours, plain = start, start
    for _ in range(3):
        ours, _ = traced(ours, batch, jnp.float32(3e-1))
        plain, _ = jax.jit(parts.train_step)(plain, batch)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.params, plain.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_kernels_may_have_a_rate_of_their_own(once):
    model = Model(width=16, depth=1, heads=2, mlp_dim=32, patch=4, image_size=8, num_classes=3)
    optimizer = Optimizer(schedule="constant", clip_norm=None)
    config = Config(method="full", model=model, steps=4, batch_size=2, optimizer=optimizer)
    parts = from_config.build(config)
    params = random_params(parts.model.module)
    start = from_config.new_state(config, parts, params)
    batch = {"image": jnp.ones((2, 8, 8, 3)), "label": jnp.array([0, 2])}
    plain, slow = (
        jax.jit(once.step_at(config, 0.1, kernels))(start, batch)[0].params
        for kernels in (None, 0.25)
    )
    once_moved, moved = (jax.tree.map(jnp.subtract, new, params) for new in (plain, slow))
    for name, factor in (("kernel", 0.25), ("bias", 1.0)):
        ours, theirs = (tree["blocks"]["fc1"][name] for tree in (moved, once_moved))
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-2, atol=1e-7)
        assert float(jnp.abs(theirs).max()) > 1e-5


def test_all_but_kernels_may_have_a_rate_that_stays(once):
    model = Model(width=16, depth=1, heads=2, mlp_dim=32, patch=4, image_size=8, num_classes=3)
    config = Config(
        method="full",
        model=model,
        steps=4,
        batch_size=2,
        optimizer=Optimizer(schedule="constant", clip_norm=None),
    )
    parts = from_config.build(config)
    params = random_params(parts.model.module)
    start = from_config.new_state(config, parts, params)
    batch = {"image": jnp.ones((2, 8, 8, 3)), "label": jnp.array([0, 2])}
    at = jax.jit(lambda rate: once.step_at(config, rate, None, 0.1)(start, batch)[0].params)
    same, slow = (jax.tree.map(jnp.subtract, at(rate), params) for rate in (0.1, 0.025))
    for name, factor in (("kernel", 0.25), ("bias", 1.0)):
        ours, theirs = (tree["blocks"]["fc1"][name] for tree in (slow, same))
        np.testing.assert_allclose(ours, factor * theirs, rtol=1e-2, atol=1e-7)
        assert float(jnp.abs(theirs).max()) > 1e-5
