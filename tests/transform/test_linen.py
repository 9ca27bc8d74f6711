"""Linen modules as others write them, small: every product is reached, and the rest is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from rewritten import check_linen, groups_of, numbers, turned

D, HEADS = 64, 4
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))


@pytest.fixture(autouse=True)
def promotion():
    """Their code mixes types and ranks, which this suite forbids its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class EncoderBlock(nn.Module):
    """Google's ViT: attention and MLP, each with dropout; as big_vision, also what is between."""

    attention_dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, deterministic):
        between = {}
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = between["sa"] = nn.MultiHeadDotProductAttention(
            HEADS,
            dtype=self.dtype,
            dropout_rate=self.attention_dropout,
            broadcast_dropout=False,
            deterministic=deterministic,
        )(y, y)
        x = x + nn.Dropout(0.1)(y, deterministic)
        y = nn.Dense(2 * D, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        y = nn.Dropout(0.1)(nn.gelu(y), deterministic)
        y = between["mlp"] = nn.Dense(D, dtype=self.dtype)(y)
        return x + nn.Dropout(0.1)(y, deterministic), between


def test_google_vision_transformer():
    """Patches by convolution, a class token, dropout, statistics of a hybrid's stem."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Conv(D, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x)
            x = nn.BatchNorm(use_running_average=not train)(x).reshape(len(x), -1, D)
            cls = self.param("cls", nn.initializers.zeros, (1, 1, D))
            x = jnp.concatenate([jnp.tile(cls, [len(x), 1, 1]), x], axis=1)
            x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, 5, D))
            x = EncoderBlock(0.1)(nn.Dropout(0.1)(x, not train), not train)[0]
            return nn.Dense(5, name="head")(nn.LayerNorm()(x)[:, 0])

    rngs = {"dropout": jax.random.key(1)}
    pruned = check_linen(Model(), numbers(0, 2, 8, 8, 3), train=True, rngs=rngs)
    assert groups_of(pruned) == [["Dense_0"], ["Dense_1"], ["key", "query", "value"], ["out"]]
    dense = pruned.unpruned
    assert dense["embedding/kernel"] == "a convolution" and "`tile`" in dense["cls"]
    assert dense["head/kernel"] == "named by exclude" and "`add`" in dense["pos_embedding"]


def test_big_vision():
    """bfloat16 in a scan of rematerialised blocks, what is between them, a head of attention."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            block = nn.remat(
                EncoderBlock,
                prevent_cse=False,
                static_argnums=(2,),
                policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            )
            x, between = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=3,
            )(dtype="bfloat16")(jnp.asarray(x, jnp.bfloat16), not train)
            probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, D))
            y = nn.MultiHeadDotProductAttention(HEADS)(jnp.tile(probe, [len(x), 1, 1]), x)
            return nn.Dense(5, name="head")(y[:, 0]), jax.tree.map(lambda a: a[-1], between)

    rngs = {"dropout": jax.random.key(1)}
    pruned = check_linen(Model(), numbers(0, 2, 5, D), train=True, rngs=rngs, tolerance=2e-2)
    # The head's query reads the probe, its key and value the blocks' output.
    assert groups_of(pruned) == [
        ["Dense_0"],
        ["Dense_1"],
        ["key", "query", "value"],
        ["key", "value"],
        ["out"],
        ["out"],
        ["query"],
    ]
    assert {s.stack_shape for s in pruned.sites if "Scan" in s.path} == {(3,)}
    assert "`tile`" in pruned.unpruned["probe"]


def test_linen_decoder_with_a_tied_head():
    """GQA, RoPE and SwiGLU in a scan of rematerialised blocks; the table is read by index too."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            dense = functools.partial(nn.DenseGeneral, use_bias=False)
            h = nn.RMSNorm()(x)
            q, k, v = (dense((n, 16), name=name)(h) for name, n in (("q", 4), ("k", 2), ("v", 2)))
            k, v = (jnp.repeat(a, 2, axis=2) for a in (turned(k), v))
            y = nn.dot_product_attention(turned(q), k, v, mask=nn.make_causal_mask(x[..., 0]))
            x = x + dense(D, axis=(-2, -1), name="o")(y)
            h = nn.RMSNorm()(x)
            h = nn.silu(dense(96, name="gate")(h)) * dense(96, name="up")(h)
            return x + nn.Einsum((96, D), "bnf,fd->bnd", False, name="down")(h), None

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            table = nn.Embed(11, D, name="table")
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            blocks = nn.scan(nn.remat(Block, prevent_cse=False), length=2, **axes)()
            return table.attend(nn.RMSNorm()(blocks(table(tokens), None)[0]))

    pruned = check_linen(Decoder(), TOKENS)
    assert groups_of(pruned) == [["down"], ["gate", "up"], ["k", "q", "v"], ["o"]]
    assert "also read by index" in pruned.unpruned["table/embedding"]


@pytest.mark.parametrize("axis", [0, 1])
def test_experts_of_linen(axis):
    """`nn.vmap` over kernels stacked along any axis: one selection for all experts."""

    class Expert(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(D, name="down")(nn.gelu(nn.Dense(80, name="up")(x)))

    class Mixture(nn.Module):
        @nn.compact
        def __call__(self, x):
            weight = nn.softmax(nn.Dense(3, name="router")(x))
            experts = nn.vmap(
                Expert,
                variable_axes={"params": axis},
                split_rngs={"params": True},
                in_axes=None,
                out_axes=-1,
                axis_size=3,
            )()
            return jnp.sum(weight[:, None] * experts(x), axis=-1)

    pruned = check_linen(Mixture(), numbers(0, 5, D))
    # The router reads what the experts read.
    assert groups_of(pruned) == [["down"], ["router", "up"]]
