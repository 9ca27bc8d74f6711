"""The transformer block: every plan against the NumPy oracle, saved bytes, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from measures import (
    as_float64,
    as_jax,
    assert_close,
    relative_error,
    saved_bytes,
    value_and_pullback,
)
from small_block import (
    BACKRAZOR,
    COLUMNS,
    DY,
    MASK,
    PARAMS,
    PLANS,
    POST_NORM,
    SELECTION,
    SHAPE,
    B,
    D,
    F,
    H,
    L,
    N,
    X,
    oracle,
    plain_block,
    repeated,
    rounding,
    run,
    stacked,
    with_selection,
)

from pbr_jax.ops import half_blocks, residuals
from pbr_jax.ops.visibility import Visibility
from pbr_jax.plans import SITES, Keep, ResidualPlan

# Every plan with the norm in front, and these with the norm behind; the others are exhaustive.
WITH_POST_NORM = ("full", "columns, recompute", "columns, sparse attention", "prebackrazor-")
BLOCKS = [
    *(pytest.param(plan, SHAPE, id=f"{name}-pre-norm") for name, plan in PLANS.items()),
    *(
        pytest.param(
            plan,
            POST_NORM,
            id=f"{name}-post-norm",
            marks=() if name in WITH_POST_NORM else pytest.mark.exhaustive,
        )
        for name, plan in PLANS.items()
    ),
]


@pytest.mark.parametrize(("plan", "shape"), BLOCKS)
class TestBlock:
    def test_equals_the_oracle(self, plan, shape):
        y, grads, dx = run(plan, shape=shape)
        expected_y, expected_grads, expected_dx = oracle(plan, post_norm=shape.post_norm)
        assert_close(y, expected_y, 1e-6, "y")
        assert_close(dx, expected_dx, rounding(plan), "dx")
        assert_close(grads, expected_grads, rounding(plan))

    def test_saved_bytes(self, plan, shape):
        tokens, statistic = B * N, 4 * B * N
        kept = {s: len(c) for s, c in SELECTION.items()}

        def elements(size, value_bytes=2):
            return B * (round(0.5 * size) * value_bytes + -(-size // 8))

        pruned_norm = elements(N * D, 4) + 2 * statistic
        gelu = 4 * tokens * F
        q_k_v, flash = 4 * tokens * 3 * D, 4 * tokens * (4 * D + H)
        norms = 2 * (4 * tokens * D + statistic)
        pruned_attention = 3 * elements(N * D) + elements(H * N * N)
        behind_norms = 4 * tokens * (kept["qkv"] + kept["fc1"])
        fc2 = 4 * tokens * kept["fc2"]
        expected = {
            # x_hat gives the inputs of qkv and fc1, flash attention's output that of proj.
            "full": norms + flash + gelu + 4 * tokens * F,
            "recompute": 4 * tokens * D,
            "qkv": norms + q_k_v + 4 * tokens * D + gelu + 4 * tokens * F,
            "recomputed q k v": norms + 4 * tokens * D + gelu + 4 * tokens * F,
            "2 chunks": norms + flash + gelu + 4 * tokens * F,
            "recompute in 4 chunks": 4 * tokens * D,
            "columns": norms + flash + gelu + fc2,
            "columns, qkv": norms + q_k_v + 4 * tokens * kept["proj"] + gelu + fc2,
            "columns, recomputed q k v": norms + 4 * tokens * kept["proj"] + gelu + fc2,
            "columns, recompute": 4 * tokens * D,
            "columns, pruned norms": 2 * pruned_norm + behind_norms + flash + gelu + fc2,
            "columns, sparse attention": norms
            + 4 * 3 * tokens * H * 8
            + 2 * 4 * H * 8  # which channels
            + 4 * tokens * kept["proj"]
            + gelu
            + fc2,
            "backrazor": 2 * pruned_norm
            + pruned_attention
            + 3 * elements(N * D)
            + gelu
            + elements(N * F),
            "prebackrazor-": 2 * pruned_norm
            + pruned_attention
            + gelu
            + 4 * (tokens + 1) * (16 + 16 + 16 + 24),
        }
        expected["backrazor in 2 chunks"] = expected["backrazor"]
        name = next(name for name, p in PLANS.items() if p is plan)
        op, params = stacked(plan, shape), repeated(with_selection(as_jax(PARAMS), plan), L)
        # Nothing beside: neither copies of the parameters nor the activation between the blocks.
        assert saved_bytes(lambda x: op(params, x, {}), as_jax(X)) == L * expected[name]


@pytest.mark.parametrize("name", ["2 chunks", "columns, qkv"])
def test_attention_mask(name):
    plan = PLANS[name]
    y, grads, dx = run(plan, aux={"visibility": Visibility(mask=jnp.asarray(MASK))})
    expected_y, expected_grads, expected_dx = oracle(plan, MASK)
    assert_close(y, expected_y, 1e-6, "y")
    assert_close(dx, expected_dx, rounding(plan), "dx")
    assert_close(grads, expected_grads, rounding(plan))


class TestBoundedErrors:
    """LayerNorm in int8 and GELU codes: dx is off by a chosen amount."""

    INT8 = dataclasses.replace(COLUMNS, layer_norm="int8", attention="recompute")
    LEAN = dataclasses.replace(INT8, gelu="code2")

    @pytest.mark.parametrize(
        ("plan", "bound", "shape"),
        [
            (INT8, 0.02, SHAPE),
            (dataclasses.replace(INT8, gelu="code4"), 0.05, SHAPE),
            (LEAN, 0.2, SHAPE),
            (LEAN, 0.2, POST_NORM),
        ],
        ids=["int8", "int8 and 4-bit codes", "lean", "lean, post-norm"],
    )
    def test_dx_is_within_its_bound(self, plan, bound, shape):
        y, grads, dx = run(plan, shape=shape)
        expected_y, expected_grads, expected_dx = oracle(plan, post_norm=shape.post_norm)
        assert_close(y, expected_y, 1e-6, "y")
        assert 1e-4 < relative_error(dx, expected_dx) <= bound
        for site in SITES:
            assert_close(grads[site], expected_grads[site], bound, site)

    def test_saved_bytes(self):
        op, params = stacked(self.LEAN), repeated(with_selection(as_jax(PARAMS), self.LEAN), 1)
        int8_norm = B * N * (D + 2 + 4)  # codes, one bfloat16 scale, rstd
        code = 2 * B * N * F // 8
        packed = 4 * B * N * (len(SELECTION["proj"]) + len(SELECTION["fc2"]))
        assert saved_bytes(lambda x: op(params, x, {}), as_jax(X)) == 2 * int8_norm + code + packed

    def test_random_rounding_does_not_depend_on_chunks(self):
        plan = dataclasses.replace(self.LEAN, stochastic_codes=True)
        aux = {"keys": jax.random.split(jax.random.key(3), B)}
        whole = run(plan, aux=aux)
        chunked = run(dataclasses.replace(plan, batch_chunks=2), aux=aux)
        for a, b in zip(whole, chunked, strict=True):
            assert_close(a, as_float64(b), 1e-5)


def test_bfloat16_error_is_that_of_plain_code():
    low = [as_jax(a, jnp.bfloat16) for a in (DY, PARAMS, X)]
    plain_y, (plain_grads, plain_dx) = value_and_pullback(plain_block, *low)
    exact_y, exact_grads, exact_dx = oracle(ResidualPlan())
    for plan in (ResidualPlan(), ResidualPlan(attention="qkv", recompute=True)):
        y, grads, dx = run(plan, dtype=jnp.bfloat16)
        assert y.dtype == dx.dtype == jnp.bfloat16
        assert relative_error(y, exact_y) <= 2 * relative_error(plain_y, exact_y)
        assert relative_error(dx, exact_dx) <= 3 * relative_error(plain_dx, exact_dx)
        for path, exact in jax.tree.leaves_with_path(exact_grads):
            ours, plain = grads[path[0].key][path[1].key], plain_grads[path[0].key][path[1].key]
            assert ours.dtype == jnp.float32
            assert relative_error(ours, exact) <= 3 * relative_error(plain, exact), path


@pytest.mark.parametrize("implementation", ["xla", None])
def test_a_plan_by_xla_packs_elements_by_xla(implementation, monkeypatch):
    """Linear layers, LayerNorm and attention; without a name the device decides for each."""
    named, pack = [], residuals.pack_elements

    def recorded(x, keep, dtype=None, implementation=None):
        named.append(implementation)
        return pack(x, keep, dtype, "xla")

    monkeypatch.setattr(residuals, "pack_elements", recorded)
    op = stacked(dataclasses.replace(BACKRAZOR, implementation=implementation))
    params = repeated(as_jax(PARAMS), 1)
    jax.eval_shape(lambda x: jax.vjp(lambda x: op(params, x, {}), x)[0], as_jax(X))
    assert {*named} == {implementation}
    assert len(named) % (4 + 2 + 4) == 0  # traced more than once


class TestErrors:
    PARAMS = as_jax(PARAMS)

    def test_a_missing_selection_is_named_when_differentiated(self):
        op = stacked(COLUMNS, check=functools.partial(half_blocks.check_selection, COLUMNS))
        partly = self.PARAMS | {
            "fc2": self.PARAMS["fc2"] | {"columns": jnp.asarray(SELECTION["fc2"])}
        }
        partly = repeated(partly, 1)
        assert jax.eval_shape(lambda x: op(partly, x, {}), as_jax(X)).shape == X.shape
        with pytest.raises(
            ValueError, match=r"selection is missing for qkv, proj, fc1: .*keep = 1"
        ):
            jax.eval_shape(jax.grad(lambda x: jnp.sum(op(partly, x, {}))), as_jax(X))

    def test_sites_that_keep_all_need_no_columns(self):
        plan = dataclasses.replace(COLUMNS, keep=Keep(fc2=0.5))
        half_blocks.check_selection(plan, {s: {} for s in SITES} | {"fc2": {"columns": None}})

    def test_chunks_that_do_not_divide_the_batch(self):
        op = stacked(ResidualPlan(batch_chunks=3))
        with pytest.raises(ValueError, match=r"batch_chunks = 3: must divide the batch of 4"):
            jax.eval_shape(lambda x: op(repeated(self.PARAMS, 1), x, {}), as_jax(X))

    @pytest.mark.parametrize("field", ["linear", "layer_norm", "attention", "gelu"])
    def test_an_unknown_residual_is_named(self, field):
        with pytest.raises(ValueError, match=rf"{field} = 'sparse': must be one of (dense|flash)"):
            ResidualPlan(**{field: "sparse"})

    def test_chunks_are_counted_from_one(self):
        with pytest.raises(ValueError, match="batch_chunks = 0: must be at least 1"):
            ResidualPlan(batch_chunks=0)
