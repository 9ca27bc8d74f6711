"""Steps over a link, against arithmetic by hand."""

import dataclasses

import pytest

from pbr_jax.configs.common import Config, Mesh, Model, Optimizer
from pbr_jax.gpu import CARDS, card_devices
from pbr_jax.memory.network import LINK, Comparison, Network, StepTime, compared, link_rate

VIT_B16 = Config(
    method="lean",
    batch_size=16 * 128,
    mesh=Mesh(data=16),
    model=Model(size="B", num_classes=100, dtype="bfloat16"),
    optimizer=Optimizer(momentum=0.9),
)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100Gbit", 12.5e9),
        ("100 gbit/s", 12.5e9),
        ("2.5Tbit", 312.5e9),
        ("450GB/s", 450e9),
        ("1Mbit", 1.25e5),
        ("100Gb", None),  # bits or bytes?
        ("450GB", None),  # a size
        ("450gb/s", None),
        ("100", None),
        ("Gbit", None),
        ("-1Gbit", None),
        ("0Gbit", None),
        ("1e3Gbit", None),
        ("1001Tbit", None),
        ("100Gbit per s", None),
    ],
)
def test_rates_are_parsed_strictly(text, rate):
    assert link_rate(text) == rate
    assert LINK.holds(text) is (rate is not None)


def test_a_ring_joins_hosts_or_the_devices_of_one():
    """Each partner sends and receives 2 (P - 1) / P of the bytes."""
    assert Network(16, 2, "100Gbit").exchange_seconds(12.5e9) == pytest.approx(1.0)
    assert Network(64, 8, "100Gbit").exchange_seconds(12.5e9) == pytest.approx(1.75)
    assert Network(8, 1, "450GB/s").exchange_seconds(450e9) == pytest.approx(1.75)
    assert Network(1, 1, "450GB/s").exchange_seconds(450e9) == 0


def test_what_hides_behind_the_compute():
    step = StepTime(compute=10.0, exchange=8.0)
    assert (step.exposed, step.hidden) == (18.0, 12.0)
    assert (step.cautious.exposed, step.cautious.hidden) == (28.0, 20.0)
    found = Comparison(StepTime(8.0, 2.0), StepTime(10.0, 30.0))
    assert found.times_faster() == (4.0, pytest.approx(34 / 8))
    assert found.times_faster(cautious=True) == (pytest.approx(50 / 18), pytest.approx(38 / 16))


def test_two_nodes_of_eight_h200():
    """Gradients of 344 and 73 MB (docs/runs.md) over 12.5 GB/s; floors of an H200."""
    found = compared(VIT_B16, CARDS["h200"], Network(16, 2, "100Gbit"))
    assert 12.5e9 * found.full.exchange == pytest.approx(344e6, rel=0.01)
    assert 12.5e9 * found.step.exchange == pytest.approx(73.1e6, rel=0.01)
    assert found.full.compute / found.step.compute == pytest.approx(1.24, abs=0.02)
    assert found.times_faster()[0] == pytest.approx(2.15, abs=0.05)
    assert found.times_faster(cautious=True)[0] == pytest.approx(1.76, abs=0.05)
    # What a program was read to exchange goes before the formula.
    read = compared(VIT_B16, CARDS["h200"], Network(16, 2, "100Gbit"), {"lean": 125_000_000})
    assert read.step.exchange == pytest.approx(0.01) and read.full == found.full
    alone = dataclasses.replace(VIT_B16, batch_size=128, mesh=Mesh(data=1))
    assert compared(alone, CARDS["h200"], Network(1, 1, "1Gbit")).step.exchange == 0


@pytest.mark.gpu_compile
def test_devices_stand_in_hosts():
    devices = card_devices(CARDS["h200"], 4, hosts=2)
    assert [device.process_index for device in devices] == [0, 0, 1, 1]
