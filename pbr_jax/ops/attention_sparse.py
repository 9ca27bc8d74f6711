"""Kinds of residual of attention that keep a part of q, k and v: channels, or single elements."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.ops import residuals
from pbr_jax.ops.attention_kinds import AttentionKind
from pbr_jax.ops.attention_xla import Block, all_rows, over_samples, score_bytes
from pbr_jax.plans import budget_for


class PackedChannels(NamedTuple):
    """Packed channels of q, k and v, `[B, H, N, K_h]`, and which they are, int32 `[H, K_h]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    qk_channels: jax.Array
    v_channels: jax.Array


class Channels(AttentionKind):
    """PreBackRazor++: the K_h channels of each head with most energy, on average over the samples.

    For q and k, which share their channels, the energy of channel c is `mean_b |q_c|^2 |k_c|^2`,
    the squared Frobenius norm of its rank-one share of the scores; for v it is `mean_b |v_c|^2`.
    The softmax of the backward pass is that of the pruned q and k: a coarse approximation.
    """

    has_own_keep = True
    groups_queries = False

    def save(self, qkv, out, lse, visibility, settings, rules):
        q, k, v = qkv
        num_kept = budget_for(settings.keep, q.shape[-1])

        # Averaged over the samples, so that all share their channels.
        def energy(x):
            return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=2)

        qk = residuals.largest_channels(jnp.mean(energy(q) * energy(k), axis=0), num_kept)
        vs = residuals.largest_channels(jnp.mean(energy(v), axis=0), num_kept)
        return PackedChannels(
            q=residuals.take_channels(q, qk),
            k=residuals.take_channels(k, qk),
            v=residuals.take_channels(v, vs),
            qk_channels=qk,
            v_channels=vs,
        )

    def gradients(self, residual, visibility, do, num_keys, rules, attend_gradients):
        q, k, v, qk_channels, v_channels = residual
        # dv has all channels, since it is p^T do; dp = do v^T sees those that v has.
        do_for_v = residuals.take_channels(do, v_channels)
        dq, dk, dv = attend_gradients(q, k, v, visibility, do, rules, do_for_v=do_for_v)
        dq, dk = (residuals.put_channels(g, qk_channels, do.shape[-1]) for g in (dq, dk))
        return dq, dk, dv


class PrunedAttention(NamedTuple):
    """BackRazor's residual: pruned q, k, v and probabilities."""

    q: residuals.Elements
    k: residuals.Elements
    v: residuals.Elements
    probabilities: residuals.Elements


class Elements(AttentionKind):
    """BackRazor: the largest elements per sample of q, k, v and undropped probabilities."""

    groups_queries = False
    kernel_refusal = "kind = 'elements': keeps the probabilities, which the kernels never store"

    def save(self, qkv, out, lse, visibility, settings, rules):
        q, k, v = qkv
        dtype = residuals.half_precision(q.dtype)
        rows = all_rows(q.shape[2])

        # A few samples at a time: the probabilities of all are never held at once.
        def samples(arrays):
            q, k, visibility = arrays
            block = Block(q, k, rows, visibility, rules)
            return residuals.pack_for(settings, block.softmax(), dtype)

        bytes_per_sample = score_bytes(q.shape[1], q.shape[2], k.shape[2])
        return PrunedAttention(
            q=residuals.pack_for(settings, q, dtype),
            k=residuals.pack_for(settings, k, dtype),
            v=residuals.pack_for(settings, v, dtype),
            probabilities=over_samples(samples, (q, k, visibility), bytes_per_sample),
        )

    def gradients(self, residual, visibility, do, num_keys, rules, attend_gradients):
        """`dq, dk, dv` by the dense formulas with pruned q, k, v and probabilities, by XLA."""
        _, heads, n, head = do.shape

        def samples(arrays):
            residual, visibility, do = arrays
            batch = do.shape[0]
            # What was dropped comes back as zero, in q, k and v as in the probabilities.
            q = residuals.unpack_elements(residual.q, do.shape, do.dtype)
            k = residuals.unpack_elements(residual.k, (batch, heads, num_keys, head), do.dtype)
            v = residuals.unpack_elements(residual.v, (batch, heads, num_keys, head), do.dtype)
            p = residuals.unpack_elements(
                residual.probabilities, (batch, heads, n, num_keys), jnp.dtype(jnp.float32)
            )
            return Block(q, k, all_rows(n), visibility, rules).gradients(p, v, do, do)

        return over_samples(samples, (residual, visibility, do), score_bytes(heads, n, num_keys))

    def searched_channels(self, width, heads, num_keys):
        return 3 * width + heads * num_keys
