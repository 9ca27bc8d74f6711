"""Grouped queries: heads of q that share one of k and v, which is never repeated in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from measures import (
    as_jax,
    assert_close,
    implemented,
    normal,
    relative_error,
    saved_bytes,
    unchecked,
    value_and_pullback,
)

from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.kernels import attention_backward, attention_blocks
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import attention_xla
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility, dropout_seeds

B, H, N, HEAD = 2, 4, 37, 16
RATE, WINDOW = 0.25, 11
SEGMENTS = np.repeat([[1, 1, 2, 0], [3, 3, 3, 3]], 10, axis=1)[:, :N].astype(np.int32)
KEYS = jax.random.split(jax.random.key(3), B)
ROUNDING = 4e-6
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@functools.cache
def inputs(kv_heads, head=HEAD):
    """q, k, v and a cotangent of the output."""
    return [normal(40 + i, B, h, N, head) for i, h in enumerate((H, kv_heads, kv_heads, H))]


def told(dropout=0.0):
    """Causal, segments and a window, as a decoder has them."""
    return {
        "visibility": Visibility(
            segment_ids=jnp.asarray(SEGMENTS), seeds=dropout_seeds(KEYS) if dropout else None
        ),
        "causal": True,
        "window": WINDOW,
        "dropout": dropout,
    }


def seen():
    rows, keys = np.arange(N)[:, None], np.arange(N)
    causal = (keys <= rows) & (keys > rows - WINDOW)
    return causal & (SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None])


def run(kind, kv_heads, implementation, dtype=jnp.float32, **given):
    op = functools.partial(attention, kind=kind, implementation=implementation, **given)
    *qkv, do = (as_jax(a, dtype) for a in inputs(kv_heads))
    with implemented():
        return value_and_pullback(op, do, *qkv)


def oracle(kv_heads, mask=None, dropout=1.0):
    """Output and gradients in float64, by k and v that are repeated; theirs are summed again."""
    q, k, v, do = inputs(kv_heads)
    k, v = (np.repeat(a, H // kv_heads, axis=1) for a in (k, v))
    dq, *others = oracles.dense_attention_gradients(q, k, v, mask, do, dropout)
    dk, dv = (g.reshape(B, kv_heads, -1, N, HEAD).sum(axis=2) for g in others)
    return oracles.attention(q, k, v, mask, dropout), (dq, dk, dv)


def check(found, expected):
    leaves = map(jax.tree.leaves, (found, expected))
    for name, a, e in zip(("out", "dq", "dk", "dv"), *leaves, strict=True):
        assert a.shape == e.shape
        assert_close(a, e, ROUNDING, name)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several blocks of queries and of keys, the last of each ragged."""
    blocks = {"forward": (16, 16), "queries": (16, 32), "keys": (32, 16)}
    monkeypatch.setattr(
        attention_blocks, "blocks_for", lambda part, *_: Blocks(*blocks[part], num_stages=2)
    )


@pytest.mark.parametrize(
    ("kind", "kv_heads", "implementation", "dropout"),
    [
        ("flash", 2, "xla", 0.0),
        ("qkv", 1, "xla", RATE),
        ("qkv", 1, "triton", 0.0),  # whole rows
        exhaustive("flash", 1, "triton", 0.0),
        exhaustive("qkv", 2, "triton", RATE),
        exhaustive("flash", 4, "triton", RATE),
    ],
)
def test_equals_the_oracle(kind, kv_heads, implementation, dropout, small_tiles):
    factor = oracles.dropout_factor(dropout_seeds(KEYS), H, N, N, RATE) if dropout else 1.0
    check(run(kind, kv_heads, implementation, **told(dropout)), oracle(kv_heads, seen(), factor))


