"""Step times by arithmetic, against figures found by other means."""

import dataclasses
import json

import pytest

from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.gpu import CARDS, find_card
from pbr_jax.memory import cost
from pbr_jax.memory.use import memory_use

VIT_B16 = Config(
    method="full",
    batch_size=128,
    model=Model(size="B", num_classes=100, dtype="bfloat16"),
    optimizer=Optimizer(momentum=0.9),
)

# Fractions of full fine-tuning, of a floor that was worked out op by op for an H200, separately.
FLOORS = {
    "remat": 1.23,
    "prebackrazor": 0.78,
    "fast": 0.75,
    "lean": 0.82,
    "tiny": 0.98,
    "full/js50": 0.86,
    "fast/js50": 0.72,
    "lean/js50": 0.79,
}


def seconds(config, card="h200"):
    return cost.step_seconds(config, find_card(card), memory_use(config))


@pytest.fixture(scope="module")
def ratios():
    full = seconds(VIT_B16)
    return {m: seconds(dataclasses.replace(VIT_B16, method=m)) / full for m in FLOORS}


def test_ratios_agree_with_a_floor_worked_out_by_hand(ratios):
    for method, floor in FLOORS.items():
        assert ratios[method] == pytest.approx(floor, abs=0.06), method


def test_methods_are_ranked_as_by_hand(ratios):
    plain = [method for method in FLOORS if "/" not in method]
    assert sorted(plain, key=ratios.get) == sorted(plain, key=FLOORS.get)


def test_full_fine_tuning_takes_at_least_its_products():
    """Three times 2 * parameters of the blocks * tokens, at the card's rate."""
    blocks = 12 * 12 * 768**2
    products = 3 * 2 * blocks * 128 * 197 / cost.matrix_rate(CARDS["h200"], "bfloat16")
    assert products < seconds(VIT_B16) < 1.4 * products


def test_time_grows_with_the_batch_and_not_with_its_parts():
    twice = dataclasses.replace(VIT_B16, batch_size=256)
    assert 1.9 < seconds(twice) / seconds(VIT_B16) < 2.01
    parts = dataclasses.replace(VIT_B16, optimizer=Optimizer(accumulation_steps=2))
    assert seconds(parts) == pytest.approx(seconds(VIT_B16), rel=0.02)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [  # of the data sheets, at boost clock, without sparsity
        ("a100", "bfloat16", 312),
        ("a100", "float32", 156),
        ("rtx4090", "bfloat16", 165.2),
        ("rtx3090", "bfloat16", 71.2),
        ("rtx2080ti", "bfloat16", 13.4),
        ("rtx2080ti", "float32", 13.4),
    ],
)
def test_matrix_rates_follow_the_data_sheets(name, dtype, tera):
    assert cost.matrix_rate(CARDS[name], dtype) == pytest.approx(0.74 * tera * 1e12, rel=0.01)


def results(folder, **changes):
    content = {
        "family": "vit",
        "size": "B",
        "dtype": "bfloat16",
        "batch": 128,
        "seconds": {"full": [1.0, 2.0, 4.0], "fast": [0.9, 1.6, 3.2], "backrazor": [3, 6, 12]},
    }
    (folder / "step_h200.json").write_text(json.dumps(content | changes))
    return folder


ARITHMETIC = {"full": 1.0, "fast": 0.7, "lean": 0.8}


def test_measured_times_replace_arithmetic_and_scale_the_rest(tmp_path):
    times, measured = cost.calibrated(ARITHMETIC, CARDS["h200"], VIT_B16, results(tmp_path))
    assert measured == {"full", "fast"}  # BackRazor was not asked for
    assert (times["full"], times["fast"]) == (1.0, 0.8)
    assert times["lean"] == pytest.approx(0.8 * 0.8 / 0.7)


def test_results_of_another_card_or_setting_change_nothing(tmp_path):
    nothing = (ARITHMETIC, set())
    assert cost.calibrated(ARITHMETIC, CARDS["h200"], VIT_B16, tmp_path) == nothing
    for change in ({"dtype": "float32"}, {"family": "bert"}):
        folder = results(tmp_path, **change)
        assert cost.calibrated(ARITHMETIC, CARDS["h200"], VIT_B16, folder) == nothing
    folder = results(tmp_path)
    assert cost.calibrated(ARITHMETIC, CARDS["a100"], VIT_B16, folder) == nothing
    other = dataclasses.replace(VIT_B16, batch_size=64)
    assert cost.calibrated(ARITHMETIC, CARDS["h200"], other, folder) == nothing
