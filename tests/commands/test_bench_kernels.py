"""`pbr bench kernels`: the compiler's figures without a GPU, and its way of timing with one."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from pbr_jax import cli
from pbr_jax.bench import kernels
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.measure.timing import Ceilings


def run(*words):
    return cli.main(["bench", "kernels", *words])


def test_every_case_has_two_names_and_shapes_that_count():
    cases = kernels.all_cases()
    assert len({(case.op, case.shape) for case in cases}) == len(cases)
    for case in cases:
        assert case.num_bytes > 0 and case.flops >= 0
        assert all(spec.size for spec in case.args)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            run = functools.partial(case.run, implementation="xla")
            assert jax.eval_shape(run, *case.args)


def test_the_floor_is_the_longer_of_products_and_bytes():
    ceilings = Ceilings(flops=100.0, bandwidth=10.0)
    assert ceilings.floor(200, 10) == 2.0
    assert ceilings.floor(200, 50) == 5.0


@pytest.mark.gpu_compile
def test_without_a_gpu_it_prints_the_compilers_figures_and_no_time(capsys, tmp_path):
    assert run("--only", "weight gradient, proj of ViT", "--out", str(tmp_path / "f.json")) == 0
    out = capsys.readouterr().out
    assert "There is no GPU here, so there is nothing to time" in out
    assert out.count("| weight gradient | proj of ViT-B/16, batch 128 | weight_gradient |") == 2
    found = json.loads((tmp_path / "f.json").read_text())
    (row,) = found["cards"]["h200"]
    assert row["spill bytes"] == 0 and row["registers"] > 0
    # 38.7 MB of dy, 4.0 of x and 0.2 of results at 4.3 TB/s.
    assert row["floor us"] == pytest.approx(10.0, abs=0.1)


def test_timing_takes_medians_and_says_who_refused(monkeypatch):
    def op(x, implementation):
        if implementation == "triton":
            raise ValueError("needs a GPU, and this is cpu")
        return 2 * x

    case = BenchCase(
        "double",
        "8",
        op,
        (jax.ShapeDtypeStruct((8,), jnp.float32),),
        flops=8,
        num_bytes=64,
        donate=(0,),
        rivals={"shift": lambda x: x + x},
        figures=lambda x: {"sum": jnp.sum(x)},
    )
    limits = Ceilings(1e12, 1e12)
    monkeypatch.setattr(kernels.timing, "ceilings", lambda dtype, rounds: limits)
    found = kernels.times([case], rounds=2)
    (row,) = found["rows"]
    assert set(row["seconds"]) == {"xla", "shift"}
    assert row["refused"] == {"triton": "needs a GPU, and this is cpu"}
    assert row["figures"]["sum"] > 0
    assert [line["implementation"] for line in kernels.times_table(found)] == ["xla", "shift"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "softmax"], "no case has this in its name; there are"),
        (["--rounds", "0"], "--rounds 0: must be from 1 to"),
        (["--card", "rtx2080ti", "--only", "proj of ViT"], "must be one of h200, rtx4090"),
    ],
)
def test_errors_say_what_there_is(words, message, capsys):
    assert run(*words) == 2
    assert message in capsys.readouterr().err
