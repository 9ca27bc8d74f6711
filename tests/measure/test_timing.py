"""Runs in turn, medians and ratios within rounds, and what the device reaches."""

import jax
import jax.numpy as jnp
import pytest

from pbr_jax.measure import timing


class Clock:
    """A clock that only a run moves."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def taking(clock, order, name, durations):
    """A run that takes these seconds at its calls."""
    left = iter(durations)

    def run(x):
        order.append(name)
        clock.now += next(left)
        return x

    return timing.same(run, jnp.ones(3))


def test_runs_take_turns_and_two_rounds_warm_up(clock):
    order = []
    runs = {
        "a": taking(clock, order, "a", [9, 9, 1, 2, 4]),
        "b": taking(clock, order, "b", [9, 9, 3, 2, 2]),
    }
    found, refused = timing.in_turn(runs, rounds=3)
    assert order == ["a", "b"] * 5
    assert found == {"a": [1, 2, 4], "b": [3, 2, 2]}
    assert not refused
    assert timing.ratio(found["b"], found["a"]) == (1.0, 0.75, 2.0)  # of 3, 1 and 0.5


def test_rounds_end_after_some_seconds_but_not_before_the_fifth(clock):
    runs = {"a": taking(clock, [], "a", [1] * 20)}
    assert len(timing.in_turn(runs, 18, seconds=0.0).seconds["a"]) == 5
    runs = {"a": taking(clock, [], "a", [1] * 20)}
    assert len(timing.in_turn(runs, 18, seconds=7.0).seconds["a"]) == 7
    runs = {"a": taking(clock, [], "a", [1] * 20)}
    assert len(timing.in_turn(runs, 18, seconds=70.0).seconds["a"]) == 18


def test_the_spread_is_median_and_quartiles():
    assert timing.spread([5.0]) == (5, 5, 5)
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (3, 2, 4)


def test_what_refuses_is_left_out_and_says_why(clock):
    def refuse(x):
        raise ValueError("needs a GPU\nand more")

    runs = {"a": timing.same(refuse, 1), "b": taking(clock, [], "b", [1] * 3)}
    assert timing.in_turn(runs, rounds=1) == ({"b": [1]}, {"a": "needs a GPU"})
    compiled, refused = timing.compile_each({"a": refuse, "b": jnp.sin}, jnp.ones(2))
    assert list(compiled) == ["b"] and refused == {"a": "needs a GPU"}


def test_short_calls_on_a_gpu_are_made_in_a_row(clock, monkeypatch):
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    order = []
    short = taking(clock, order, "short", [1e-4] * 12)
    chained = taking(clock, order, "chained", [1e-4] * 3)._replace(chained=True)
    found, _ = timing.in_turn({"short": short, "chained": chained}, rounds=1)
    assert order.count("short") == 12 and order.count("chained") == 3
    assert found["short"] == pytest.approx([1e-4])


def test_a_chained_run_goes_on_from_its_result():
    held = [0]

    def keep(result):
        held[0] = result

    run = timing.Run(lambda x: x + 1, lambda: (held[0],), keep, chained=True)
    timing.in_turn({"count": run}, rounds=3)
    assert held[0] == 5


def test_ceilings_are_rates_of_a_known_amount(clock, monkeypatch):
    seconds = {"product": [2.0], "copy": [4.0], "launch": [0.5]}
    monkeypatch.setattr(timing, "in_turn", lambda runs, rounds: timing.Times(seconds, {}))
    found = timing.ceilings(jnp.float32, 1)
    assert found == (2 * 1024**3 / 2, 2 * 4 * 2**24 / 4, 0.5)
    assert found.floor(flops=found.flops, num_bytes=3 * found.bandwidth) == 3


def test_an_input_that_is_kept_is_no_new_leaf():
    def keep_and_double(x):
        return timing.new_leaves({"kept": x, "new": 2 * x}, x)

    assert len(jax.eval_shape(keep_and_double, jnp.ones(2))) == 1


def test_random_data_are_never_all_zero():
    spec = jax.ShapeDtypeStruct((4, 5), jnp.int32)
    values = timing.random_like(spec, 0, below=3)
    assert values.dtype == jnp.int32 and 0 < values.max() < 3
    assert float(jnp.std(timing.random_like(spec.update(dtype=jnp.float32), 0))) > 0.5
