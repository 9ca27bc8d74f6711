"""The table of graphics cards and the description that XLA gets."""

import re
import subprocess
import sys

import pytest

from pbr_jax.gpu import CARDS, find_card, target_config

NAMES = ["h200", "h100", "a100", "rtx4090", "rtx3090", "rtx2080ti"]

# Compute capability -> (shared memory of a multiprocessor, of a block, resident threads), table
# "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide; KiB.
LIMITS = {
    (7, 5): (64, 64, 1024),
    (8, 0): (164, 163, 2048),
    (8, 6): (100, 99, 1536),
    (8, 9): (100, 99, 1536),
    (9, 0): (228, 227, 2048),
}


def test_the_table_has_the_cards_that_we_promise():
    assert list(CARDS) == NAMES
    assert [card.name for card in CARDS.values()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_limits_follow_from_the_compute_capability(name):
    card = CARDS[name]
    shared_per_core, shared_per_block, threads = LIMITS[card.capability]
    assert card.shared_per_core == shared_per_core * 1024
    assert card.shared_per_block == shared_per_block * 1024
    assert card.threads_per_core == threads


@pytest.mark.parametrize(
    ("name", "gib", "tera_bytes_per_second", "teraflops"),
    [  # Of the makers' data sheets: memory, bandwidth, float32 rate.
        ("h200", 141, 4.8, 67.0),
        ("h100", 80, 3.35, 67.0),
        ("a100", 80, 2.039, 19.5),
        ("rtx4090", 24, 1.008, 82.6),
        ("rtx3090", 24, 0.936, 35.6),
        ("rtx2080ti", 11, 0.616, 13.4),
    ],
)
def test_the_figures_agree_with_the_data_sheets(name, gib, tera_bytes_per_second, teraflops):
    card = CARDS[name]
    assert 0.95 * gib * 2**30 < card.memory_bytes <= gib * 2**30
    assert card.bandwidth / 1e12 == pytest.approx(tera_bytes_per_second, rel=1e-3)
    rate = 2 * card.cores * card.fpus_per_core * card.clock_ghz / 1e3
    assert rate == pytest.approx(teraflops, rel=0.01)


@pytest.mark.parametrize("spelling", ["rtx4090", "RTX 4090", "rtx-4090", "RTX_4090"])
def test_find_card_reads_the_usual_spellings(spelling):
    assert find_card(spelling) is CARDS["rtx4090"]


def test_find_card_names_the_nearest():
    with pytest.raises(ValueError, match=r"name = 'rtx4900'.*did you mean 'rtx4090'.*rtx2080ti"):
        find_card("rtx4900")


@pytest.mark.parametrize("name", NAMES)
def test_the_description_has_each_field_once(name):
    card = CARDS[name]
    text = target_config(card)
    fields = re.findall(r"(\w+):", text)
    repeated = {field for field in fields if fields.count(field) > 1}
    assert repeated == {"major", "minor"}  # of the capability, of cuDNN and of CUDA
    assert (
        f"cuda_compute_capability {{ major: {card.capability[0]} minor: {card.capability[1]} }}"
        in text
    )
    assert f"device_memory_size: {card.memory_bytes}" in text
    assert f'device_description_str: "{card.description}"' in text
    assert text.count("{") == text.count("}")


def test_the_table_and_the_look_for_a_gpu_need_no_jax():
    program = """
import sys, pbr_jax.gpu
from pbr_jax.gpu import CARDS, gpu_is_present, use_cpu_without_gpu
gpu_is_present()
print('jax' in sys.modules, hasattr(pbr_jax.gpu, 'h200'))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
