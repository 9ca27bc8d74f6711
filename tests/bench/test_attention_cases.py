"""The benchmark's cases of attention: every one can be traced, and says what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import implemented

from pbr_jax.bench.cases.attention import bench_cases

CASES = {f"{case.op}, {case.shape}": case for case in bench_cases()}


@pytest.mark.parametrize("name", CASES)
def test_runs_with_every_implementation(name):
    case = CASES[name]
    for implementation in ("xla", "triton"):
        with implemented():
            out = jax.eval_shape(lambda *a: case.run(*a, implementation=implementation), *case.args)  # noqa: B023
        outputs = jax.tree.leaves(out)
        assert all(o.shape in {a.shape for a in case.args} for o in outputs)


def test_floors_are_those_of_moving_every_array_once():
    def microseconds(name):
        return CASES[f"{name}, ViT-B/16, batch 128"].num_bytes / 4.3e12 * 1e6

    assert microseconds("attention, forward") == pytest.approx(36, abs=0.5)
    assert microseconds("attention, forward and backward, qkv") == pytest.approx(36 + 63, abs=0.5)


def test_cosines_are_printed_for_the_sparse_one_alone():
    (sparse,) = (case for case in CASES.values() if case.figures)
    assert "channels" in sparse.op
    few = [jax.random.normal(jax.random.key(i), (1, 2, 40, 64), jnp.bfloat16) for i in range(4)]
    cosines = np.array(list(sparse.figures(*few).values()))
    assert cosines.shape == (3,)
    assert (cosines > 0).all() and (cosines < 0.999).all()
