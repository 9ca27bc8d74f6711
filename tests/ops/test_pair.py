"""Pairs on a toy op: binding, sequences, recomputation, chunks of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import as_jax, assert_close, equations, normal, saved_bytes, unchecked

from pbr_jax.ops.pair import Pair, bind, in_chunks, recompute, sequence

B, D = 6, 5


def scaled_sine(name):
    """`y = sin(w x + s)`, `s` per sample in aux, and an integer in params without gradient."""

    def angle(params, x, aux):
        return x * params[name]["w"][None] + aux["shift"][:, None]

    def forward(params, x, aux):
        u = angle(params, x, aux)
        return jnp.sin(u), (x, u)

    def backward(params, residual, aux, dy):
        x, u = residual
        du = dy * jnp.cos(u)
        return {name: {"w": jnp.sum(du * x, axis=0), "index": None}}, du * params[name]["w"][None]

    return Pair(forward, backward)


PARAMS = {n: {"w": as_jax(normal(i, D)), "index": jnp.arange(2)} for i, n in enumerate("ab")}
X, DY, AUX = as_jax(normal(2, B, D)), as_jax(normal(3, B, D)), {"shift": as_jax(normal(4, B))}
ONLY_A = {"a": PARAMS["a"]}
A, THEN_B = scaled_sine("a"), sequence(scaled_sine("a"), scaled_sine("b"))


def gradients(function, aux=AUX):
    def loss(weights, x):
        params = {n: PARAMS[n] | {"w": w} for n, w in weights.items()}
        return jnp.vdot(function(params, x, aux), DY)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))({n: PARAMS[n]["w"] for n in "ab"}, X)


def plain(params, x, aux):
    for name in "ab":
        x = jnp.sin(x * params[name]["w"][None] + aux["shift"][:, None])
    return x


@pytest.mark.parametrize(
    "pair",
    [
        THEN_B,
        recompute(THEN_B),
        *(in_chunks(THEN_B, n) for n in (1, 2, 3, 6)),
        in_chunks(recompute(THEN_B), 2),
    ],
    ids=[
        "sequence",
        "recompute",
        "1 chunk",
        "2 chunks",
        "3 chunks",
        "6 chunks",
        "recompute in 2 chunks",
    ],
)
def test_equals_autodiff(pair):
    value, (dw, dx) = gradients(bind(pair))
    expected_value, (expected_dw, expected_dx) = gradients(plain)
    assert_close(value, expected_value, 1e-6)
    assert_close(dx, expected_dx, 1e-6)
    assert_close(dw, expected_dw, 1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_saved_bytes(chunks):
    array = X.nbytes

    def saved(pair):
        return saved_bytes(lambda x: bind(in_chunks(pair, chunks))(PARAMS, x, AUX), X)

    assert saved(A) == 2 * array
    assert saved(THEN_B) == 4 * array
    assert saved(recompute(THEN_B)) == array


def test_recomputation_stands_behind_a_barrier():
    """Without it XLA merges both forward passes and keeps what was to be dropped."""
    op = bind(recompute(A))
    jaxpr = jax.make_jaxpr(jax.grad(lambda x: jnp.vdot(op(ONLY_A, x, AUX), DY)))(X).jaxpr
    names = [e.primitive.name for e in equations(jaxpr)]
    first = names.index("optimization_barrier")
    assert names[:first].count("sin") == 1
    assert "cos" in names[first:]


def test_keys_are_split_like_arrays():
    """Typed PRNG keys in aux, one per sample."""

    def forward(params, x, aux):
        noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))(aux["keys"], x)
        return x * noise, noise

    noisy = Pair(forward, lambda params, noise, aux, dy: (None, dy * noise))
    keys = {"keys": jax.random.split(jax.random.key(0), B)}
    whole, chunked = (
        jax.grad(lambda x, p=p: jnp.vdot(bind(p)(None, x, keys), DY))(X)
        for p in (noisy, in_chunks(noisy, 3))
    )
    np.testing.assert_array_equal(whole, chunked)


def test_check_runs_only_when_differentiated():
    seen = []
    op = bind(A, seen.append)
    op(ONLY_A, X, AUX)
    assert seen == []
    jax.grad(lambda x: jnp.sum(op(ONLY_A, x, AUX)))(X)
    assert len(seen) == 1


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_chunks = 4: must divide the batch of 6"):
        unchecked(in_chunks)(A, 4).forward(PARAMS, X, AUX)
