"""Scaled dot-product attention that never stores an N x N array, with a choice of residuals.

The residual may be

* "flash": q, k, v, the output and the log-sum-exp of each row (FlashAttention);
* "qkv": q, k, v; the softmax is recomputed;
* "channels": the sparse attention of PreBackRazor++: a few channels of q, k and v per head; the
  softmax of the backward pass is that of the pruned q and k. A coarse approximation;
* "elements": BackRazor's: the largest elements of q, k, v and of the probabilities.

What a query sees (padding, segments) and dropout of the probabilities go with
every residual, see `Visibility`. All but "elements" run as plain JAX or as Triton kernels.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.ops import attention_xla, dispatch, pair, residuals
from pbr_jax.ops.attention_sparse import (
    Channels,
    PrunedAttention,
    choose_channels,
    prune,
    pruned_gradients,
)
from pbr_jax.ops.visibility import check, dropout_seeds
from pbr_jax.plans import AttentionKind, Implementation

Kind = AttentionKind
KINDS = tuple(kind for kind in get_args(Kind) if kind != "recompute")  # that needs a half-block

_LARGEST_HEAD = 128  # of the kernels


class Flash(NamedTuple):
    """q, k, v, output `[B, H, N, head]` and log-sum-exp of the scores `[B, H, N]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    out: jax.Array
    lse: jax.Array


class Settings(NamedTuple):
    """What is static about an attention op.

    Attributes:
      kind: its residual, one of `KINDS`.
      keep: fraction of channels or elements kept by "channels" and "elements", in (0, 1].
      causal: a query sees no key behind it.
      dropout: rate at which probabilities are dropped, where `Visibility` brings seeds.
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.
    """

    kind: Kind = "flash"
    keep: float = 0.2
    causal: bool = False
    dropout: float = 0.0
    implementation: Implementation | None = None

    def rules(self, head: int) -> Rules:
        return Rules(1 / math.sqrt(head), self.causal, self.dropout)

    def implementation_for(self, x: jax.Array, visibility: Visibility) -> ModuleType:
        """The module whose `attend` and `attend_gradients` run for q, k, v like `x`."""
        if KERNEL.choose(self.implementation, self.kind, x, visibility) == "xla":
            return attention_xla
        from pbr_jax.ops import attention_triton  # Pallas takes long to import

        return attention_triton


def _refusal(kind: Kind, x: jax.Array, visibility: Visibility) -> str | None:
    """Why the kernels cannot take q, k, v like `x`, `[B, H, N, head]`, or None."""
    if kind == "elements":
        return "residual = 'elements': keeps the probabilities, which the kernels never store"
    if x.shape[-1] > _LARGEST_HEAD:
        return f"head = {x.shape[-1]}: must be at most {_LARGEST_HEAD}"
    if visibility.mask is not None:
        return "mask is an N x N pattern; give lengths, segment_ids or causal"
    return dispatch.unfit(math.inf, q=x)


KERNEL = dispatch.Kernel("attention", _refusal)


def forward(qkv, visibility: Visibility, settings: Settings) -> tuple[jax.Array, Any]:
    """Attention of `q, k, v` and what `settings.kind` keeps for the backward pass."""
    q, k, v = qkv
    rules = settings.rules(q.shape[-1])
    out, lse = settings.implementation_for(q, visibility).attend(q, k, v, visibility, rules)
    if settings.kind == "flash":
        return out, Flash(q, k, v, out, lse)
    if settings.kind == "qkv":
        return out, (q, k, v)
    if settings.kind == "channels":
        return out, choose_channels(q, k, v, settings.keep)
    if settings.kind == "elements":
        return out, prune(q, k, v, visibility, settings.keep, rules)
    raise ValueError(f"attention residual = {settings.kind!r}: must be one of {', '.join(KINDS)}")


def backward(
    saved: Any, visibility: Visibility, do: jax.Array, num_keys: int, settings: Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv` from what `forward` kept."""
    head = do.shape[-1]
    rules = settings.rules(head)
    gradients = settings.implementation_for(do, visibility).attend_gradients
    if isinstance(saved, Flash):
        q, k, v, out, lse = saved
        return gradients(q, k, v, visibility, do, rules, out_lse=(out, lse))
    if isinstance(saved, PrunedAttention):
        return pruned_gradients(saved, visibility, do, num_keys, rules)
    if isinstance(saved, Channels):
        do_for_v = residuals.take_channels(do, saved.v_channels)
        dq, dk, dv = gradients(saved.q, saved.k, saved.v, visibility, do, rules, do_for_v=do_for_v)
        dq, dk = (residuals.put_channels(g, saved.qk_channels, head) for g in (dq, dk))
        return dq, dk, dv
    return gradients(*saved, visibility, do, rules)


def attention_pair(settings: Settings, num_keys: int) -> pair.Pair:
    """Attention as a pair over `x = (q, k, v)` with a `Visibility` as `aux`."""
    return pair.Pair(
        lambda params, qkv, visibility: forward(qkv, visibility, settings),
        lambda params, saved, visibility, do: (
            None,
            backward(saved, visibility, do, num_keys, settings),
        ),
    )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    lengths: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    dropout_keys: jax.Array | None = None,
    residual: Kind = "flash",
    keep: float = 0.2,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention, `[B, H, N, head], [B, H, M, head] x 2 -> [B, H, N, head]`.

    Args:
      q, k, v: one floating dtype; scores and softmax are computed in float32.
      mask: bool `[B or 1, H or 1, N or 1, M]`; False hides a key. A query with no visible key
        attends to all keys equally.
      lengths, segment_ids: what else hides keys, see `Visibility`.
      causal: a query sees no key behind it. Needs M = N.
      dropout: rate at which probabilities are dropped, in [0, 1); the kept ones are divided by
        `1 - dropout`.
      dropout_keys: PRNG keys `[B]`, one per sample, if `dropout > 0`.
      residual: "flash", "qkv", "channels" or "elements", see the module docstring.
      keep: fraction of channels or elements kept by the last two, in (0, 1].
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: shapes or dtypes do not fit, `dropout` is out of range or without keys,
        `residual` is unknown, or the named implementation cannot run.
    """
    if residual not in KINDS:
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(KINDS)}")
    expected = (*q.shape[:2], k.shape[2], q.shape[3]) if q.ndim == k.ndim == 4 else None
    if k.shape != expected or v.shape != expected:
        raise ValueError(
            f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}: must be [B, H, N, head] and"
            " twice [B, H, M, head]"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}: must be the same")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be in [0, 1), the fraction that is dropped")
    if dropout > 0 and dropout_keys is None:
        raise ValueError(
            f"dropout = {dropout} without dropout_keys: pass one PRNG key per sample, or 0 in"
            " evaluation"
        )
    seeds = dropout_seeds(dropout_keys) if dropout > 0 and dropout_keys is not None else None
    visibility = Visibility(mask, lengths, segment_ids, seeds)
    check(visibility, (*q.shape[:3], k.shape[2]), causal)
    if mask is not None:  # every leaf of `aux` has the leading axis B
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
        visibility = visibility._replace(mask=mask)
    settings = Settings(residual, keep, causal, dropout, implementation)
    return pair.bind(attention_pair(settings, k.shape[2]))(None, (q, k, v), visibility)
