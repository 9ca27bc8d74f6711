"""Softmax attention by Triton kernels: the same functions as `pbr_jax.ops.attention_xla`."""

import jax
import jax.numpy as jnp

from pbr_jax.kernels import attention_backward, attention_blocks, attention_forward
from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.kernels.attention_launch import Arrays, Run
from pbr_jax.ops import dispatch


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, rules: Rules
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, H, N, head]` and log-sum-exp `[B, H, N]` (float32) of softmax attention."""
    arrays = Arrays(q, k, v, visibility=visibility)
    return attention_forward.attention_forward(arrays, _run("forward", v, rules))


def attend_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility,
    do: jax.Array,
    rules: Rules,
    *,
    do_for_v: jax.Array | None = None,
    out_lse: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv`, arguments as for `attention_xla.attend_gradients`.

    Without `out_lse`, rows that fit on chip are complete in one pass; longer ones are attended to
    once more for their output and log-sum-exp.
    """
    do_v = do if do_for_v is None else do_for_v
    rows = attention_blocks.blocks_for_rows(k.shape[2], k.shape[3], k.dtype.itemsize)
    # delta is the sum of p * dp over the keys: taken on chip from whole rows, or from the output.
    if out_lse is None and rows is not None:
        arrays = Arrays(q, k, v, do_v, visibility=visibility)
        dq, lse, delta = attention_backward.query_gradient_of_rows(
            arrays, Run(rules, rows, dispatch.interpreting())
        )
    else:
        out, lse = attend(q, k, v, visibility, rules) if out_lse is None else out_lse
        delta = jnp.sum(do_v.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        arrays = Arrays(q, k, v, do_v, None, lse, delta, visibility)
        dq = attention_backward.query_gradient(arrays, _run("queries", v, rules))
    arrays = Arrays(q, k, v, do, do_for_v, lse, delta, visibility)
    dk, dv = attention_backward.key_gradients(arrays, _run("keys", do, rules))
    return dq, dk, dv


def _run(part: attention_blocks.Pass, x: jax.Array, rules: Rules) -> Run:
    capability = dispatch.target().capability
    blocks = attention_blocks.blocks_for(part, capability, x.shape[-1], x.dtype.itemsize)
    return Run(rules, blocks, dispatch.interpreting())
