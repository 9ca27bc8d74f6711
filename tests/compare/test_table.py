"""The arithmetic of the comparison's table, and its file."""

import csv
import io
import math

import pytest

from pbr_jax.compare.table import Comparison, Result, cells, csv_text, half_interval
from pbr_jax.compare.trials import Point, Trial
from pbr_jax.files import DamagedFile

SETTING = {"config": {"steps": 2}, "device": "cpu"}


def trial(accuracy):
    curve = [Point(1, 0.5, 2.0, 1.9, accuracy / 2), Point(2, 1.0, 1.0, 0.9, accuracy)]
    return Trial(accuracy, curve)


@pytest.fixture
def comparison(tmp_path):
    comparison = Comparison(tmp_path / "new" / "comparison.json", SETTING)
    for method, peak, seconds, ratio in (
        ("full", 1000, 2.0, 1.0),
        ("backrazor", 500, 4.0, 2.0),
        ("fast", 250, 1.2, 0.6),
    ):
        comparison.record_cost(
            method, compiled_peak_bytes=peak, seconds_per_step=seconds, time_to_full=ratio
        )
    for seed, (full, fast) in enumerate([(0.90, 0.91), (0.92, 0.91), (0.94, 0.95)]):
        comparison.record_trial("full", seed, trial(full))
        comparison.record_trial("fast", seed, trial(fast))
    return comparison


def test_ratios_are_to_both_baselines(comparison):
    fast = comparison.results(["fast"])[0]
    assert fast.memory_to_full == 0.25
    assert fast.time_to_full == 0.6
    assert fast.time_to_backrazor == pytest.approx(0.3)


def test_measured_memory_counts_where_both_have_it(comparison):
    comparison.record_cost("fast", measured_peak_bytes=600)
    assert comparison.results(["fast"])[0].memory_to_full == 0.25
    comparison.record_cost("full", measured_peak_bytes=1200)
    assert comparison.results(["fast"])[0].memory_to_full == 0.5


def test_gaps_are_paired_by_seed(comparison):
    full, fast = comparison.results(["full", "fast"])
    assert (full.gap, fast.seeds) == (None, 3)
    assert fast.accuracy == pytest.approx(0.9233, abs=1e-4)
    assert fast.gap == pytest.approx(0.01 / 3)
    # Student's t with 2 degrees of freedom; differences 1, -1, 1 points.
    assert fast.gap_interval == pytest.approx(4.303 * math.sqrt(4 / 3) / math.sqrt(3) / 100, 1e-3)


def test_the_interval_is_students_t():
    assert half_interval([0.0, 2.0]) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), 1e-3)


def test_what_is_not_known_is_left_out(comparison):
    row = comparison.results(["tiny"])[0]
    assert row.seeds == 0
    assert cells(row)[1:-1] == ["-"] * 7
    assert csv_text([row]).splitlines()[1] == "tiny" + "," * 13 + "0"


def test_what_lies_on_the_host_stands_beside_what_is_saved():
    row = Result("remat+offload", activation_bytes=5_000, host_bytes=160_000)
    assert cells(row)[1] == "5.00 kB + 160 kB on host"


def test_both_texts_hold_every_row(comparison):
    rows = comparison.results(["full", "backrazor", "fast"])
    assert [cells(row)[0] for row in rows] == [row.method for row in rows]
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert float(read[2]["time_to_full"]) == 0.6
    assert read[1]["accuracy"] == ""


def test_the_file_goes_on_where_it_was(comparison):
    again = Comparison(comparison.path, SETTING)
    assert again.results(["full", "fast"]) == comparison.results(["full", "fast"])
    assert again.has_trial("fast", 2) and not again.has_trial("fast", 3)
    assert again.has_cost("full") and not again.has_cost("tiny")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "{", '{"setting": {}, "costs": {"full": 3}, "trials": {}}'],
)
def test_a_damaged_file_is_refused_by_name(comparison, content):
    comparison.path.write_text(content)
    with pytest.raises(DamagedFile, match=r"comparison\.json.*take another --out, or remove it"):
        Comparison(comparison.path, SETTING)


def test_a_trial_that_is_not_whole_is_refused_by_its_place(comparison):
    text = comparison.path.read_text().replace('"accuracy": 0.95', '"accuracy": "high"', 1)
    comparison.path.write_text(text)
    with pytest.raises(DamagedFile, match=r"trials\.fast\.2\.accuracy has a wrong value, 'high'"):
        Comparison(comparison.path, SETTING)


def test_a_file_of_another_setting_is_refused(comparison):
    with pytest.raises(ValueError, match="a comparison with other config; take another --out"):
        Comparison(comparison.path, {"config": {"steps": 3}, "device": "cpu"})
