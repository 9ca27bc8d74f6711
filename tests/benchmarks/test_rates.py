"""The study of rate and keep: which run comes next, and the tables, from made-up lines."""

import importlib
import math
import pathlib
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks/real"
NAMES = ("rows", "search", "tables", "figure")


@pytest.fixture(scope="module")
def real():
    sys.path.insert(0, str(FOLDER))
    try:
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


def line(trial, best, diverges=12):
    """A line whose validation loss is a parabola over the index of the rate, least at `best`."""
    row, index = trial.row, round(math.log2(trial.rate / 1e-4))
    known = {**row._asdict(), "extra": list(row.extra), "rate": trial.rate, "seed": trial.seed}
    if index >= diverges:
        return known | {"diverged": "step 3: loss = nan"}
    loss = 1 + 0.1 * (index - best) ** 2
    test = {"loss": loss + 0.5, "accuracy": 0.8 - 0.01 * (index - best) ** 2 + 0.001 * trial.seed}
    return known | {"val": {"loss": loss, "accuracy": 0.0}, "test": test}


def run_all(search, rows, best_of, seeds=3, shared=None, **kwargs):
    lines = []
    while (trial := next(search.trials(lines, rows, seeds, shared), None)) is not None:
        lines.append(line(trial, best_of(trial.row), **kwargs))
        assert len(lines) < 200
    return lines


def power_law(row):
    """The best rate goes with keep to the power -1/2, from an index of 1.2 at keep 1."""
    return 1.2 - 0.5 * math.log2(row.share)


def test_every_row_ends_with_its_best_inside_and_with_all_seeds(real):
    rows = [real.rows.Row("prebackrazor", "adamw", keep) for keep in (1.0, 0.1, 0.01)]
    lines = run_all(real.search, rows, power_law)
    for row in [real.rows.Row("full", "adamw"), *rows]:
        index = real.search.best_index(lines, row)
        assert index == round(power_law(row))
        known = real.search.losses(lines, row)
        assert {index - 1, index, index + 1} <= known.keys()
        shared = real.search.best_index(lines, real.rows.Row("full", "adamw"))
        for place in (index, shared):
            assert {(place, seed) for seed in range(3)} <= real.search.of_row(lines, row).keys()
    # None twice.
    keys = [(x["method"], x["keep"], x["rate"], x["seed"]) for x in lines]
    assert len(keys) == len(set(keys))


