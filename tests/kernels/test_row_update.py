"""The kernel of the row-sparse optimizer step: in place, without spills, for two cards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.kernels.row_update import Rule, Scalars, update_rows

RULES = [Rule("sgd"), Rule("sgd", momentum=0.9, weight_decay=0.1), Rule("adamw", weight_decay=0.1)]


@pytest.mark.parametrize("width", [1, 1500])  # of which one is more than one part of a row
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_new_rows_are_those_of_the_rule_and_the_others_keep_their_bits(rule, width):
    generator = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(np.abs(generator.standard_normal(shape)), jnp.float32)

    param, grads, moments = (
        draw(7, width),
        draw(4, width),
        tuple(draw(7, width) for _ in rule.moments),
    )
    slots = jnp.asarray([5, 7, 0, 6], jnp.int32)
    used, rows = np.asarray([0, 2, 3]), np.asarray([5, 0, 6])
    now = Scalars(*(jnp.asarray(v, jnp.float32) for v in (1.0, 0.1, 0.5, 0.1, 0.001)))
    interpret = jax.default_backend() != "gpu"
    run = jax.jit(functools.partial(update_rows, rule, interpret=interpret))
    new, sums, norms = run(now, slots, grads, param, moments)
    expected, expected_sums = rule.new(
        param[rows], grads[used] * 0.5, tuple(m[rows] for m in moments), now
    )
    for actual, wanted, old in zip(
        (new, *sums), (expected, *expected_sums), (param, *moments), strict=True
    ):
        np.testing.assert_allclose(actual[rows], wanted, rtol=2e-6, atol=1e-6)
        others = np.delete(np.arange(7), rows)
        np.testing.assert_array_equal(actual[others], old[others])
    np.testing.assert_allclose(norms, np.sum(np.square(grads), axis=1), rtol=1e-5)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize("rule", RULES[1:], ids=str)
def test_compiles_in_place_without_spills(rule, card):
    spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    param = spec((12 * 768, 3072))
    args = [
        Scalars(*(spec(()) for _ in Scalars._fields)),
        jax.ShapeDtypeStruct((960,), jnp.int32),
        spec((960, 3072)),
        param,
        tuple(param for _ in rule.moments),
    ]
    step = jax.jit(functools.partial(update_rows, rule), donate_argnums=(3, 4))
    (use,) = kernel_use(step, args, CARDS[card])
    assert use.spill_bytes == 0
    assert use.registers <= 64
    assert use.blocks == 960
    report = memory(compile_for(step, args, CARDS[card]))
    assert report.temp_bytes < 1e3
    assert report.alias_bytes == (1 + len(rule.moments)) * 4 * param.size
