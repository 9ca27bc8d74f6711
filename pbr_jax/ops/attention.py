"""Scaled dot-product attention that never stores an N x N array, with a choice of residuals.

Masks, padding, segments, causality and dropout of the probabilities go with every residual: see
`Visibility`. All kinds but "elements" run as plain JAX or as Triton kernels.
"""

import math
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pbr_jax import plans
from pbr_jax.kernels.attention_arguments import Rules, Visibility
from pbr_jax.ops import attention_xla, dispatch, pair
from pbr_jax.ops.shardings import placed, spec_of
from pbr_jax.ops.visibility import check, windows
from pbr_jax.plans import Implementation

_LARGEST_HEAD = 256  # of the kernels
OUTPUT = "attention_output"
"""Name of the output and of its normalisers, for the policy of a `jax.checkpoint`."""


class Settings(NamedTuple):
    """Static part of an attention op."""

    kind: str = "flash"  # name of its residual, see `pbr_jax.ops.attention_kinds`
    keep: float = 0.2  # fraction kept by "channels" and "elements", in (0, 1]
    causal: bool = False  # a query sees no key behind it
    dropout: float = 0.0  # rate at which probabilities are dropped, where `Visibility` brings seeds
    implementation: Implementation | None = None  # see `dispatch`

    def rules(self, head: int) -> Rules:
        """The static rules of the scores, for heads of that width."""
        return Rules(1 / math.sqrt(head), self.causal, self.dropout)

    def implementation_for(self, x: jax.Array, visibility: Visibility) -> ModuleType:
        """The module whose `attend` and `attend_gradients` run for q, k, v like `x`."""
        if KERNEL.choose(self.implementation, self.kind, x, visibility) == "xla":
            return attention_xla
        from pbr_jax.ops import attention_triton  # Pallas takes long to import

        return attention_triton


def _refusal(kind: str, x: jax.Array, visibility: Visibility) -> str | None:
    """Why the kernels cannot take q, k, v like `x`, `[B, H, N, head]`, or None."""
    if refusal := plans.kind("attention", kind).kernel_refusal:
        return refusal
    if x.shape[-1] > _LARGEST_HEAD:
        return f"head = {x.shape[-1]}: must be at most {_LARGEST_HEAD}"
    if visibility.mask is not None:
        return "mask is an N x N pattern; give lengths, segment_ids or causal"
    return dispatch.unfit(math.inf, q=x)


KERNEL = dispatch.Kernel("attention", _refusal)


def forward(qkv, visibility: Visibility, settings: Settings) -> tuple[jax.Array, Any]:
    """Attention of `q, k, v` and the residual that `settings.kind` names."""
    q, k, v = qkv
    rules = settings.rules(q.shape[-1])
    out, lse = settings.implementation_for(q, visibility).attend(q, k, v, visibility, rules)
    out, lse = checkpoint_name((out, lse), OUTPUT)
    kind = plans.kind("attention", settings.kind)
    return out, kind.save((q, k, v), out, lse, visibility, settings, rules)


def backward(
    residual: Any, visibility: Visibility, do: jax.Array, num_keys: int, settings: Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv` from the residual of `forward`."""
    rules = settings.rules(do.shape[-1])
    attend_gradients = settings.implementation_for(do, visibility).attend_gradients
    kind = plans.kind("attention", settings.kind)
    return kind.gradients(residual, visibility, do, num_keys, rules, attend_gradients)


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    visibility: Visibility = Visibility(),  # noqa: B008 (immutable)
    *,
    causal: bool = False,
    window: int | jax.Array | None = None,
    dropout: float = 0.0,
    kind: str = "flash",
    keep: float = 0.2,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Softmax attention, `[B, H, N, head], [B, Hkv, M, head] x 2 -> [B, H, N, head]`.

    With grouped queries (Ainslie et al., 2023) Hkv is less than H and divides it: heads `h * H /
    Hkv` and those behind it share head h of k and v, which is never repeated in memory.

    Args:
      q, k, v: one floating dtype; scores and softmax are computed in float32.
      visibility: what hides keys, and the seeds of dropout. Its mask, bool `[B or 1, H or 1, N or
        1, M]`, may have one pattern for all samples. A query with no visible key attends to all
        keys equally.
      causal: a query sees no key behind it. Needs M = N.
      window: a query sees no more than as many of the last keys, itself included (Gemma 3's sliding
        window). 0 or None: all. May be a traced int32 scalar, so that a scan over blocks can have
        one for each of them. Needs `causal`.
      dropout: rate at which probabilities are dropped, in [0, 1); the kept ones are divided by
        `1 - dropout`. Above 0 it needs `visibility.seeds`.
      kind: of the residual: "flash", "qkv", "channels" or "elements", see
        `pbr_jax.ops.attention_kinds` and `attention_sparse`. The last two need Hkv = H.
      keep: fraction of channels or elements kept by the last two, in (0, 1].
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: shapes or dtypes do not fit, `dropout` is out of range or without seeds, `kind` is
        unknown or needs a half-block, or the named implementation cannot run.
    """
    # What cannot run is refused, before anything is traced.
    if plans.kind("attention", kind).recomputes_heads:
        raise ValueError(
            f"kind = {kind!r}: needs the layer that makes q, k and v, which only a half-block has;"
            " take 'qkv'"
        )
    fits = q.ndim == k.ndim == 4 and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not fits or k.shape != v.shape:
        raise ValueError(
            f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}: must be [B, H, N, head] and"
            " twice [B, Hkv, M, head]"
        )
    heads, kv_heads = q.shape[1], k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"k and v have {kv_heads} heads: must divide the {heads} heads of q")
    if heads != kv_heads and not plans.kind("attention", kind).groups_queries:
        raise ValueError(
            f"kind = {kind!r} with {heads} heads of q and {kv_heads} of k and v: needs as many of"
            " each; take 'flash' or 'qkv'"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}: must be the same")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must be in [0, 1), the fraction that is dropped")
    if dropout > 0 and visibility.seeds is None:
        raise ValueError(
            f"dropout = {dropout} without visibility.seeds: make them from one PRNG key per sample"
            " with dropout_seeds, or set dropout to 0 in evaluation"
        )
    if window is not None:
        if visibility.window is not None:
            raise ValueError("window and visibility.window: give one of them")
        visibility = visibility._replace(window=windows(window, q.shape[0], k.shape[2]))
    check(visibility, (*q.shape[:3], k.shape[2]), causal)
    # A pattern for each sample, and no residual for what is not used.
    mask = visibility.mask
    if mask is not None:  # every leaf of `aux` has the leading axis B
        mask = jnp.broadcast_to(mask, (q.shape[0], *mask.shape[1:]))
        visibility = visibility._replace(mask=mask)
    if dropout == 0:
        visibility = visibility._replace(seeds=None)
    settings = Settings(kind, keep, causal, dropout, implementation)

    def gradients(params, residual, visibility, do):
        return None, backward(residual, visibility, do, k.shape[2], settings)

    op = pair.Pair(lambda _, qkv, visibility: forward(qkv, visibility, settings), gradients)
    attend = pair.bind(op)
    return placed(lambda qkv, aux: attend(None, qkv, aux), spec_of(q), (q, k, v), visibility)
