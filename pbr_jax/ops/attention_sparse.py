"""Attention that keeps a part of q, k and v: whole channels, or BackRazor's single elements."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.ops import residuals
from pbr_jax.ops.attention_xla import Block, all_rows, over_samples, score_bytes
from pbr_jax.plans import budget_for


class Channels(NamedTuple):
    """Packed channels of q, k and v, `[B, H, N, K_h]`, and which they are, int32 `[H, K_h]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    qk_channels: jax.Array
    v_channels: jax.Array


class PrunedAttention(NamedTuple):
    """BackRazor's residual: pruned q, k, v and probabilities."""

    q: residuals.Elements
    k: residuals.Elements
    v: residuals.Elements
    probabilities: residuals.Elements


def choose_channels(q: jax.Array, k: jax.Array, v: jax.Array, keep: float) -> Channels:
    """Packs the K_h channels of each head with most energy, on average over the samples.

    For q and k, which share their channels, the energy of channel c is `mean_b |q_c|^2 |k_c|^2`,
    the squared Frobenius norm of its rank-one share of the scores; for v it is `mean_b |v_c|^2`.
    """
    num_kept = budget_for(keep, q.shape[-1])

    def energy(x):
        return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=2)

    qk = residuals.largest_channels(jnp.mean(energy(q) * energy(k), axis=0), num_kept)
    vs = residuals.largest_channels(jnp.mean(energy(v), axis=0), num_kept)
    return Channels(
        q=residuals.take_channels(q, qk),
        k=residuals.take_channels(k, qk),
        v=residuals.take_channels(v, vs),
        qk_channels=qk,
        v_channels=vs,
    )


def prune(
    q: jax.Array, k: jax.Array, v: jax.Array, visibility: Visibility, keep: float, rules: Rules
) -> PrunedAttention:
    """The largest elements of q, k, v and of the probabilities before dropout, per sample."""
    dtype = residuals.half_precision(q.dtype)
    rows = all_rows(q.shape[2])

    def samples(arrays):
        q, k, visibility = arrays
        block = Block(q, k, rows, visibility, rules)
        return residuals.pack_elements(block.softmax(), keep, dtype)

    bytes_per_sample = score_bytes(q.shape[1], q.shape[2], k.shape[2])
    return PrunedAttention(
        q=residuals.pack_elements(q, keep, dtype),
        k=residuals.pack_elements(k, keep, dtype),
        v=residuals.pack_elements(v, keep, dtype),
        probabilities=over_samples(samples, (q, k, visibility), bytes_per_sample),
    )


def pruned_gradients(
    saved: PrunedAttention, visibility: Visibility, do: jax.Array, num_keys: int, rules: Rules
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """BackRazor's backward pass: the dense formulas with pruned q, k, v and probabilities."""
    _, heads, n, head = do.shape

    def samples(arrays):
        saved, visibility, do = arrays
        batch = do.shape[0]
        q = residuals.unpack_elements(saved.q, do.shape, do.dtype)
        k = residuals.unpack_elements(saved.k, (batch, heads, num_keys, head), do.dtype)
        v = residuals.unpack_elements(saved.v, (batch, heads, num_keys, head), do.dtype)
        p = residuals.unpack_elements(
            saved.probabilities, (batch, heads, n, num_keys), jnp.dtype(jnp.float32)
        )
        block = Block(q, k, all_rows(n), visibility, rules)
        dp = jnp.einsum("bhnc,bhmc->bhnm", do, v, preferred_element_type=jnp.float32)
        dp = block.dropped(dp)
        dq, dk = block.gradients(p, dp, jnp.sum(p * dp, axis=-1))
        return dq, dk, jnp.einsum("bhnm,bhnc->bhmc", block.dropped(p).astype(do.dtype), do)

    return over_samples(samples, (saved, visibility, do), score_bytes(heads, n, num_keys))