@pytest.mark.parametrize("kind", ["flash", exhaustive("qkv")])
def test_in_blocks_of_samples_and_queries(kind, monkeypatch):
    monkeypatch.setattr(attention_xla, "_SCORE_BYTES", 4 * H * N * N // 3)
    check(run(kind, 2, "xla", **told()), oracle(2, seen()))


@pytest.mark.parametrize("implementation", ["xla", "triton"])
def test_bfloat16_error_is_that_of_plain_code_with_repeated_heads(implementation):
    def plain(q, k, v):
        k, v = (jnp.repeat(a, H // 2, axis=1) for a in (k, v))
        scores = jnp.einsum("bhnc,bhmc->bhnm", q, k) / q.shape[-1] ** 0.5
        return jnp.einsum("bhnm,bhmc->bhnc", jax.nn.softmax(scores), v)

    *qkv, do = (as_jax(a, jnp.bfloat16) for a in inputs(2))
    plainly = value_and_pullback(plain, do, *qkv)
    found = run("flash", 2, implementation, jnp.bfloat16)
    for a, p, e in zip(*map(jax.tree.leaves, (found, plainly, oracle(2))), strict=True):
        assert a.dtype == jnp.bfloat16
        assert relative_error(a, e) <= 2 * relative_error(p, e)


def test_every_gradient_of_k_and_v_is_written_once(small_tiles, monkeypatch):
    """One program sums a group: without atomics nothing may be written twice, or not at all."""
    stored, written = attention_backward.store, []

    def once(ref, tokens, value, channels=None):
        # What no one wrote is NaN in the interpreter; what is written again becomes infinite.
        old = attention_backward.load(ref, tokens, channels)
        written.append(value.shape)
        stored(ref, tokens, jnp.where(jnp.isnan(old), value, jnp.inf), channels)

    monkeypatch.setattr(attention_backward, "store", once)
    factor = oracles.dropout_factor(dropout_seeds(KEYS), H, N, N, RATE)
    check(run("flash", 2, "triton", **told(RATE)), oracle(2, seen(), factor))
    assert written, "the test saw no store"


@pytest.mark.parametrize("kind", ["flash", "qkv"])
def test_k_and_v_are_kept_once_for_a_group(kind):
    q, k, v, _ = map(as_jax, inputs(2))
    rows = {"flash": q.nbytes + 4 * B * H * N, "qkv": 0}[kind]
    kept = saved_bytes(functools.partial(attention, kind=kind), q, k, v)
    assert kept == q.nbytes + k.nbytes + v.nbytes + rows


Q, TOO_MANY = jnp.zeros((2, 6, 5, 8)), jnp.zeros((2, 4, 5, 8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "k and v have 4 heads: must divide the 6 heads of q"),
        (
            {"k": Q[:, :2], "v": Q[:, :2], "kind": "channels"},
            "kind = 'channels' with 6 heads of q and 2 of k and v: needs as many of each; take",
        ),
        (
            {"k": Q[:, :2], "v": Q[:, :2], "kind": "elements"},
            "kind = 'elements' with 6 heads of q and 2 of k and v",
        ),
    ],
)
def test_errors_name_argument_value_and_rule(given, message):
    with pytest.raises(ValueError, match=message):
        unchecked(attention)(**{"q": Q, "k": TOO_MANY, "v": TOO_MANY} | given)


@pytest.mark.gpu_compile
@pytest.mark.parametrize(
    ("implementation", "kind", "most_mib"),
    [
        ("xla", "flash", 128),
        ("triton", "flash", 4),
        exhaustive("xla", "qkv", 128),
        exhaustive("triton", "qkv", 4),
    ],
)
def test_a_decoder_of_2048_tokens_needs_little_beside_its_arrays(implementation, kind, most_mib):
    """Scores of all heads would be 2 GiB, repeated k and v 128 MiB and their gradients too."""
    spec = jax.ShapeDtypeStruct

    def both_passes(do, q, k, v, segments, window):
        op = functools.partial(
            attention,
            visibility=Visibility(segment_ids=segments),
            causal=True,
            window=window,
            kind=kind,
            implementation=implementation,
        )
        y, pullback = jax.vjp(op, q, k, v)
        return y, pullback(do)

    q, k = (spec((4, heads, 2048, 128), jnp.bfloat16) for heads in (32, 8))
    args = (q, q, k, k, spec((4, 2048), jnp.int32), spec((), jnp.int32))
    assert memory(compile_for(both_passes, args, CARDS["rtx4090"])).temp_bytes < most_mib * 2**20
