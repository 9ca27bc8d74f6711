"""Kinds of code that `prune` reaches, each equal to dense autodiff in the rows that it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from rewritten import (
    check,
    check_against_dense,
    loss_of,
    numbers,
    selection_of,
    variables_of,
    weights,
)

from pbr_jax import prune

D = 64


def normalised(x):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def attention(q, k, v):
    scores = jnp.einsum("bnhk,bmhk->bhnm", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("bhnm,bmhk->bnhk", nn.softmax(scores), v)


def members(pruned):
    return sorted(group.paths for group in pruned.groups.values())


def test_encoder_of_linen():
    """Stock layers, dropout, batch norm: q, k and v share one selection, the head stays dense."""

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            h = nn.gelu(nn.Dense(2 * D)(nn.BatchNorm(use_running_average=not train)(x)))
            x = x + nn.Dense(D)(nn.Dropout(0.1, deterministic=not train)(h))
            return nn.Dense(5, name="head")(x[:, 0])

    model, x = Encoder(), numbers(0, 2, 5, D)
    variables = variables_of(model, x, train=False)
    pruned = prune(model, x, True, keep=0.25)
    names = ("key", "query", "value", "out")
    attn = [f"MultiHeadDotProductAttention_0/{name}/kernel" for name in names]
    assert members(pruned) == [
        ("Dense_0/kernel",),
        ("Dense_1/kernel",),
        tuple(attn[:3]),
        (attn[3],),
    ]
    assert pruned.unpruned["head/kernel"] == "named by exclude"

    def loss(params, x):
        out, changed = model.apply(
            variables | {"params": params},
            x,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        return loss_of(lambda params, x: (out, changed))(params, x)

    check_against_dense(pruned, loss, variables["params"], x)


def test_kernels_the_other_way_round():
    """`[F, D]`: GPT-2's layers in Hugging Face's code, and a transposed kernel."""

    def model(params, x):
        x = lax.dot_general(x, params["fc"], (((2,), (1,)), ((), ())))
        x = jnp.tanh(x) @ params["proj"].T
        return jnp.swapaxes(params["left"] @ jnp.swapaxes(x, 1, 2), 1, 2)

    params = weights(0, fc=(96, D), proj=(D, 96), left=(80, D))
    pruned = check(model, params, numbers(1, 2, 5, D))
    assert len(pruned.groups) == 3
    assert [s.num_columns for s in pruned.sites] == [D, D, 96]  # fc, left, proj


def test_decoder_with_a_tied_table():
    """GQA, RoPE, SwiGLU: the table is read by index too and stays dense, with the reason."""

    def model(params, tokens):
        x = params["table"][tokens]
        h = normalised(x)
        q, k, v = ((h @ params[n]).reshape(2, 6, -1, 16) for n in ("q", "k", "v"))
        angle = jnp.arange(6.0)[:, None, None] * jnp.ones((1, 1, 8))

        def turn(a):
            sine, cosine = jnp.sin(angle)[None], jnp.cos(angle)[None]
            one, two = a[..., :8], a[..., 8:]
            return jnp.concatenate([one * cosine - two * sine, two * cosine + one * sine], axis=-1)

        k, v = (jnp.repeat(a, 2, axis=2) for a in (turn(k), v))
        x = x + attention(turn(q), k, v).reshape(2, 6, D) @ params["o"]
        h = normalised(x)
        x = x + (nn.silu(h @ params["gate"]) * (h @ params["up"])) @ params["down"]
        return normalised(x) @ params["table"].T

    shapes = {"q": (D, D), "k": (D, 32), "v": (D, 32), "o": (D, D)}
    params = weights(0, table=(11, D), gate=(D, 96), up=(D, 96), down=(96, D), **shapes)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))
    pruned = check(model, params, tokens)
    assert members(pruned) == [("down",), ("gate", "up"), ("k", "q", "v"), ("o",)]
    assert "read by index" in pruned.unpruned["table"]


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers_with_remat(axis):
    """`nn.scan` over stacked kernels, along any of their axes, with a checkpoint policy inside."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            h = nn.Dense(96)(nn.LayerNorm()(x))
            return x + nn.Dense(D)(nn.gelu(h)), None

    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    layer = nn.remat(Layer, policy=policy, prevent_cse=False)
    model = nn.scan(layer, variable_axes={"params": axis}, split_rngs={"params": True}, length=3)()
    x = numbers(0, 2, 5, D)
    params = variables_of(model, x, None)["params"]
    pruned = prune(model, x, None, keep=0.25)
    assert [(s.num_columns, s.stack_shape) for s in pruned.sites] == [(D, (3,)), (96, (3,))]
    loss = loss_of(lambda params, x: model.apply({"params": params}, x, None)[0])
    grads = check_against_dense(pruned, loss, params, x)
    assert grads["Dense_0"]["kernel"].shape == (3, 16, 96)


def test_einsum_over_several_axes():
    """DenseGeneral, `nn.Einsum`: heads as axes of the kernel, of the input or of both."""

    def model(params, x):
        q = jnp.einsum("bnd,dhk->bhnk", x, params["split"])
        x = jnp.einsum("bhnk,hkd->bnd", jnp.tanh(q), params["joined"])
        # A kernel stored as a matrix, reshaped along its outputs.
        heads = jnp.einsum("bnd,dhk->bnhk", x, params["matrix"].reshape(D, 4, 16))
        # Inputs as (k, h) beside a kernel that lies as (h, k).
        return jnp.einsum("bnkh,hkd->bnd", jnp.swapaxes(jnp.sin(heads), 2, 3), params["turned"])

    shapes = {"split": (D, 4, 16), "joined": (4, 16, D), "matrix": (D, D), "turned": (4, 16, 80)}
    pruned = check(model, weights(0, **shapes), numbers(1, 2, 5, D))
    assert {site.path for site in pruned.sites} == set(shapes)


