"""Step times by arithmetic, against figures found by other means."""

import dataclasses
import json

import pytest

from pbr_jax.configs.common import Config, Decoder, Lora, Model, Optimizer
from pbr_jax.files import DamagedFile
from pbr_jax.gpu import CARDS, find_card
from pbr_jax.gpu.rates import matrix_rate
from pbr_jax.memory import cost
from pbr_jax.memory.use import MemoryUse, memory_use

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


def test_lora_has_no_weight_gradients_and_thin_products_instead():
    """Of a block's three products it has two; remat has one again; thin ones wait for memory."""
    model = Model(
        family="decoder", width=2560, depth=36, heads=32, mlp_dim=9728, vocab_size=1000,
        max_length=2048, decoder=Decoder(kv_heads=8, head_dim=128), dtype="bfloat16",
    )  # fmt: skip

    def time(method, rank=16):
        run = Config(method=method, batch_size=4, model=model, lora=Lora(rank=rank))
        return cost.step_seconds(run, CARDS["rtx4090"], MemoryUse(1, 0, 1, 0))

    assert 0.9 * time("full") < time("lora") < 1.1 * time("full")
    assert time("lora") < time("lora", 256) < time("remat")


def test_full_fine_tuning_takes_at_least_its_products():
    """Three times 2 * parameters of the blocks * tokens, at the card's rate."""
    blocks = 12 * 12 * 768**2
    products = 3 * 2 * blocks * 128 * 197 / matrix_rate(CARDS["h200"], "bfloat16")
    assert products < seconds(VIT_B16) < 1.4 * products


def test_time_grows_with_the_batch_and_not_with_its_parts():
    twice = dataclasses.replace(VIT_B16, batch_size=256)
    assert 1.9 < seconds(twice) / seconds(VIT_B16) < 2.01
    parts = dataclasses.replace(VIT_B16, optimizer=Optimizer(accumulation_steps=2))
    assert seconds(parts) == pytest.approx(seconds(VIT_B16), rel=0.02)


@pytest.fixture
def measured(tmp_path):
    """Writes what `pbr bench step` would, with changes, and returns the file."""

    def write(**changes):
        content = {
            "device": "NVIDIA H200",
            "family": "vit",
            "size": "B",
            "dtype": "bfloat16",
            "batch": 128,
            "seconds": {"full": [1.0, 2.0, 4.0], "fast": [0.9, 1.6, 3.2], "backrazor": [3, 6, 12]},
        }
        file = tmp_path / "step.json"
        file.write_text(json.dumps(content | changes))
        return file

    return write


ARITHMETIC = {"full": 1.0, "fast": 0.7, "lean": 0.8}


def test_measured_times_replace_arithmetic_and_scale_the_rest(measured):
    found = cost.read_times(measured(), CARDS["h200"], VIT_B16)
    assert found == {"full": 1.0, "fast": 0.8, "backrazor": 3.0}
    times = cost.calibrated(ARITHMETIC, found)
    assert set(times) == set(ARITHMETIC)  # BackRazor was not asked for
    assert (times["full"], times["fast"]) == (1.0, 0.8)
    assert times["lean"] == pytest.approx(0.8 * 0.8 / 0.7)
    assert cost.calibrated(ARITHMETIC, {}) == ARITHMETIC


def test_times_of_another_card_or_setting_are_refused(measured):
    for change in ({"dtype": "float32"}, {"family": "bert"}, {"device": "cpu"}):
        ((name, value),) = change.items()
        with pytest.raises(ValueError, match=rf"step\.json: was measured with {name} = {value}"):
            cost.read_times(measured(**change), CARDS["h200"], VIT_B16)
    other = dataclasses.replace(VIT_B16, batch_size=64)
    with pytest.raises(ValueError, match="batch = 128, not 64"):
        cost.read_times(measured(), CARDS["h200"], other)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seconds": {}}, "seconds lacks 'full'"),
        ({"seconds": [1]}, "seconds must be an object"),
        ({"seconds": {"full": []}}, "no times of steps"),
        ({"seconds": {"full": [0], "lean": [1]}}, "no times of steps"),
        ({"seconds": {"full": [1], "lean": [-1]}}, "no times of steps"),
        ({"seconds": {"full": [1], "lean": [float("nan")]}}, "no times of steps"),
    ],
)
def test_a_file_without_times_is_refused(measured, change, fault):
    with pytest.raises(DamagedFile, match=rf"step\.json: {fault}.*give what `pbr bench step"):
        cost.read_times(measured(**change), CARDS["h200"], VIT_B16)
