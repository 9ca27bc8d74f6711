"""A train step of stock Flax, for a look at what fills its memory on a card that need not be there.

cd examples && pbr fit flax_step:step --gpu rtx4090
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class Block(nn.Module):
    """Attention and a hidden layer, each behind a norm and around a skip connection."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(8, name="attention")(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(2048, name="fc1")(nn.LayerNorm()(x)))
        return x + nn.Dense(512, name="fc2")(hidden)


class Net(nn.Module):
    """float32 `[B, N, 512]` -> logits `[B, 10]`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(6):
            x = Block(name=f"block_{i}")(x)
        return nn.Dense(10, name="head")(x.mean(axis=1))


model, tx = Net(), optax.adamw(1e-3)


@jax.jit
def step(params, opt_state, x, y):
    """One step of AdamW; nothing is donated."""

    def loss(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def step_args() -> tuple:
    """Shapes of its arguments, for `pbr fit`."""
    x = jax.ShapeDtypeStruct((64, 256, 512), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return params, jax.eval_shape(tx.init, params), x, jax.ShapeDtypeStruct((64,), jnp.int32)
