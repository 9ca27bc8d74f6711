"""A decoder, 12 layers of width 1024 and 16 x 1024 tokens, compiled for an H200 that is not there.

Pruning alone saves time; its memory comes from checkpoints around the blocks, which it leaves as
they were. Temp bytes are the compiler's plan for loss and gradients.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from pbr_jax import prune
from pbr_jax.gpu import CARDS, compile_for, memory
from pbr_jax.ops.attention import attention

pytestmark = [pytest.mark.gpu_compile, pytest.mark.exhaustive, pytest.mark.slow]
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


POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def compiled_temp(policy, pruned):
    block = nn.remat(Block, policy=POLICIES[policy], prevent_cse=False)
    model = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)()
    x = jax.ShapeDtypeStruct((16, 1024, WIDTH), jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), x, None)

    def loss(params, x):
        y, _ = model.apply({"params": params}, x, None)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    if not pruned:
        args = (params["params"], x)
        return memory(compile_for(jax.value_and_grad(loss), args, CARDS["h200"])).temp_bytes
    pruned = prune(model, x, None, keep=0.1)
    assert len(pruned.sites) == 7 and len(pruned.groups) == 4
    selection = jax.eval_shape(lambda: pruned.select(pruned.init(), jax.random.key(0)))
    args = (params["params"], selection, x)
    return memory(compile_for(pruned.value_and_grad(loss), args, CARDS["h200"])).temp_bytes


@pytest.mark.parametrize("policy", POLICIES)
def test_checkpoints_keep_what_they_kept(policy):
    """A policy that saves products still sees them: nothing else is recomputed or kept."""
    with jax.numpy_dtype_promotion("standard"):  # Flax' norms mix their types
        dense, pruned = compiled_temp(policy, False), compiled_temp(policy, True)
    assert pruned <= 1.01 * dense
    if policy == "nothing":
        assert pruned <= 1.5e9
    else:
        assert pruned >= 0.9 * dense
