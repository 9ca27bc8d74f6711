"""Pairs on a toy op: binding, sequences, recomputation, stacks in chunks of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measures import as_jax, assert_close, equations, exact_jit, normal, saved_bytes, unchecked

from pbr_jax.ops.exchange import Exchange
from pbr_jax.ops.pair import Pair, bind, recompute, sequence
from pbr_jax.ops.stack import stack

B, D, L = 6, 5, 3


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
STACKED = {
    n: {"w": as_jax(normal(5 + i, L, D)), "index": jnp.zeros((L, 2), jnp.int32)}
    for i, n in enumerate("ab")
}
X, DY, AUX = as_jax(normal(2, B, D)), as_jax(normal(3, B, D)), {"shift": as_jax(normal(4, B))}
ONLY_A = {"a": PARAMS["a"]}
A, AND_B = scaled_sine("a"), scaled_sine("b")
THEN_B = sequence(A, AND_B)


def gradients(function, given=PARAMS):
    def loss(weights, x):
        params = {n: given[n] | {"w": w} for n, w in weights.items()}
        return jnp.vdot(function(params, x, AUX), DY)

    return jax.jit(jax.value_and_grad(loss, (0, 1)))({n: given[n]["w"] for n in "ab"}, X)


def plain(params, x, aux):
    for name in "ab":
        x = jnp.sin(x * params[name]["w"][None] + aux["shift"][:, None])
    return x


def assert_equal_gradients(actual, expected):
    value, (dw, dx) = actual
    expected_value, (expected_dw, expected_dx) = expected
    assert_close(value, expected_value, 1e-6)
    assert_close(dx, expected_dx, 1e-6)
    assert_close(dw, expected_dw, 1e-6)


@pytest.mark.parametrize("pair", [THEN_B, recompute(THEN_B)], ids=["sequence", "recompute"])
def test_equals_autodiff(pair):
    assert_equal_gradients(gradients(bind(pair)), gradients(plain))


@pytest.mark.parametrize(
    "pair",
    [
        *(stack([A, AND_B], n) for n in (1, 2, 3, 6)),
        stack([recompute(THEN_B)], 2),
        stack([recompute(THEN_B)], 2, on_host=True),
        stack([A, AND_B], on_host=True),
    ],
    ids=[
        *("1 chunk", "2 chunks", "3 chunks", "6 chunks"),
        "recompute in 2 chunks",
        "recompute in 2 chunks on the host",
        "on the host",
    ],
)
def test_a_stack_equals_autodiff(pair):
    def one_by_one(params, x, aux):
        for i in range(L):
            x = plain(jax.tree.map(lambda a, i=i: a[i], params), x, aux)
        return x

    assert_equal_gradients(gradients(bind(pair), STACKED), gradients(one_by_one, STACKED))


@pytest.mark.parametrize("chunks", [1, 3])
def test_saved_bytes(chunks):
    array = X.nbytes

    def saved(*pairs):
        return saved_bytes(lambda x: bind(stack(pairs, chunks))(STACKED, x, AUX), X)

    assert saved(A) == L * 2 * array
    assert saved(A, AND_B) == saved(THEN_B) == L * 4 * array
    assert saved(recompute(THEN_B)) == L * array


def test_a_block_is_told_its_number():
    def enter(aux, index):
        return {"shift": aux["shift"] * jnp.float32(index)}

    def one_by_one(params, x, aux):
        for i in range(L):
            x = plain(jax.tree.map(lambda a, i=i: a[i], params), x, enter(aux, i))
        return x

    actual = gradients(bind(stack([A, AND_B], 2, enter)), STACKED)
    assert_equal_gradients(actual, gradients(one_by_one, STACKED))


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("depth", [1, L])
def test_gradients_of_every_block_are_exchanged_once(chunks, depth):
    """Parameters come by `gather`; each gradient goes by `reduce`, and that of `x` does not."""

    def gather(params, path):
        assert path == ("blocks",)
        return params | {"a": params["a"] | {"w": 2 * params["a"]["w"]}}

    def reduce(grads, params):
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, PARAMS)
        return {n: {"w": 3 * own["w"], "index": None} for n, own in grads.items()}

    given = jax.tree.map(lambda a: a[:depth], STACKED)
    exchange = Exchange(gather, reduce, collect=lambda array: array, devices=1)
    exchanged = stack([A, AND_B], chunks, None, exchange, ("blocks",))
    value, (dw, dx) = gradients(bind(exchanged), given)
    double = given | {"a": given["a"] | {"w": 2 * given["a"]["w"]}}
    expected, (expected_dw, expected_dx) = gradients(bind(stack([A, AND_B], chunks)), double)
    assert_close(value, expected, 1e-6)
    assert_close(dx, expected_dx, 1e-6)
    assert_close(dw, jax.tree.map(lambda a: 3 * a, expected_dw), 1e-6)


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

    noisy = Pair(forward, lambda params, noise, aux, dy: ({"index": None}, dy * noise))
    keys, params = {"keys": jax.random.split(jax.random.key(0), B)}, {"index": jnp.arange(1)}
    whole, chunked = (
        exact_jit(jax.grad(lambda x, p=p: jnp.vdot(bind(p)(params, x, keys), DY)))(X)
        for p in (noisy, stack([noisy], 3))
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
        unchecked(stack)([A], 4).forward(STACKED, X, AUX)
