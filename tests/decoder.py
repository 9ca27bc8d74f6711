"""A decoder of 12 layers of width 1024 in stock Linen, with rematerialised blocks in a scan."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.ops.attention import attention

DEPTH, WIDTH, HEADS, KV_HEADS, HIDDEN = 12, 1024, 16, 4, 3584


class Block(nn.Module):
    """Grouped queries, rotary positions, SwiGLU; attention is our flash attention."""

    @nn.compact
    def __call__(self, x, _):
        dense = functools.partial(nn.Dense, use_bias=False, dtype=jnp.bfloat16)
        head = WIDTH // HEADS

        def heads(name, count):
            y = dense(count * head, name=name)(h).reshape(*h.shape[:2], count, head)
            return jnp.swapaxes(y, 1, 2)

        h = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        q, k = turned(heads("q", HEADS)), turned(heads("k", KV_HEADS))
        k, v = (jnp.repeat(a, HEADS // KV_HEADS, axis=1) for a in (k, heads("v", KV_HEADS)))
        y = jnp.swapaxes(attention(q, k, v, causal=True), 1, 2).reshape(*x.shape)
        x = x + dense(WIDTH, name="o")(y)
        h = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        y = nn.silu(dense(HIDDEN, name="gate")(h)) * dense(HIDDEN, name="up")(h)
        return x + dense(WIDTH, name="down")(y), None


def turned(x):
    """Rotary embedding of `[B, H, N, head]`."""
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.arange(x.shape[2], dtype=jnp.float32)[:, None] * rate[None]
    sine, cosine = jnp.sin(angle)[None, None], jnp.cos(angle)[None, None]
    one, two = (part.astype(jnp.float32) for part in jnp.split(x, 2, axis=-1))
    return jnp.concatenate([one * cosine - two * sine, two * cosine + one * sine], axis=-1).astype(
        x.dtype
    )


def decoder(policy=jax.checkpoint_policies.nothing_saveable):
    block = nn.remat(Block, policy=policy, prevent_cse=False)
    return nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)()


def problem(model):
    """Shapes of its parameters and input, 16 x 1024 tokens, and a loss of both."""
    x = jax.ShapeDtypeStruct((16, 1024, WIDTH), jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), x, None)["params"]

    def loss(params, x):
        y, _ = model.apply({"params": params}, x, None)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    return params, x, loss
