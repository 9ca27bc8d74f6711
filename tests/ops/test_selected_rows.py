"""Packed rows and JointSPAR's flags of several transformer blocks, as in training."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from measures import as_jax, assert_close, equations, value_and_pullback
from small_block import COLUMNS, DY, PARAMS, SELECTION, H, L, X, stacked

from pbr_jax.ops import half_blocks
from pbr_jax.plans import SITES


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
