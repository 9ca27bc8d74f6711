"""The choosers of `benchmarks/accuracy`: replayed on made-up energies."""

import importlib
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax import pruning

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks/accuracy"


@pytest.fixture(scope="module")
def choosers():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("choosers")
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("choosers", None)


def told(steps=60, blocks=2, columns=64):
    """Energies that are the norms of x times ratios, both fixed, with a little noise."""
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, 1.5, (1, blocks, columns)))
    ratios = np.exp(rng.normal(0, 0.3, (1, blocks, columns)))
    noise = np.exp(rng.normal(0, 0.1, (steps, blocks, columns)))
    energy = (norms * ratios * noise).astype(np.float32)
    norms = np.repeat(norms, steps, 0).astype(np.float32)
    return {"energy": energy, "norms": norms, "sample": norms, "affine": 0 * norms}


def test_shares(choosers):
    energy = np.array([1.0, 4.0, 3.0, 2.0])
    assert choosers.share_of_largest(energy, energy, 2) == pytest.approx(0.7)
    assert choosers.share_of_largest(energy, -energy, 1) == pytest.approx(0.1)


def test_nothing_of_a_step_is_known_before_it(choosers):
    series = np.arange(6.0)
    assert list(choosers.before(series)) == [1, 0, 1, 2, 3, 4]
    assert list(choosers.seldom(series, 3)) == [0, 0, 0, 3, 3, 3]


def test_norms_and_forecast_are_near_the_best_and_chance_is_not(choosers):
    found = choosers.compare(told(), 8, 20)
    share = {name: float(np.mean(part["share"])) for name, part in found.items()}
    assert "gamma^2 + beta^2" not in share  # there is no LayerNorm before the site
    best = share["best K, behind the backward pass"]
    assert best >= max(share.values()) - 1e-6
    assert share["norms of x, last step"] > 0.9 * best
    assert share["uniform"] == pytest.approx(8 / 64, abs=0.04)
    assert share["forecast"] > 1.5 * share["uniform"]


def test_the_forecast_draws_the_budget_and_keeps_the_floor(choosers):
    policy = pruning.make_policy("importance", 64, 8)
    known = told()
    drawn = choosers.forecast(jnp.asarray(known["energy"]), jnp.asarray(known["norms"]), policy)
    np.testing.assert_allclose(drawn.probs.sum(-1), 8, rtol=1e-5)
    assert float(drawn.probs.min()) >= float(policy.simplex.min_prob) * 0.999
    assert int(drawn.counts.sum()) == 2 * 60 * 8


def test_the_tables_of_the_energy_study(choosers):
    sys.path.insert(0, str(FOLDER))
    try:
        tables = importlib.import_module("energy_tables")
    finally:
        sys.path.remove(str(FOLDER))
    results = {name: {"fc1": found} for name, found in choosers.compare(told(), 8, 20).items()}
    share = results["importance"]["fc1"]["share"]
    shown = f"{100 * share.mean():.1f}"
    assert f"| importance | {shown} |" in tables.table(results, ["fc1"])
    depths = tables.depths(results, ["fc1"]).splitlines()
    assert depths[0] == "| chooser | site | 0 | 1 |" and len(depths) == 2 + len(tables.DEEP)
    spread = tables.spread(results, ["fc1"])
    assert "| uniform | fc1 | 100.0 % |" in spread and "best K" not in spread
