"""The search for the largest batch, with made-up peaks."""

import random

import pytest

from pbr_jax.memory.largest_batch import LARGEST_BATCH, largest_batch


def affine(fixed, slope, wobble=0):
    """`fixed + slope * batch` bytes, with noise that is the same for the same batch."""
    tried = []

    def peak_at(batch):
        tried.append(batch)
        return round(fixed + slope * batch + random.Random(batch).random() * wobble)

    return peak_at, tried


def search(granule, room, fixed, slope, wobble=0, known=None, first=8):
    """The answer from a first batch, with all of its peak as a guess of the slope."""
    peak_at, tried = affine(fixed, slope, wobble)
    peak = peak_at(first)
    found, _ = largest_batch(peak_at, (first, peak), granule, room, known or peak / first)
    return found, tried


@pytest.mark.parametrize(
    ("granule", "fixed", "slope", "room", "largest"),
    [
        (1, 100, 70, 169, 0),
        (1, 100, 70, 170, 1),
        (1, 100, 70, 1000, 12),
        (4, 499_900, 130, 500_950, 8),
        (1, 0, 1, 10**9, LARGEST_BATCH),
    ],
)
def test_the_smallest_and_the_largest_answer_are_exact(granule, fixed, slope, room, largest):
    found, tried = search(granule, room, fixed, slope)
    assert found == largest
    assert found in tried or found == 0
    assert len(tried) <= 4


@pytest.mark.parametrize("slope", [200_000, 300_000, 1_000_000])
def test_few_peaks_find_a_batch_that_needs_all_but_a_hundredth(slope):
    room = 8_000_000_000
    found, tried = search(8, room, 4_000_000, slope)
    exact = int(0.99 * room - 4_000_000) // slope // 8 * 8
    assert exact <= found <= exact + 8
    assert len(tried) <= 3  # the batch itself, a guess, and the secant's where the guess was bad
    assert any(abs(4_000_000 + slope * batch - room) < 0.05 * room for batch in tried)


def test_a_known_slope_saves_a_peak():
    found, tried = search(1, 1_000_000, 100, 70, known=70.0)
    assert found == 14_141  # (0.99 * 1_000_000 - 100) / 70
    assert tried == [8, found]


def test_with_noise_the_answer_still_fits():
    room = 500_000
    for seed in range(5):
        found, _ = search(4, room, 10_000 + seed, 130, wobble=3000)
        peak_at, _ = affine(10_000 + seed, 130, 3000)
        assert peak_at(found) <= room
        assert found > 0.97 * (room - 13_000) / 130


def test_the_answer_is_a_multiple_of_the_granule():
    assert search(12, 100_000, 0, 130, first=24)[0] == 756  # of 761
