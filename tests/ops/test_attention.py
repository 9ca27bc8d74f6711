"""Attention: every residual against the NumPy oracle, in one piece and in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_jax,
    assert_close,
    equations,
    implemented,
    normal,
    relative_error,
    saved_bytes,
    unchecked,
    value_and_pullback,
)

from pbr_jax.ops import attention_xla
from pbr_jax.ops.attention import Settings, attention
from pbr_jax.ops.visibility import Visibility
from pbr_jax.plans import budget_for
from pbr_jax.plans import kind as kind_of

B, H, HEAD = 4, 2, 16
KEEP = 0.5  # 8 of 16 channels; half of the elements
ROUNDING = 4e-6
KINDS = ["flash", "qkv", "channels", "elements"]
EXACT = ["flash", "qkv"]
IN_BLOCKS = ["flash", "qkv", "channels"]
Q = jnp.zeros((2, 2, 5, 8))


def masked(mask):
    return {"visibility": Visibility(mask=mask)}


def inputs(n, m=None, seed=0, batch=B, head=HEAD):
    """q, k, v and a cotangent of the output."""
    shapes = [(batch, H, n, head), *[(batch, H, m or n, head)] * 2, (batch, H, n, head)]
    return [normal(seed + i, *shape) for i, shape in enumerate(shapes)]


def run(kind, q, k, v, do, mask=None, keep=KEEP, dtype=jnp.float32, implementation="xla"):
    visibility = Visibility(mask=None if mask is None else jnp.asarray(mask))
    op = functools.partial(
        attention, visibility=visibility, kind=kind, keep=keep, implementation=implementation
    )
    with implemented():
        return value_and_pullback(op, as_jax(do, dtype), *(as_jax(a, dtype) for a in (q, k, v)))


def oracle_gradients(kind, q, k, v, do, mask=None):
    if kind == "channels":
        kept = budget_for(KEEP, q.shape[-1])
        return oracles.sparse_attention_gradients(q, k, v, mask, do, kept)
    if kind == "elements":
        return oracles.pruned_attention_gradients(q, k, v, mask, do, KEEP)
    return oracles.dense_attention_gradients(q, k, v, mask, do)


def make_mask(name, n, m):
    """False hides a key."""
    padding = np.arange(m) < np.array([m, m - 1, max(1, m // 2), 1])[:, None, None, None]
    causal = np.tril(np.ones((1, 1, n, m), bool), m - n)
    per_head = np.concatenate([causal, causal[:, :, :, ::-1]], axis=1)
    return {
        "none": None,
        "padding": padding,  # [B, 1, 1, M]
        "causal": causal,  # [1, 1, N, M]
        "per head": per_head,  # [1, H, N, M]
        "all": padding & per_head,  # [B, H, N, M]; some queries see nothing
    }[name]


@pytest.mark.parametrize("kind", KINDS)
class TestAttention:
    @pytest.mark.parametrize(
        ("n", "m", "mask"),
        [
            (1, 1, "none"),
            (7, 7, "causal"),
            (13, 13, "per head"),
            (64, 64, "padding"),
            (197, 197, "none"),
            (13, 5, "all"),
            (13, 20, "all"),
        ],
    )
    def test_equals_the_oracle(self, kind, n, m, mask):
        arrays, mask = inputs(n, m), make_mask(mask, n, m)
        *qkv, do = arrays
        y, grads = run(kind, *qkv, do, mask)
        assert_close(y, oracles.attention(*qkv, mask), ROUNDING, "out")
        # A probability that float32 rounds across a boundary of float16 moves by 2^-11.
        tolerance = 1e-4 if kind == "elements" else ROUNDING
        expected = oracle_gradients(kind, *qkv, do, mask)
        for name, gradient, exact in zip("qkv", grads, expected, strict=True):
            # With one key the softmax is constant: dq and dk vanish, up to rounding.
            if np.linalg.norm(exact) < 1e-12:
                assert np.abs(gradient).max() < 1e-5
            else:
                assert_close(gradient, exact, tolerance, f"d{name}")

    def test_keeping_everything_is_exact(self, kind):
        *qkv, do = inputs(13)
        _, grads = run(kind, *qkv, do, keep=1.0)
        for actual, expected in zip(
            grads, oracles.dense_attention_gradients(*qkv, None, do), strict=True
        ):
            assert_close(actual, expected, 2e-3 if kind == "elements" else ROUNDING)

    def test_bfloat16_error_is_that_of_plain_code(self, kind):
        check_rounding(kind, jnp.bfloat16, "xla")

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("score_bytes", [2**25, 700])
    def test_saved_bytes(self, kind, dtype, score_bytes, monkeypatch):
        monkeypatch.setattr(attention_xla, "_SCORE_BYTES", score_bytes)
        n, m = 13, 20
        q, k, v = (as_jax(a, dtype) for a in inputs(n, m)[:3])
        itemsize, queries, keys = q.dtype.itemsize, H * n * HEAD, H * m * HEAD
        kept = round(KEEP * HEAD)

        def elements(size):  # all sizes here are even; 16-bit values and a bit per element
            return 2 * round(KEEP * size) + -(-size // 8)

        expected = {
            "flash": B * (2 * queries + 2 * keys) * itemsize + 4 * B * H * n,
            "qkv": B * (queries + 2 * keys) * itemsize,
            "channels": B * H * (n + 2 * m) * kept * itemsize + 2 * 4 * H * kept,
            "elements": B * (elements(queries) + 2 * elements(keys) + elements(H * n * m)),
        }[kind]
        assert saved_bytes(lambda *a: attention(*a, kind=kind, keep=KEEP), q, k, v) == expected


def check_rounding(kind, dtype, implementation):
    """Error at most 2 times that of plain code in the same dtype, of the gradients 3 times."""
    *qkv, do = inputs(64)

    def plain(q, k, v):
        scores = jnp.einsum("bhnc,bhmc->bhnm", q, k) / q.shape[-1] ** 0.5
        return jnp.einsum("bhnm,bhmc->bhnc", jax.nn.softmax(scores), v)

    plain_y, plain_grads = value_and_pullback(plain, *(as_jax(a, dtype) for a in (do, *qkv)))
    y, grads = run(kind, *qkv, do, keep=1.0, dtype=dtype, implementation=implementation)
    exact_y = oracles.attention(*qkv)
    assert y.dtype == dtype
    assert relative_error(y, exact_y) <= 2 * relative_error(plain_y, exact_y)
    exact = oracles.dense_attention_gradients(*qkv, None, do)
    for a, p, e in zip(grads, plain_grads, exact, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, e) <= 3 * relative_error(p, e)


class TestKernels:
    """The same contract, for Triton kernels (what they see is in test_visibility.py)."""

    @pytest.mark.parametrize(
        ("kind", "n", "m", "head"),
        [
            *[(kind, 197, 197, 64) for kind in IN_BLOCKS],  # ViT
            *[pytest.param(kind, 1, 1, 32, marks=pytest.mark.exhaustive) for kind in IN_BLOCKS],
            pytest.param("flash", 13, 20, 40, marks=pytest.mark.exhaustive),
            pytest.param("qkv", 20, 13, 128, marks=pytest.mark.exhaustive),
            ("qkv", 5, 450, 24),  # longer than a row on chip
            ("channels", 20, 20, 128),
        ],
    )
    def test_equal_the_oracle(self, kind, n, m, head):
        *qkv, do = inputs(n, m, batch=1, head=head)
        y, grads = run(kind, *qkv, do, implementation="triton")
        assert_close(y, oracles.attention(*qkv), ROUNDING, "out")
        expected = oracle_gradients(kind, *qkv, do)
        for name, gradient, exact in zip("qkv", grads, expected, strict=True):
            if np.linalg.norm(exact) < 1e-12:
                assert np.abs(gradient).max() < 1e-5
            else:
                assert_close(gradient, exact, ROUNDING, f"d{name}")

    @pytest.mark.parametrize(
        "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
    )
    @pytest.mark.parametrize("kind", IN_BLOCKS)
    def test_error_of_16_bits_is_that_of_plain_code(self, kind, dtype):
        check_rounding(kind, dtype, "triton")

    def test_keep_what_plain_jax_keeps(self):
        q, k, v, _ = map(as_jax, inputs(13))
        for kind in IN_BLOCKS:
            kept = []
            for implementation in ("xla", "triton"):
                op = functools.partial(
                    attention, kind=kind, keep=KEEP, implementation=implementation
                )
                with implemented():
                    kept.append(saved_bytes(op, q, k, v))
            assert kept[0] == kept[1]

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (masked(jnp.ones((1, 1, 1, 5), bool)), "mask is an N x N pattern; give lengths"),
            ({"kind": "elements"}, "kind = 'elements': keeps the probabilities"),
            ({"q": jnp.zeros((2, 2, 5, 320))}, "head = 320: must be at most 256"),
        ],
    )
    def test_what_they_cannot_take_is_refused(self, given, reason):
        q = given.get("q", Q)
        with implemented(), pytest.raises(ValueError, match=f"'triton' of attention: {reason}"):
            unchecked(attention)(**{"q": q, "k": q, "v": q} | given, implementation="triton")


@functools.cache
def in_one_piece(kind, mask):
    return run(kind, *inputs(13, 20), make_mask(mask, 13, 20))


# A sample of 13 queries and 20 keys has 4 * 2 * 13 * 20 = 2080 bytes of scores.
@pytest.mark.parametrize(
    ("kind", "score_bytes", "mask"),
    [
        *[(r, 4160, "all") for r in IN_BLOCKS],  # 2 chunks of 2 samples
        *[(r, 2080, "all") for r in IN_BLOCKS],  # 4 chunks of one sample
        *[
            (r, 700, mask) for r in IN_BLOCKS for mask in ("all", "none")
        ],  # and queries as 5 + 5 + 3
        ("elements", 4160, "all"),  # in chunks of samples only
    ],
)
def test_in_blocks_as_in_one_piece(kind, mask, score_bytes, monkeypatch):
    whole = in_one_piece(kind, mask)
    monkeypatch.setattr(attention_xla, "_SCORE_BYTES", score_bytes)
    arrays, mask = inputs(13, 20), make_mask(mask, 13, 20)
    jaxpr = jax.make_jaxpr(lambda *a: attention(*a, kind=kind))(*map(as_jax, arrays[:3])).jaxpr
    assert any(e.primitive.name == "scan" for e in equations(jaxpr)), "the test is not in blocks"
    in_blocks = run(kind, *arrays, mask)
    for a, b in zip(jax.tree.leaves(in_blocks), jax.tree.leaves(whole), strict=True):
        assert_close(a, b, ROUNDING)


@pytest.mark.parametrize("kind", IN_BLOCKS)
def test_no_intermediate_of_the_size_of_all_scores(kind, monkeypatch):
    budget = 2**14
    monkeypatch.setattr(attention_xla, "_SCORE_BYTES", budget)
    *qkv, do = map(as_jax, inputs(197))

    def both_passes(do, q, k, v):
        _, pullback = jax.vjp(lambda *a: attention(*a, kind=kind, keep=KEEP), q, k, v)
        return pullback(do)

    jaxpr = jax.make_jaxpr(both_passes)(do, *qkv).jaxpr
    # Stacked blocks of queries are padded to whole blocks: a little over the size of q.
    allowed = int(1.2 * max(do.nbytes, budget))
    sizes = [v.aval.size * v.aval.dtype.itemsize for e in equations(jaxpr) for v in e.outvars]
    assert max(sizes) <= allowed < 4 * B * H * 197 * 197


def test_a_query_that_sees_nothing_attends_to_all_alike():
    *qkv, do = inputs(7)
    mask = np.ones((1, 1, 7, 7), bool)
    mask[:, :, 3] = False
    for kind in EXACT:
        y, (dq, _, _) = run(kind, *qkv, do, mask)
        assert_close(y[:, :, 3], qkv[2].mean(axis=2), ROUNDING)
        np.testing.assert_array_equal(dq[:, :, 3], 0)


def test_channels_are_chosen_by_the_energy_of_their_share_of_the_scores():
    *qkv, _ = inputs(13)
    saved = kind_of("attention", "channels").save(
        as_jax(qkv), None, None, None, Settings(keep=KEEP), None
    )
    q, k, v = qkv
    shared = ((q**2).sum(2) * (k**2).sum(2)).mean(0)
    for channels, energy in (
        (saved.qk_channels, shared),
        (saved.v_channels, (v**2).sum(2).mean(0)),
    ):
        np.testing.assert_array_equal(
            channels, np.sort(np.argsort(-energy, axis=-1)[:, :8], axis=-1)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "flesh"},
            r"attention = 'flesh': must be one of flash, qkv, .*; did you mean flash?",
        ),
        ({"kind": "recompute"}, r"kind = 'recompute': needs the layer that makes q, k and v"),
        ({"k": Q[:, :1]}, r"q, k, v have shapes \(2, 2, 5, 8\), \(2, 1, 5, 8\)"),
        ({"k": Q[:, :0], "v": Q[:, :0]}, "k and v have 0 heads: must divide the 2 heads of q"),
        ({"v": Q[:, :, :4]}, r"\(2, 2, 4, 8\): must be \[B, H, N, head\]"),
        ({"q": Q[0]}, r"q, k, v have shapes \(2, 5, 8\)"),
        (
            {"k": Q.astype(jnp.bfloat16)},
            r"q, k, v have dtypes float32, bfloat16, float32: must be the same",
        ),
        (masked(jnp.ones((2, 1, 5, 5))), r"mask is float32 \(2, 1, 5, 5\): must be bool"),
        (
            masked(jnp.ones((5, 5), bool)),
            r"mask is bool \(5, 5\): must be bool \[B or 1, H or 1, N or 1, M\]",
        ),
        (masked(jnp.ones((2, 1, 5, 4), bool)), r"mask is bool \(2, 1, 5, 4\)"),
        ({"kind": "elements", "keep": 0.0}, r"keep = 0\.0: must be in \(0, 1\]"),
        ({"kind": "channels", "keep": 1.1}, r"keep = 1\.1: must be in \(0, 1\]"),
    ],
)
def test_errors_name_argument_value_and_rule(arguments, message):
    given = {"q": Q, "k": Q, "v": Q} | arguments
    with pytest.raises(ValueError, match=message):
        unchecked(attention)(**given)
