"""A small transformer block, its plans, and the NumPy oracle of each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from measures import as_jax, normal, value_and_pullback

from pbr_jax.ops import half_blocks, pair
from pbr_jax.ops.stack import stack
from pbr_jax.plans import SITES, Keep, ResidualPlan

B, N, D, H, F, L = 4, 6, 32, 2, 48, 3
HEAD = D // H
SHAPE = half_blocks.BlockShape(num_heads=H)
POST_NORM = SHAPE._replace(post_norm=True)
HALF = Keep(0.5)
BACKRAZOR = ResidualPlan(linear="elements", layer_norm="elements", attention="elements", keep=HALF)
COLUMNS = ResidualPlan(linear="columns", keep=HALF)
SELECTION = {
    "qkv": np.arange(0, 32, 2, dtype=np.int32),
    "proj": np.arange(1, 32, 4, dtype=np.int32),
    "fc1": np.array([0, 3, 4, 5, 17, 18, 30, 31, 32, 32], np.int32),  # two unused slots
    "fc2": np.arange(5, 21, dtype=np.int32),
}

PLANS = {
    "full": ResidualPlan(),
    "recompute": ResidualPlan(recompute=True),
    "qkv": ResidualPlan(attention="qkv"),
    "recomputed q k v": ResidualPlan(attention="recompute"),
    "2 chunks": ResidualPlan(batch_chunks=2),
    "recompute in 4 chunks": ResidualPlan(recompute=True, batch_chunks=4),
    "columns": COLUMNS,
    "columns, qkv": dataclasses.replace(COLUMNS, attention="qkv"),
    "columns, recomputed q k v": dataclasses.replace(COLUMNS, attention="recompute"),
    "columns, recompute": dataclasses.replace(COLUMNS, recompute=True),
    "columns, pruned norms": dataclasses.replace(COLUMNS, layer_norm="elements"),
    "columns, sparse attention": dataclasses.replace(
        COLUMNS, attention="channels", attention_keep=0.5
    ),
    "backrazor": BACKRAZOR,
    "backrazor in 2 chunks": dataclasses.replace(BACKRAZOR, batch_chunks=2),
    "prebackrazor-": dataclasses.replace(BACKRAZOR, linear="magnitude"),
}


def layer(seed, in_features, out_features):
    return {
        "kernel": normal(seed, in_features, out_features) / in_features**0.5,
        "bias": 0.2 * normal(seed + 1, out_features),
    }


def norm(seed):
    return {"scale": 1 + 0.3 * normal(seed, D), "bias": 0.3 * normal(seed + 1, D)}


PARAMS = {
    "norm1": norm(0), "qkv": layer(2, D, 3 * D), "proj": layer(4, D, D),
    "norm2": norm(6), "fc1": layer(8, D, F), "fc2": layer(10, F, D),
}  # fmt: skip
X, DY = normal(20, B, N, D), normal(21, B, N, D)
MASK = np.arange(N) < np.array([6, 5, 6, 2])[:, None, None, None]  # [B, 1, 1, N]


def with_selection(params, plan, extra=lambda site: {}):
    if plan.linear != "columns":
        return params
    return params | {
        s: params[s] | {"columns": jnp.asarray(SELECTION[s])} | extra(s) for s in SITES
    }


def stacked(plan, shape=SHAPE, check=lambda params: None):
    """Blocks in chunks of the batch, as training runs them; leaves of `params` are `[L, ...]`."""
    return pair.bind(stack(half_blocks.transformer_block(plan, shape), plan.batch_chunks), check)


def repeated(tree, times):
    return jax.tree.map(lambda a: jnp.stack([a] * times), tree)


def run(plan, dtype=jnp.float32, aux=None, x=X, shape=SHAPE):
    """Output, gradients of the parameters and of x, of one block."""
    op = stacked(plan, shape)
    y, (grads, dx) = value_and_pullback(
        lambda params, x: op(repeated(with_selection(params, plan), 1), x, aux or {}),
        as_jax(DY, dtype),
        as_jax(PARAMS),
        as_jax(x, dtype),
    )
    return y, grads, dx


def oracle(plan, mask=None, post_norm=False):
    def save_linear(site, x):
        if plan.linear == "columns":
            return oracles.only_columns(x, SELECTION[site])
        if plan.linear == "magnitude":
            kept = {32: 16, 48: 24}[x.shape[-1]]
            return oracles.only_columns(x, oracles.columns_of_largest_norm(x, kept))
        return oracles.largest_elements(x, 0.5, np.float16) if plan.linear == "elements" else x

    attention_backward = {
        "elements": functools.partial(oracles.pruned_attention_gradients, keep=0.5),
        "channels": functools.partial(oracles.sparse_attention_gradients, num_kept=8),
    }.get(plan.attention, oracles.dense_attention_gradients)

    def save_norm(x):
        return oracles.largest_elements(x, 0.5) if plan.layer_norm == "elements" else x

    return oracles.block(
        PARAMS,
        X,
        DY,
        heads=H,
        mask=mask,
        post_norm=post_norm,
        save_linear=save_linear,
        save_norm=save_norm,
        attention_backward=attention_backward,
    )


def rounding(plan):
    """Float32; where values are stored as float16 a last bit may fall the other way."""
    return 1e-4 if "elements" in (plan.linear, plan.attention) else 1e-5


def plain_block(params, x, keys=None, *, rate=0.0, approximate=False, embedded=None):
    """The block as one would write it, with the dropout masks drawn from the same keys.

    `embedded`: None for a pre-norm block, else whether a post-norm block is the first.
    """

    def norm(p, x):
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        x_hat = centered / jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-6)
        return x_hat * p["scale"][None, None] + p["bias"][None, None]

    def linear(p, x):
        return jnp.matmul(x, p["kernel"]) + p["bias"][None, None]

    def dropout(index, x):
        if keys is None:
            return x
        masks = [
            jax.random.uniform(jax.random.fold_in(key, index), x.shape[1:]) >= rate for key in keys
        ]
        return x * jnp.stack(masks).astype(x.dtype) / (1 - rate)

    batch, post_norm = x.shape[0], embedded is not None
    h = norm(params["norm1"], x)
    if embedded:
        h = dropout(4, h)
    q, k, v = jnp.moveaxis(linear(params["qkv"], h).reshape(batch, N, 3, H, HEAD), (2, 3), (0, 2))
    p = jax.nn.softmax(jnp.einsum("bhnc,bhmc->bhnm", q, k) / HEAD**0.5)
    context = jnp.einsum("bhnm,bhmc->bnhc", p, v).reshape(x.shape)
    x = (h if post_norm else x) + dropout(0, linear(params["proj"], context))
    h = norm(params["norm2"], x)
    a = jax.nn.gelu(linear(params["fc1"], h), approximate=approximate)
    if not post_norm:
        a = dropout(1, a)
    return (h if post_norm else x) + dropout(2, linear(params["fc2"], a))
