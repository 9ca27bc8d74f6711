"""Kinds of residual of attention that keep q, k and v whole, or nothing.

The kinds that keep a part of them are in `pbr_jax.ops.attention_sparse`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.ops import residuals


class AttentionKind:
    """A kind of residual of attention of q, `[B, H, N, head]`, and k, v, `[B, Hkv, M, head]`.

    By default it is q, k and v.
    """

    recomputes_scores = True  # the backward pass makes the softmax from q and k again
    recomputes_heads = False  # keeps nothing: a half-block projects q, k and v again
    keeps_output = False  # the output is in the residual, for the linear layer behind it
    has_own_keep = False  # its fraction is `attention_keep` of a plan and not `keep`
    groups_queries = True  # heads of q may share one of k and v
    kernel_refusal: str | None = None  # why the kernels cannot make it, or None

    def save(
        self,
        qkv: tuple[jax.Array, jax.Array, jax.Array],
        out: jax.Array,
        lse: jax.Array,
        visibility: Visibility,
        settings: residuals.Kept,
        rules: Rules,
    ) -> Any:
        """The residual of an attention with that output and log-sum-exp."""
        return qkv

    def gradients(
        self,
        residual: Any,
        visibility: Visibility,
        do: jax.Array,
        num_keys: int,
        rules: Rules,
        attend_gradients: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`dq, dk, dv` by the `attend_gradients` of an implementation."""
        return attend_gradients(*residual, visibility, do, rules)

    def searched_channels(self, width: int, heads: int, num_keys: int) -> int:
        """Channels of a token among which the largest elements are searched for, 0 if none are."""
        return 0


class FlashResidual(NamedTuple):
    """q, k, v, output `[B, H, N, head]` and log-sum-exp of the scores `[B, H, N]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    out: jax.Array
    lse: jax.Array


class Flash(AttentionKind):
    """q, k, v, the output and the log-sum-exp of each row (FlashAttention)."""

    recomputes_scores = False
    keeps_output = True

    def save(self, qkv, out, lse, visibility, settings, rules):
        q, k, v = qkv
        return FlashResidual(q, k, v, out, lse)

    def gradients(self, residual, visibility, do, num_keys, rules, attend_gradients):
        q, k, v, out, lse = residual
        return attend_gradients(q, k, v, visibility, do, rules, out_lse=(out, lse))


class Qkv(AttentionKind):
    """q, k and v; the softmax is recomputed."""


class Recompute(AttentionKind):
    """Nothing: a half-block projects q, k and v again and hands them to `gradients`."""

    recomputes_heads = True

    def save(self, qkv, out, lse, visibility, settings, rules):
        return None
