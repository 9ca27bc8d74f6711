"""Cards by size, by description and as present: fakes only, nothing is compiled."""

import dataclasses
import types

import jax
import pytest
from jaxlib import xla_client

from pbr_jax.gpu import CARDS, parse_target_config, present_card, sized_card, target_config
from pbr_jax.gpu import compile as compile_module


@pytest.mark.parametrize("name", list(CARDS))
def test_a_description_is_read_back(name):
    assert parse_target_config(target_config(CARDS[name]), name) == CARDS[name]


def test_xlas_own_style_is_read():
    """One line, a capability without its zero, as `str` of the proto gives it."""
    text = " ".join(target_config(CARDS["a100"]).split()).replace("minor: 0", "")
    assert parse_target_config(text, "a100") == CARDS["a100"]


def test_all_missing_fields_are_named():
    text = target_config(CARDS["h100"])
    for field in ("core_count", "memory_bandwidth", "cuda_compute_capability"):
        text = text.replace(field, "x")
    missing = "core_count.*|memory_bandwidth.*|cuda_compute_capability.*"
    with pytest.raises(ValueError, match=rf"my\.txt: .*({missing}){{3}}.*GpuTargetConfigProto"):
        parse_target_config(text, "my.txt")
    with pytest.raises(ValueError, match="no description of a card"):
        parse_target_config("not a proto", "my.txt")


@pytest.mark.parametrize(
    ("value", "message"), [("1.5", "not a whole number"), ("0", "core_count must be above 0")]
)
def test_counts_must_be_counts(value, message):
    text = target_config(CARDS["h100"]).replace("core_count: 132", f"core_count: {value}")
    with pytest.raises(ValueError, match=message):
        parse_target_config(text, "my.txt")


@pytest.mark.parametrize(
    ("gib", "model"), [(4, "rtx3090"), (8, "rtx3090"), (40, "rtx4090"), (200, "h200")]
)
def test_a_size_is_compiled_for_the_card_nearest_in_memory(gib, model):
    card = sized_card(f"{gib}GiB", gib * 2**30)
    assert (card.name, card.memory_bytes) == (f"{gib}GiB", gib * 2**30)
    assert card.description == CARDS[model].description
    assert card.has_bfloat16


def test_only_cards_before_ampere_have_no_bfloat16():
    assert [name for name, card in CARDS.items() if not card.has_bfloat16] == ["rtx2080ti"]


def fake_gpu(monkeypatch, topology):
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(xla_client, "get_topology_for_devices", lambda devices: topology)


def test_a_gpu_is_described_by_its_own_properties(monkeypatch):
    text = target_config(CARDS["h200"]).replace("core_count: 132", "core_count: 66")
    fake_gpu(monkeypatch, types.SimpleNamespace(target_config=text))
    card = present_card()
    assert (card.cores, card.bandwidth) == (66, CARDS["h200"].bandwidth)
    assert card.name == "NVIDIA H200"


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", ["h200", "rtx2080ti"])
def test_jax_itself_describes_a_device_so(monkeypatch, name):
    """With a device to compile for in the place of one to run on, nothing else is fake."""
    device = compile_module.card_devices(CARDS[name])[0]
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert present_card() == dataclasses.replace(CARDS[name], name=CARDS[name].description)


def test_a_gpu_that_jax_does_not_describe_is_an_error(monkeypatch):
    fake_gpu(monkeypatch, types.SimpleNamespace())
    with pytest.raises(ValueError, match=r"NVIDIA H200: JAX does not describe.*name the card"):
        present_card()


def test_a_cpu_is_no_gpu():
    assert present_card() is None