def test_a_search_goes_on_where_it_was(real):
    rows = [real.rows.Row("prebackrazor", "adamw", 0.1)]
    lines = run_all(real.search, rows, power_law)
    for cut in (1, len(lines) // 2, len(lines) - 1):
        assert next(real.search.trials(lines[:cut], rows, 3)) == real.rows.Trial(
            real.rows.row_of(lines[cut]),
            lines[cut]["rate"],
            lines[cut]["seed"],
        )


def test_fewer_seeds_at_the_rate_of_full(real):
    few = real.rows.Row("prebackrazor", "adamw", 0.01)
    lines = run_all(real.search, [few], power_law, shared=1)
    own, theirs = (real.search.best_index(lines, row) for row in (few, few.base))
    seeds = {
        place: [s for i, s in real.search.of_row(lines, few) if i == place]
        for place in (own, theirs)
    }
    assert seeds == {own: [0, 1, 2], theirs: [0]}


def test_frozen_kernels_have_no_run_at_the_rate_of_full(real):
    frozen = real.rows.Row("full", "adamw", kernels=0.0)
    lines = run_all(real.search, [frozen], lambda row: 1.2 if row.kernels is None else 5.0)
    tried = {index for index, _ in real.search.of_row(lines, frozen)}
    assert 1 not in tried and 5 in tried


def test_rows_are_compared_with_full_at_the_same_rate_of_the_rest(real):
    rows = [real.rows.Row("prebackrazor", "adamw", 0.1, rest=rest) for rest in (None, 1.6e-3)]

    def best_of(row):
        return power_law(row) - (0.0 if row.rest is None else 3.0)

    lines = run_all(real.search, rows, best_of, seeds=1)
    for row in rows:
        assert real.search.best_index(lines, row.base) == round(best_of(row.base))
    assert len({row.base for row in rows}) == 2


def test_a_line_without_a_test_part_counts_for_the_search_alone(real):
    row = real.rows.Row("lean", "adamw")
    lines = run_all(real.search, [row], power_law, seeds=2, shared=0)
    earlier = [{k: v for k, v in x.items() if k != "test"} for x in lines]
    again = list(real.search.trials(earlier, [row], 2, 0))
    own = [real.search.best_index(lines, r) for r in (row.base, row)]
    rates = [real.search.rate_at("adamw", i) for i in own]
    pairs = [*zip((row.base, row), rates, strict=True)]
    assert again == [real.rows.Trial(r, rate, s) for r, rate in pairs for s in range(2)]
    done = [*earlier, *(line(trial, power_law(trial.row)) for trial in again)]
    for (r, _), index in zip(pairs, own, strict=True):
        found = [real.tables.figures(some, r, index) for some in (earlier, done, lines)]
        assert found[0][-1] == "0" and found[1] == found[2]


def test_a_given_rate_is_not_searched(real):
    row = real.rows.Row("prebackrazor", "adamw", 0.1, policy="bandit")
    lines = run_all(real.search, [row.base], power_law)
    found = list(real.search.trials(lines, [row.base, row], 2, given=8e-4))
    assert found == [real.rows.Trial(row, 8e-4, seed) for seed in range(2)]
    lines += [line(trial, 2.0) for trial in found]
    assert not list(real.search.trials(lines, [row], 2, given=8e-4))
    lines += [line(trial._replace(row=row._replace(policy="uniform")), 1.0) for trial in found]
    text = real.tables.report(lines)
    assert "| prebackrazor, bandit | 0.1 | 0.0008 (given) | 79.0" in text
    # A place off its best costs a point, and another three.
    told = "prebackrazor, uniform less prebackrazor, bandit, keep 0.1: -3.00 ± 0.00 points"
    assert f"{told}, loss 0.3000 ± 0.0000 (2 pairs)" in text


def test_a_diverged_run_bounds_the_search(real):
    rows = [real.rows.Row("lean", "adamw", 0.01)]
    lines = run_all(real.search, rows, lambda row: 6.0, diverges=6)
    assert real.search.best_index(lines, rows[0]) == 5
    assert real.search.refined(real.search.losses(lines, rows[0])) is None


def test_the_table_and_the_power(real):
    keeps = (1.0, 0.4, 0.1, 0.05, 0.02, 0.01)
    rows = [real.rows.Row("prebackrazor", "adamw", keep) for keep in keeps]
    lines = run_all(real.search, rows, power_law)
    a, half, count = real.tables.power(lines, "adamw", "prebackrazor")
    assert a == pytest.approx(0.5, abs=1e-6) and half < 1e-6 and count == len(keeps)
    text = real.tables.report(lines)
    assert "prebackrazor: own rate ~ keep^-0.50 ± 0.00 (6 keeps)" in text
    first, *_, last = [row for row in text.splitlines() if row.startswith("| ")][1:]
    # Seeds differ by 0.1 points: a standard deviation of 0.1, times 4.303 over the root of 3.
    assert first.split(" | ")[3] == "80.06 ± 0.25"
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells[:3] == ["prebackrazor", "0.01", "0.0032"]
    assert cells[6] == cells[10] == "3"
    # At the rate of `full` a row of few columns is behind in these lines, and at its own it is not.
    assert float(cells[8].split(" ")[0]) < -5 < float(cells[4].split(" ")[0]) + 5


def test_a_row_that_is_not_done_is_open(real):
    row = real.rows.Row("prebackrazor", "adamw", 0.1)
    lines = [line(next(real.search.trials([], [row], 1)), 1.2)]
    assert "| full |  | open |" in real.tables.report(lines)


def test_the_axes_of_a_row_become_settings(real):
    rows = real.rows.rows_of(
        ["adamw"], ["lean"], [], [0.5], ["uniform", None], ["never", "20", None]
    )
    assert rows[0] == real.rows.Row("full", "adamw") and len(rows) == 7
    assert rows[1].settings() == [
        *("method=lean", "optimizer.name=adamw"),
        *("pruning.keep.qkv=0.05", "pruning.keep.proj=0.05"),
        *("pruning.keep.fc1=0.2", "pruning.keep.fc2=0.05"),
        *("pruning.policy=uniform", "pruning.interval=1000000000"),
    ]
    assert rows[1].share == pytest.approx(0.0875)
    assert [row.name for row in rows[1:4]] == [
        "lean, uniform, fixed columns",
        "lean, uniform, every 20 steps",
        "lean, uniform",
    ]
    assert rows[6].settings() == rows[1].settings()[:6]
    for row in rows:
        assert real.rows.row_of(line(real.rows.Trial(row, 1e-4, 0), 0)) == row
    assert real.rows.Row("prebackrazor", "sgd", 0.02).settings()[2:] == ["pruning.keep=0.02"]
    slow = real.rows.rows_of(["adamw"], ["full"], kernels=[0.25])
    assert [row.name for row in slow] == ["full", "full, kernels at 0.25 of the rate"]
    first, few = real.rows.rows_of(["adamw"], ["prebackrazor"], [0.1], rest=1.6e-3)
    assert first == few.base and first.rest == 1.6e-3
    assert few.name == "prebackrazor, the rest at 0.0016"
    (alone,) = real.rows.rows_of(["sgd"], ["prebackrazor"])[1:]
    assert alone.share == pytest.approx(0.1)
    assert real.rows.rows_of(["adamw"], ["lean"], scales=[1.0])[1:] == [
        real.rows.Row("lean", "adamw")
    ]


def test_the_figure_has_every_keep_at_both_rates(real, tmp_path):
    rows = [real.rows.Row("prebackrazor", "adamw", keep, rest=2e-3) for keep in (0.1, 0.01)]
    lines = run_all(real.search, [*rows, real.rows.Row("prebackrazor", "adamw", 0.1)], power_law)
    found = real.figure.marks(lines, real.rows.Row("prebackrazor", "adamw", rest=2e-3))
    for told in found.values():
        assert [mark.share for mark in told] == [pytest.approx(s) for s in (0.01, 0.1, 1)]
        assert all(len(mark.found) == 3 for mark in told)
    # In these lines a row loses at the rate of `full`, the more the fewer columns it keeps.
    own, shared = ([mark.found[0] for mark in told] for told in found.values())
    assert own[2] == shared[2] and own[1] > shared[1] and own[0] > shared[0]
    real.figure.draw(lines, 2e-3, tmp_path / "columns.png")
    assert (tmp_path / "columns.png").read_bytes().startswith(b"\x89PNG")
