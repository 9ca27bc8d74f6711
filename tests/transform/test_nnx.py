"""NNX modules: the same class and the same state of parameters, also under `nnx.jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rewritten import compare, loss_of, numbers, selection_of

from pbr_jax import prune

D = 64


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(D, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, D, decode=False, rngs=rngs)
        self.split = nnx.LinearGeneral(D, (4, 20), rngs=rngs)
        self.joined = nnx.Einsum("...hk,hkd->...d", (4, 20, D), None, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.joined(self.dropout(jnp.tanh(self.split(x))))


class Stack(nnx.Module):
    """Blocks stacked by `nnx.vmap` and run by `nnx.scan` and `nnx.remat`."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def layers(rngs):
            return nnx.Linear(D, D, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def run(layer, x):
            return jnp.tanh(layer(x))

        return run(self.layers, x)


def gradients_of(module, x, seed=0):
    """Losses and gradients of a module pruned and as it is, and both modules afterwards."""
    graph, state = nnx.split(module)
    mine, stock = (nnx.merge(graph, jax.tree.map(jnp.copy, state)) for _ in range(2))
    pruned = prune(module, x, keep=0.25)
    selection = selection_of(pruned, seed)
    loss = loss_of(lambda module, x: module(x))

    @nnx.jit
    def run(module, selection, x):
        value, grads = pruned.value_and_grad(loss)(module, selection, x)
        return value, grads, pruned.dense(grads, selection), pruned.masks(selection)

    value, grads, unpacked, masks = run(mine, selection, x)
    expected, dense = nnx.jit(nnx.value_and_grad(loss))(stock, x)
    np.testing.assert_array_equal(value, expected)
    compare(unpacked, masks, dense)
    return pruned, grads, mine, stock


def test_block_with_statistics_and_dropout():
    pruned, grads, mine, stock = gradients_of(Block(nnx.Rngs(0)), numbers(0, 2, 5, D))
    assert [site.path for site in pruned.sites] == [
        "attention/key/kernel",
        "attention/query/kernel",
        "attention/value/kernel",
        "attention/out/kernel",
        "joined/kernel",
        "split/kernel",
    ]
    assert len(pruned.groups) == 4
    assert isinstance(grads, nnx.State)
    # Statistics and counts of random keys have moved as they would have.
    for moved, expected in zip(
        jax.tree.leaves(nnx.state(mine, nnx.Not(nnx.Param))),
        jax.tree.leaves(nnx.state(stock, nnx.Not(nnx.Param))),
        strict=True,
    ):
        if jnp.issubdtype(moved.dtype, jax.dtypes.prng_key):
            moved, expected = jax.random.key_data(moved), jax.random.key_data(expected)
        np.testing.assert_array_equal(moved, expected)
    assert np.any(mine.norm.mean[...] != 0)


def test_scanned_and_rematerialised():
    pruned, grads, _, _ = gradients_of(Stack(nnx.Rngs(0)), numbers(0, 2, D))
    assert [(s.num_columns, s.stack_shape) for s in pruned.sites] == [(D, (3,))]
    assert grads["layers"]["kernel"].shape == (3, 16, D)


def test_evaluates_and_refuses_to_be_differentiated():
    module, x = nnx.Linear(D, 8, rngs=nnx.Rngs(0)), numbers(0, 4, D)
    pruned = prune(module, x)
    np.testing.assert_array_equal(pruned.apply(module, x), module(x))
    params = nnx.state(module, nnx.Param)
    with pytest.raises(ValueError, match="kernel is pruned, and is differentiated without"):
        jax.grad(lambda params: pruned.apply(params, x).sum())(params)
