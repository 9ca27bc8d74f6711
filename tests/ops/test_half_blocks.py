"""The transformer block: every plan against the NumPy oracle, dropout against autodiff, bytes."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_float64,
    as_jax,
    assert_close,
    equations,
    normal,
    relative_error,
    saved_bytes,
    value_and_pullback,
)

from pbr_jax.ops import half_blocks, pair
from pbr_jax.ops.visibility import Visibility, dropout_seeds
from pbr_jax.plans import SITES, Keep, ResidualPlan

B, N, D, H, F, L = 4, 6, 32, 2, 48, 3
HEAD = D // H
SHAPE = half_blocks.BlockShape(num_heads=H)
POST_NORM = SHAPE._replace(post_norm=True)
HALF = Keep(0.5)
BACKRAZOR = ResidualPlan(linear="elements", layer_norm="elements", attention="elements", keep=HALF)
COLUMNS = ResidualPlan(linear="columns", keep=HALF)
SELECTION = {
    "qkv": np.arange(0, 32, 2, dtype=np.int32),
    "proj": np.arange(1, 32, 4, dtype=np.int32),
    "fc1": np.array([0, 3, 4, 5, 17, 18, 30, 31, 32, 32], np.int32),  # two unused slots
    "fc2": np.arange(5, 21, dtype=np.int32),
}

PLANS = {
    "full": ResidualPlan(),
    "recompute": ResidualPlan(recompute=True),
    "qkv": ResidualPlan(attention="qkv"),
    "recomputed q k v": ResidualPlan(attention="recompute"),
    "2 chunks": ResidualPlan(batch_chunks=2),
    "recompute in 4 chunks": ResidualPlan(recompute=True, batch_chunks=4),
    "columns": COLUMNS,
    "columns, qkv": dataclasses.replace(COLUMNS, attention="qkv"),
    "columns, recomputed q k v": dataclasses.replace(COLUMNS, attention="recompute"),
    "columns, recompute": dataclasses.replace(COLUMNS, recompute=True),
    "columns, pruned norms": dataclasses.replace(COLUMNS, layer_norm="elements"),
    "columns, sparse attention": dataclasses.replace(
        COLUMNS, attention="channels", attention_keep=0.5
    ),
    "backrazor": BACKRAZOR,
    "backrazor in 2 chunks": dataclasses.replace(BACKRAZOR, batch_chunks=2),
    "prebackrazor-": dataclasses.replace(BACKRAZOR, linear="magnitude"),
}


def layer(seed, in_features, out_features):
    return {
        "kernel": normal(seed, in_features, out_features) / in_features**0.5,
        "bias": 0.2 * normal(seed + 1, out_features),
    }


def norm(seed):
    return {"scale": 1 + 0.3 * normal(seed, D), "bias": 0.3 * normal(seed + 1, D)}


PARAMS = {
    "norm1": norm(0), "qkv": layer(2, D, 3 * D), "proj": layer(4, D, D),
    "norm2": norm(6), "fc1": layer(8, D, F), "fc2": layer(10, F, D),
}  # fmt: skip
X, DY = normal(20, B, N, D), normal(21, B, N, D)
MASK = np.arange(N) < np.array([6, 5, 6, 2])[:, None, None, None]  # [B, 1, 1, N]


def with_selection(params, plan, extra=lambda site: {}):
    if plan.linear != "columns":
        return params
    return params | {
        s: params[s] | {"columns": jnp.asarray(SELECTION[s])} | extra(s) for s in SITES
    }


def stacked(plan, shape=SHAPE, check=lambda params: None):
    """Blocks in chunks of the batch, as training runs them; leaves of `params` are `[L, ...]`."""
    return pair.bind(
        pair.stack(half_blocks.transformer_block(plan, shape), plan.batch_chunks), check
    )


def repeated(tree, times):
    return jax.tree.map(lambda a: jnp.stack([a] * times), tree)


def run(plan, dtype=jnp.float32, aux=None, x=X, shape=SHAPE):
    """Output, gradients of the parameters and of x, of one block."""
    op = stacked(plan, shape)
    y, (grads, dx) = value_and_pullback(
        lambda params, x: op(repeated(with_selection(params, plan), 1), x, aux or {}),
        as_jax(DY, dtype),
        as_jax(PARAMS),
        as_jax(x, dtype),
    )
    return y, grads, dx


def oracle(plan, mask=None, post_norm=False):
    def save_linear(site, x):
        if plan.linear == "columns":
            return oracles.only_columns(x, SELECTION[site])
        if plan.linear == "magnitude":
            kept = {32: 16, 48: 24}[x.shape[-1]]
            return oracles.only_columns(x, oracles.columns_of_largest_norm(x, kept))
        return oracles.largest_elements(x, 0.5, np.float16) if plan.linear == "elements" else x

    attention_backward = {
        "elements": functools.partial(oracles.pruned_attention_gradients, keep=0.5),
        "channels": functools.partial(oracles.sparse_attention_gradients, num_kept=8),
    }.get(plan.attention, oracles.dense_attention_gradients)

    def save_norm(x):
        return oracles.largest_elements(x, 0.5) if plan.layer_norm == "elements" else x

    return oracles.block(
        PARAMS,
        X,
        DY,
        heads=H,
        mask=mask,
        post_norm=post_norm,
        save_linear=save_linear,
        save_norm=save_norm,
        attention_backward=attention_backward,
    )


def rounding(plan):
    """Float32; where values are stored as float16 a last bit may fall the other way."""
    return 1e-4 if "elements" in (plan.linear, plan.attention) else 1e-5


@pytest.mark.parametrize("shape", [SHAPE, POST_NORM], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
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


def plain_block(params, x, keys=None, *, rate=0.0, approximate=False, embedded=None):
    """The block as one would write it, with the dropout masks drawn from the same keys.

    `embedded`: None for a pre-norm block, else whether a post-norm block is the first.
    """

    def norm(p, x):
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        x_hat = centered / jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-6)
        return x_hat * p["scale"][None, None] + p["bias"][None, None]

    def linear(p, x):
        return jnp.matmul(x, p["kernel"]) + p["bias"][None, None]

    def dropout(index, x):
        if keys is None:
            return x
        masks = [
            jax.random.uniform(jax.random.fold_in(key, index), x.shape[1:]) >= rate for key in keys
        ]
        return x * jnp.stack(masks).astype(x.dtype) / (1 - rate)

    batch, post_norm = x.shape[0], embedded is not None
    h = norm(params["norm1"], x)
    if embedded:
        h = dropout(4, h)
    q, k, v = jnp.moveaxis(linear(params["qkv"], h).reshape(batch, N, 3, H, HEAD), (2, 3), (0, 2))
    p = jax.nn.softmax(jnp.einsum("bhnc,bhmc->bhnm", q, k) / HEAD**0.5)
    context = jnp.einsum("bhnm,bhmc->bnhc", p, v).reshape(x.shape)
    x = (h if post_norm else x) + dropout(0, linear(params["proj"], context))
    h = norm(params["norm2"], x)
    a = jax.nn.gelu(linear(params["fc1"], h), approximate=approximate)
    if not post_norm:
        a = dropout(1, a)
    return (h if post_norm else x) + dropout(2, linear(params["fc2"], a))


class TestDropout:
    KEYS = jax.random.split(jax.random.key(7), B)
    SHAPE = SHAPE._replace(dropout=0.3, approximate_gelu=True)

    @classmethod
    @functools.cache
    def expected(cls):
        plain = functools.partial(plain_block, rate=0.3, approximate=True)
        y, (grads, dx, _) = value_and_pullback(
            plain, as_jax(DY), as_jax(PARAMS), as_jax(X), cls.KEYS
        )
        return y, grads, dx

    @pytest.mark.parametrize("name", ["full", "recompute in 4 chunks"])
    def test_equals_autodiff_of_plain_code_with_the_same_masks(self, name):
        actual = run(PLANS[name], aux={"keys": self.KEYS}, shape=self.SHAPE)
        for a, e in zip(actual, self.expected(), strict=True):
            assert_close(a, e, 1e-5)

    @pytest.mark.parametrize("embedded", [True, False])
    @pytest.mark.parametrize("name", ["full", "columns, recomputed q k v"])
    def test_post_norm_drops_normalised_embeddings_too(self, name, embedded):
        """Also where q, k, v and columns of their input are made again in the backward pass."""
        plain = functools.partial(plain_block, rate=0.3, embedded=embedded)
        expected_y, (grads, dx, _) = value_and_pullback(
            plain, as_jax(DY), as_jax(PARAMS), as_jax(X), self.KEYS
        )
        aux = {"keys": self.KEYS, "embedded": jnp.full(B, embedded)}
        shape = POST_NORM._replace(dropout=0.3)
        y, actual, actual_dx = run(PLANS[name], aux=aux, shape=shape)
        assert_close(y, expected_y, 1e-5, "y")
        assert_close(actual_dx, dx, 1e-5, "dx")
        for site in SITES:
            dense = np.asarray(grads[site]["kernel"])
            kept = np.isin(np.arange(len(dense)), SELECTION[site]) | (name == "full")
            assert_close(actual[site]["kernel"], dense * kept[:, None], 1e-5, site)

    @pytest.mark.parametrize("shape", [SHAPE, POST_NORM], ids=["pre-norm", "post-norm"])
    @pytest.mark.parametrize("name", ["full", "columns", "2 chunks", "recompute", "backrazor"])
    def test_no_mask_is_stored(self, name, shape):
        op = stacked(PLANS[name], shape._replace(dropout=0.3))
        params = repeated(with_selection(as_jax(PARAMS), PLANS[name]), L)
        aux = {"keys": self.KEYS, "embedded": jnp.ones(B, bool)}
        with_keys, without = (
            saved_bytes(lambda x, a=a: op(params, x, a), as_jax(X)) for a in (aux, {})
        )
        assert with_keys == without


class TestAttentionDropout:
    KEYS = jax.random.split(jax.random.key(7), B)
    SHAPE = SHAPE._replace(attention_dropout=0.3, causal=True)

    @classmethod
    @functools.cache
    def in_one_piece(cls, name="full"):
        visibility = Visibility(lengths=jnp.array([6, 5, 6, 2], jnp.int32))
        return run(PLANS[name], aux={"keys": cls.KEYS, "visibility": visibility}, shape=cls.SHAPE)

    def test_recomputed_in_chunks_it_draws_the_same(self):
        for a, e in zip(
            self.in_one_piece("recompute in 4 chunks"), self.in_one_piece(), strict=True
        ):
            assert_close(a, e, 1e-5)

    def test_equals_the_oracle(self):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.KEYS, 5)
        dropout = oracles.dropout_factor(dropout_seeds(keys), H, N, N, 0.3)
        mask = MASK & np.tril(np.ones((N, N), bool))
        y, grads, dx = self.in_one_piece()
        expected_y, expected_grads, expected_dx = oracles.block(
            PARAMS,
            X,
            DY,
            heads=H,
            mask=mask,
            attention_forward=functools.partial(oracles.attention, dropout=dropout),
            attention_backward=functools.partial(
                oracles.dense_attention_gradients, dropout=dropout
            ),
        )
        assert_close(y, expected_y, 1e-6, "y")
        assert_close(dx, expected_dx, 1e-5, "dx")
        assert_close(grads, expected_grads, 1e-5)


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


class TestSelection:
    """Packed rows and JointSPAR flags of several blocks, as in training."""

    PLAN = dataclasses.replace(COLUMNS, batch_chunks=2)
    # Block 0 trains all, block 1 no fc1 kernel and no qkv bias, block 2 nothing.
    ACTIVE: ClassVar = {
        site: {
            "kernel": np.array([True, site != "fc1", False]),
            "bias": np.array([True, site != "qkv", False]),
        }
        for site in SITES
    }

    @staticmethod
    def blocks():
        """Three different blocks, and the selection of each."""
        params = jax.tree.map(
            lambda a: jnp.stack([as_jax(a), as_jax(0.9 * a), as_jax(a + 0.01)]), PARAMS
        )
        shifts = np.array([[0], [1], [-1]])
        columns = {
            s: jnp.asarray(
                np.where(
                    c == len(PARAMS[s]["kernel"]),
                    c,
                    np.clip(c + shifts, 0, len(PARAMS[s]["kernel"]) - 1),
                ),
                jnp.int32,
            )
            for s, c in SELECTION.items()
        }
        # Clipping repeats a column at an end: there the slot is left unused.
        for s, c in columns.items():
            size = len(PARAMS[s]["kernel"])
            repeated = np.concatenate(
                [np.zeros((L, 1), bool), np.asarray(c[:, 1:] == c[:, :-1])], axis=1
            )
            columns[s] = jnp.where(repeated, size, c)
        rows = {
            s: jnp.zeros((L, c.shape[1], PARAMS[s]["kernel"].shape[1])) for s, c in columns.items()
        }
        return params, columns, rows

    @classmethod
    @functools.cache
    def gradients(cls):
        """Of packed rows and of all other parameters."""
        params, columns, rows = cls.blocks()
        active = jax.tree.map(jnp.asarray, cls.ACTIVE)
        op = stacked(cls.PLAN, check=functools.partial(half_blocks.check_selection, cls.PLAN))

        def forward(params, rows, active, x):
            extra = {
                s: {"columns": columns[s], "rows": rows[s], "active": active[s]} for s in SITES
            }
            blocks = params | {s: params[s] | extra[s] for s in SITES}
            return op(blocks, x, {})

        _, (dparams, drows, dx) = value_and_pullback(
            lambda p, r, x: forward(p, r, active, x), as_jax(DY), params, rows, as_jax(X)
        )
        jaxpr = jax.make_jaxpr(
            lambda a, x: jax.vjp(lambda r: forward(params, r, a, x), rows)[1](x)
        )(active, as_jax(X))
        return dparams, drows, dx, jaxpr.jaxpr

    @classmethod
    @functools.cache
    def dense(cls):
        """The same three blocks, block by block, unpruned, by the oracle."""
        params = jax.tree.map(lambda a: np.asarray(a, np.float64), cls.blocks()[0])
        blocks = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(L)]
        inputs = [X]
        for block in blocks:
            inputs.append(oracles.block(block, inputs[-1], DY, heads=H)[0])
        dy, grads = DY, []
        for block, x in zip(reversed(blocks), reversed(inputs[:-1]), strict=True):
            _, g, dy = oracles.block(block, x, dy, heads=H)
            grads.insert(0, g)
        return grads, dy

    def test_dx_is_exact_and_rows_are_the_selected_dense_rows(self):
        dparams, drows, dx, _ = self.gradients()
        expected, expected_dx = self.dense()
        _, columns, _ = self.blocks()
        assert_close(dx, expected_dx, 1e-5, "dx")
        for site in SITES:
            np.testing.assert_array_equal(dparams[site]["kernel"], 0)
            for i in range(L):
                dense = np.concatenate(
                    [expected[i][site]["kernel"], np.zeros((1, dparams[site]["bias"].shape[1]))]
                )
                active = self.ACTIVE[site]
                assert_close(
                    drows[site][i],
                    dense[columns[site][i]] * active["kernel"][i],
                    1e-5,
                    f"{site} {i}",
                )
                assert_close(
                    dparams[site]["bias"][i],
                    expected[i][site]["bias"] * active["bias"][i],
                    1e-5,
                    f"{site} {i}",
                )

    def test_norms_always_train(self):
        dparams = self.gradients()[0]
        for i, block in enumerate(self.dense()[0]):
            for name in ("norm1", "norm2"):
                assert_close({k: v[i] for k, v in dparams[name].items()}, block[name], 1e-5)

    def test_products_of_frozen_tensors_are_skipped(self):
        conditions = [e for e in equations(self.gradients()[3]) if e.primitive.name == "cond"]
        skippable = {
            i.outvars[0].aval.shape
            for c in conditions
            for branch in c.params["branches"]
            for i in equations(branch.jaxpr)
            if i.primitive.name == "dot_general"
        }
        assert {(len(SELECTION[s]), PARAMS[s]["kernel"].shape[1]) for s in SITES} <= skippable


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