def test_experts_have_batch_axes():
    """`nn.vmap`ed experts: one selection for all, the expert's axis stays in the gradient."""

    def model(params, x):
        each = jax.vmap(lambda w, v, x: jnp.tanh(x @ w) @ v, in_axes=(0, 1, 0))
        return each(params["w"], params["v"], x)

    params = weights(0, w=(3, D, 80), v=(80, 3, D))
    pruned = check(model, params, numbers(1, 3, 5, D))
    grads = jax.eval_shape(
        pruned.value_and_grad(loss_of(model)), params, selection_of(pruned), numbers(1, 3, 5, D)
    )[1]
    assert grads["w"].shape == (16, 3, 80) and grads["v"].shape == (24, 3, D)


def test_weights_used_twice():
    """ALBERT: one selection for all layers that share a kernel, in Python and in a scan."""

    def model(params, x):
        for _ in range(2):
            x = jnp.tanh(x @ params["w"])
        step = lambda x, _: (jnp.tanh(x @ params["u"]), None)  # noqa: E731
        return lax.scan(step, x, None, length=3)[0]

    pruned = check(model, weights(0, w=(D, D), u=(D, D)), numbers(1, 4, D))
    assert [(s.path, s.products) for s in pruned.sites] == [("u", 1), ("w", 2)]


def test_adapters_beside_a_frozen_base():
    """LoRA: the base is closed over, A is pruned, B has fewer columns than `min_columns`."""
    base = weights(0, w=(D, D))["w"]

    def model(params, x):
        return x @ base + (x @ params["a"]) @ params["b"]

    pruned = check(model, weights(1, a=(D, 8), b=(8, D)), numbers(2, 4, D))
    assert [s.path for s in pruned.sites] == ["a"]
    assert pruned.unpruned["b"] == "8 columns, fewer than min_columns = 64"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(dtype):
    """Compute in bfloat16 from parameters in float32, and parameters in bfloat16."""

    def model(params, x):
        x = x.astype(jnp.bfloat16)
        q, k = (x @ params[n].astype(jnp.bfloat16) for n in ("q", "k"))
        return jnp.tanh(q * k) @ params["out"].astype(jnp.bfloat16)

    params = weights(0, q=(D, 80), k=(D, 80), out=(80, D))
    params = {name: leaf.astype(dtype) for name, leaf in params.items()}
    pruned = check(model, params, numbers(1, 2, 5, D), tolerance=1e-2)
    assert members(pruned) == [("k", "q"), ("out",)]


def test_casts_of_one_input_share_its_columns():
    """Each layer casts for itself; still one group, and one packed array is kept."""

    def model(params, x):
        q, k, v = (x.astype(jnp.bfloat16) @ params[n].astype(jnp.bfloat16) for n in "qkv")
        return q * k * v

    params, x = weights(0, q=(D, D), k=(D, D), v=(D, D)), numbers(1, 8, D)
    pruned = prune(model, params, x, keep=0.25)
    assert members(pruned) == [("k", "q", "v")]
    sizes = packed_arrays(pruned, model, params, x)
    assert sizes == [(8, 16)]


def packed_arrays(pruned, model, params, x):
    """Shapes of saved bfloat16 arrays that are narrower than the input."""
    selection = selection_of(pruned)

    def pullback(params, x):
        return jax.vjp(lambda p: pruned.apply(p, x, selection=selection), params)[1]

    jaxpr = jax.make_jaxpr(lambda p, x: jax.tree.leaves(pullback(p, x)))(params, x).jaxpr
    unique = {id(v): v.aval for v in jaxpr.outvars}.values()
    return [aval.shape for aval in unique if aval.ndim == 2 and aval.shape[1] == 16]


@functools.cache
def dense_model():
    """Uses that leave a kernel dense, each beside the reason for it."""

    @jax.custom_vjp
    def own(x, w):
        return x @ w

    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, dy: (dy @ saved[1].T, saved[0].T @ dy))

    def model(params, x):
        p = params
        out = own(x, p["custom"])
        out += lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: -x @ w, p["cond"])
        out += lax.fori_loop(0, 2, lambda i, y: y, x @ p["good"])
        out += (x @ p["across"].reshape(2, D, D))[0]
        out += x @ (2.0 * p["scaled"])
        out += x @ (p["first"] @ p["second"])
        out += x @ p["whole"][:, :D]
        out += lax.scan(lambda w, _: (w.T, x @ w), p["carried"], None, length=2)[1][0]
        image = jnp.ones((1, 4, 4, D)) * x[0][None, None, None]
        out += lax.conv(image.transpose(0, 3, 1, 2), p["conv"], (1, 1), "SAME")[:, :, 0, 0]
        return out

    return model


def test_what_stays_dense_is_named_with_its_reason():
    square = dict.fromkeys(
        ("custom", "cond", "good", "scaled", "first", "second", "carried"), (D, D)
    )
    params = weights(0, across=(2 * D, D), whole=(D, 2 * D), conv=(D, D, 1, 1), **square)
    params["across"] = params["across"].reshape(D, 2 * D)
    pruned = check(dense_model(), params, numbers(1, 4, D), tolerance=1e-5)
    assert [site.path for site in pruned.sites] == ["good"]
    reasons = {
        "custom": "custom_vjp",
        "cond": "a cond",
        "across": "reshaped or cut across the contracted axis",
        "scaled": "`mul`",
        "first": "two parameters",
        "second": "two parameters",
        "whole": "`slice`",
        "carried": "carried by a scan",
        "conv": "convolution",
    }
    for path, why in reasons.items():
        assert why in pruned.unpruned[path], (path, pruned.unpruned[path])
