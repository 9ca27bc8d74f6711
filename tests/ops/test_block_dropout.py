"""Dropout of a transformer block against autodiff of plain code with the same masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import as_jax, assert_close, saved_bytes, value_and_pullback
from small_block import (
    DY,
    MASK,
    PARAMS,
    PLANS,
    POST_NORM,
    SELECTION,
    SHAPE,
    B,
    H,
    L,
    N,
    X,
    plain_block,
    repeated,
    run,
    stacked,
    with_selection,
)

from pbr_jax.ops.visibility import Visibility, dropout_seeds
from pbr_jax.plans import SITES


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

    @pytest.mark.parametrize(
        ("name", "embedded"),
        [
            ("full", True),
            pytest.param("full", False, marks=pytest.mark.exhaustive),
            pytest.param("columns, recomputed q k v", True, marks=pytest.mark.exhaustive),
            ("columns, recomputed q k v", False),
        ],
    )
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
