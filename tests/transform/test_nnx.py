"""NNX modules: the same class and the same state of parameters, also under `nnx.jit`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rewritten import check_nnx, groups_of, numbers, turned

from pbr_jax import prune

D, HEADS = 64, 4


@pytest.fixture(autouse=True)
def promotion():
    """Their code mixes types and ranks, which this suite forbids its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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


def test_block_with_statistics_and_dropout():
    pruned, grads, mine, _ = check_nnx(Block(nnx.Rngs(0)), numbers(0, 2, 5, D))
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
    assert np.any(mine.norm.mean[...] != 0)


def test_scanned_and_rematerialised():
    pruned, grads, _, _ = check_nnx(Stack(nnx.Rngs(0)), numbers(0, 2, D))
    assert [(s.num_columns, s.stack_shape) for s in pruned.sites] == [(D, (3,))]
    assert grads["layers"]["kernel"].shape == (3, 16, D)


def test_evaluates_and_refuses_to_be_differentiated():
    module, x = nnx.Linear(D, 8, rngs=nnx.Rngs(0)), numbers(0, 4, D)
    pruned = prune(module, x)
    np.testing.assert_array_equal(pruned.apply(module, x), module(x))
    params = nnx.state(module, nnx.Param)
    with pytest.raises(ValueError, match="kernel is pruned, and is differentiated without"):
        jax.grad(lambda params: pruned.apply(params, x).sum())(params)


class Layer(nnx.Module):
    """Bonsai's ViT: the keys of its dropout come with the call."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=rngs)
        self.linear1 = nnx.Linear(D, 2 * D, rngs=rngs)
        self.linear2 = nnx.Linear(2 * D, D, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, deterministic=False)
        self.before, self.after = (nnx.LayerNorm(D, rngs=rngs) for _ in range(2))

    def __call__(self, x, rngs):
        x = x + self.attention(self.before(x), None, rngs=rngs)
        y = self.linear2(jax.nn.gelu(self.linear1(self.after(x))))
        return x + self.dropout(y, rngs=rngs)


def test_bonsai_vit():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.projection = nnx.Conv(3, D, (4, 4), strides=(4, 4), rngs=rngs)
            self.cls_token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, D)))
            self.layers = nnx.List([Layer(rngs) for _ in range(2)])
            self.classifier = nnx.Linear(D, 5, rngs=rngs)

        def __call__(self, x, rngs):
            x = self.projection(x).reshape(len(x), -1, D)
            x = jnp.concatenate([jnp.tile(self.cls_token[...], (len(x), 1, 1)), x], axis=1)
            for layer in self.layers:
                x = layer(x, rngs)
            return self.classifier(x[:, 0])

    images, keys = numbers(0, 2, 8, 8, 3), nnx.Rngs(1)
    pruned, _, _, (_, moved) = check_nnx(Model(nnx.Rngs(0)), images, keys)
    block = [["key", "query", "value"], ["linear1"], ["linear2"], ["out"]]
    assert groups_of(pruned) == sorted(2 * block)
    assert pruned.unpruned["projection/kernel"] == "a convolution"
    assert pruned.unpruned["classifier/kernel"] == "named by exclude"
    assert moved.default.count[...] == 2 and keys.default.count[...] == 0


def test_gemma_of_nnx():
    """Einsums over kernels `[2, H, D, K]` and `[H, K, D]`, soft caps, a scaled and tied table."""

    class Block(nnx.Module):
        def __init__(self, rngs):
            einsum = functools.partial(nnx.Einsum, bias_shape=None, rngs=rngs)
            self.q_einsum = einsum("BTD,NDH->BTNH", (HEADS, D, 16))
            self.kv_einsum = einsum("BSD,CKDH->CBSKH", (2, 2, D, 16))
            self.out_einsum = einsum("BTNH,NHD->BTD", (HEADS, 16, D))
            linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
            self.gate_proj, self.up_proj = (linear(D, 96) for _ in range(2))
            self.down_proj = linear(96, D)
            self.norms = nnx.List([nnx.RMSNorm(D, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            h = self.norms[0](x)
            q, (k, v) = turned(self.q_einsum(h)), self.kv_einsum(h)
            q = q.reshape(*q.shape[:2], 2, 2, 16)
            scores = jnp.einsum("BTKGH,BSKH->BTKGS", q, turned(k))
            y = jax.nn.softmax(50.0 * jnp.tanh(scores / 50.0), axis=-1)
            y = jnp.einsum("BTKGS,BSKH->BTKGH", y, v).reshape(*x.shape[:2], HEADS, 16)
            x = x + self.out_einsum(y)
            h = self.norms[1](x)
            return x + self.down_proj(jax.nn.gelu(self.gate_proj(h)) * self.up_proj(h))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embedder = nnx.Embed(11, D, rngs=rngs)
            self.layers = nnx.List([Block(rngs)])

        def __call__(self, tokens):
            x = self.embedder(tokens) * D**0.5
            for layer in self.layers:
                x = layer(x)
            return 30.0 * jnp.tanh(self.embedder.attend(x) / 30.0)

    pruned, grads, _, _ = check_nnx(Model(nnx.Rngs(0)), jnp.arange(12).reshape(2, 6) % 11)
    assert groups_of(pruned) == [
        ["down_proj"],
        ["gate_proj", "up_proj"],
        ["kv_einsum", "q_einsum"],
        ["out_einsum"],
    ]
    assert grads["layers"][0]["kv_einsum"]["kernel"].shape == (16, 2, 2, 16)
    assert "also read by index" in pruned.unpruned["embedder/embedding"]
