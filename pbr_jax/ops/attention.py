"""Scaled dot-product attention that never stores an N x N array, with a choice of residuals.

Rows of the score matrix are computed in blocks of samples and queries, whole rows at a time, so the
softmax of a block is exact and can be recomputed from q and k alone. The residual may be

* "flash": q, k, v, the output and the log-sum-exp of each row (FlashAttention);
* "qkv": q, k, v; the softmax is recomputed;
* "channels": the sparse attention of PreBackRazor++: a few channels of q, k and v per head; the
  softmax of the backward pass is that of the pruned q and k. A coarse approximation;
* "elements": BackRazor's: the largest elements of q, k, v and of the probabilities.
"""

import math
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax import residuals
from pbr_jax.ops import pair
from pbr_jax.plans import AttentionKind, budget_for

Kind = AttentionKind
KINDS = tuple(kind for kind in get_args(Kind) if kind != "recompute")  # that needs a half-block

# Float32 scores held at a time: enough to fill a GPU, little beside the activations of a block.
_SCORE_BYTES = 8 * 2**20
_MASKED = -1e30


class Flash(NamedTuple):
    """q, k, v, output `[B, H, N, head]` and log-sum-exp of the scores `[B, H, N]`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    out: jax.Array
    lse: jax.Array


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


class _Block(NamedTuple):
    """A block of queries of a few samples, `[b, H, n, ...]`, and their keys, `[b, H, M, ...]`."""

    q: jax.Array
    k: jax.Array
    mask: jax.Array | None
    scale: float

    def log_scores(self) -> jax.Array:
        scores = jnp.einsum("bhnc,bhmc->bhnm", self.q, self.k, preferred_element_type=jnp.float32)
        scores = scores * self.scale
        if self.mask is None:
            return scores
        # A row with nothing visible gets zeros: at _MASKED its log-sum-exp would lose log(M).
        visible = jnp.any(self.mask, axis=-1, keepdims=True)
        return jnp.where(self.mask, scores, jnp.where(visible, _MASKED, 0.0))

    def softmax(self, lse: jax.Array | None = None) -> jax.Array:
        scores = self.log_scores()
        if lse is None:
            return jax.nn.softmax(scores, axis=-1)
        return jnp.exp(scores - lse[..., None])

    def gradients(
        self, p: jax.Array, dp: jax.Array, delta: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`dq, dk` from the probabilities, their cotangent and `delta = sum(p * dp)`."""
        ds = p * (dp - delta[..., None]) * self.scale
        if self.mask is not None:
            ds = jnp.where(self.mask, ds, 0.0)
        ds = ds.astype(self.q.dtype)
        return jnp.einsum("bhnm,bhmc->bhnc", ds, self.k), jnp.einsum("bhnm,bhnc->bhmc", ds, self.q)


def _num_sample_chunks(batch: int, bytes_per_sample: int) -> int:
    """Smallest divisor of `batch` that keeps a chunk of samples within the score budget."""
    wanted = max(1, -(-batch * bytes_per_sample // _SCORE_BYTES))
    return next(c for c in range(1, batch + 1) if batch % c == 0 and c >= min(wanted, batch))


def _over_samples(body, arrays, bytes_per_sample: int):
    """`body` over chunks of the leading axis of every array, results joined again."""
    batch = jax.tree.leaves(arrays)[0].shape[0]
    chunks = _num_sample_chunks(batch, bytes_per_sample)
    if chunks == 1:
        return body(arrays)
    split = jax.tree.map(lambda a: a.reshape(chunks, batch // chunks, *a.shape[1:]), arrays)
    joined = lax.map(body, split)
    return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), joined)


def _num_query_blocks(q: jax.Array, k: jax.Array) -> int:
    row_bytes = 4 * q.shape[1] * k.shape[2]
    return max(1, -(-q.shape[2] * row_bytes // _SCORE_BYTES))


def _split_queries(array: jax.Array | None, blocks: int) -> jax.Array | None:
    """`[b, H, N, ...] -> [blocks, b, H, n, ...]`, padded with zeros to a multiple."""
    if array is None:
        return None
    n = -(-array.shape[2] // blocks)
    padding = [(0, 0)] * array.ndim
    padding[2] = (0, blocks * n - array.shape[2])
    padded = jnp.pad(array, padding)
    return jnp.moveaxis(padded.reshape(*array.shape[:2], blocks, n, *array.shape[3:]), 2, 0)


def _join_queries(blocks: jax.Array, length: int) -> jax.Array:
    joined = jnp.moveaxis(blocks, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, *joined.shape[4:])[:, :, :length]


def _split_mask(mask: jax.Array | None, blocks: int) -> jax.Array | None:
    if mask is None or mask.shape[2] > 1:
        return _split_queries(mask, blocks)
    return jnp.broadcast_to(mask[None], (blocks, *mask.shape))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Output `[B, H, N, head]` and log-sum-exp `[B, H, N]` (float32) of softmax attention."""
    scale = 1 / math.sqrt(q.shape[-1])

    def samples(arrays):
        q, k, v, mask = arrays
        blocks = _num_query_blocks(q, k)

        def queries(parts):
            q, mask = parts
            scores = _Block(q, k, mask, scale).log_scores()
            top = jnp.max(scores, axis=-1, keepdims=True)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            out = jnp.einsum(
                "bhnm,bhmc->bhnc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return (out / total).astype(v.dtype), (top + jnp.log(total))[..., 0]

        if blocks == 1:
            return queries((q, mask))
        out, lse = lax.map(queries, (_split_queries(q, blocks), _split_mask(mask, blocks)))
        return _join_queries(out, q.shape[2]), _join_queries(lse, q.shape[2])

    return _over_samples(samples, (q, k, v, mask), _bytes_per_sample(q, k))


def _bytes_per_sample(q: jax.Array, k: jax.Array) -> int:
    return 4 * q.shape[1] * q.shape[2] * k.shape[2]


def attend_gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    do: jax.Array,
    *,
    do_for_v: jax.Array | None = None,
    out_lse: tuple[jax.Array, jax.Array] | None = None,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv` of softmax attention whose probabilities are recomputed from `q` and `k`.

    Args:
      q, k, v, mask: as saved; q and k may hold fewer channels than the head (then give `scale`).
      do: cotangent of the output, all channels.
      do_for_v: the channels of `do` that go with a `v` of fewer channels; None means all.
      out_lse: output and log-sum-exp of the forward pass, if they were kept.
      scale: of the scores; None means 1 / sqrt(channels of q).
    """
    scale = scale or 1 / math.sqrt(q.shape[-1])
    if out_lse is None:
        delta = lse = None
    else:
        lse = out_lse[1]
        delta = jnp.sum(do.astype(jnp.float32) * out_lse[0].astype(jnp.float32), axis=-1)

    def samples(arrays):
        q, k, v, mask, do, do_v, lse, delta = arrays
        blocks = _num_query_blocks(q, k)

        def queries(q, mask, do, do_v, lse, delta):
            block = _Block(q, k, mask, scale)
            p = block.softmax(lse)
            dp = jnp.einsum("bhnc,bhmc->bhnm", do_v, v, preferred_element_type=jnp.float32)
            if delta is None:
                delta = jnp.sum(p * dp, axis=-1)
            dq, dk = block.gradients(p, dp, delta)
            return dq, dk, jnp.einsum("bhnm,bhnc->bhmc", p.astype(do.dtype), do)

        if blocks == 1:
            return queries(q, mask, do, do_v, lse, delta)

        def accumulate(totals, parts):
            dq, dk, dv = queries(*parts)
            wide = (totals[0] + dk.astype(jnp.float32), totals[1] + dv.astype(jnp.float32))
            return wide, dq

        parts = (
            _split_queries(q, blocks),
            _split_mask(mask, blocks),
            *(_split_queries(a, blocks) for a in (do, do_v, lse, delta)),
        )
        zeros = (
            jnp.zeros(k.shape, jnp.float32),
            jnp.zeros((*v.shape[:3], do.shape[-1]), jnp.float32),
        )
        (dk, dv), dq = lax.scan(accumulate, zeros, parts)
        return _join_queries(dq, q.shape[2]), dk.astype(k.dtype), dv.astype(v.dtype)

    arrays = (q, k, v, mask, do, do if do_for_v is None else do_for_v, lse, delta)
    return _over_samples(samples, arrays, _bytes_per_sample(q, k))


def _pruned_probabilities(q, k, mask, keep: float, dtype) -> residuals.Elements:
    scale = 1 / math.sqrt(q.shape[-1])

    def samples(arrays):
        q, k, mask = arrays
        return residuals.pack_elements(_Block(q, k, mask, scale).softmax(), keep, dtype)

    return _over_samples(samples, (q, k, mask), _bytes_per_sample(q, k))


def _pruned_gradients(saved: PrunedAttention, mask, do, num_keys: int):
    """BackRazor's backward pass: the dense formulas with pruned q, k, v and probabilities."""
    scale = 1 / math.sqrt(do.shape[-1])
    _, heads, n, head = do.shape

    def samples(arrays):
        saved, mask, do = arrays
        batch = do.shape[0]
        q = residuals.unpack_elements(saved.q, do.shape, do.dtype)
        k = residuals.unpack_elements(saved.k, (batch, heads, num_keys, head), do.dtype)
        v = residuals.unpack_elements(saved.v, (batch, heads, num_keys, head), do.dtype)
        p = residuals.unpack_elements(
            saved.probabilities, (batch, heads, n, num_keys), jnp.dtype(jnp.float32)
        )
        dp = jnp.einsum("bhnc,bhmc->bhnm", do, v, preferred_element_type=jnp.float32)
        dq, dk = _Block(q, k, mask, scale).gradients(p, dp, jnp.sum(p * dp, axis=-1))
        return dq, dk, jnp.einsum("bhnm,bhnc->bhmc", p.astype(do.dtype), do)

    return _over_samples(samples, (saved, mask, do), 4 * heads * n * num_keys)


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


def forward(qkv, mask, kind: Kind, keep: float) -> tuple[jax.Array, Any]:
    """Attention of `q, k, v` and what `kind` keeps for the backward pass."""
    q, k, v = qkv
    out, lse = attend(q, k, v, mask)
    if kind == "flash":
        return out, Flash(q, k, v, out, lse)
    if kind == "qkv":
        return out, (q, k, v)
    if kind == "channels":
        return out, choose_channels(q, k, v, keep)
    if kind == "elements":
        dtype = residuals.half_precision(q.dtype)
        return out, PrunedAttention(
            q=residuals.pack_elements(q, keep, dtype),
            k=residuals.pack_elements(k, keep, dtype),
            v=residuals.pack_elements(v, keep, dtype),
            probabilities=_pruned_probabilities(q, k, mask, keep, dtype),
        )
    raise ValueError(f"attention residual = {kind!r}: must be one of {', '.join(KINDS)}")


def backward(
    saved: Any, mask, do: jax.Array, num_keys: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`dq, dk, dv` from what `forward` kept."""
    if isinstance(saved, Flash):
        return attend_gradients(saved.q, saved.k, saved.v, mask, do, out_lse=(saved.out, saved.lse))
    if isinstance(saved, PrunedAttention):
        return _pruned_gradients(saved, mask, do, num_keys)
    if isinstance(saved, Channels):
        head = do.shape[-1]
        dq, dk, dv = attend_gradients(
            saved.q,
            saved.k,
            saved.v,
            mask,
            do,
            do_for_v=residuals.take_channels(do, saved.v_channels),
            scale=1 / math.sqrt(head),
        )
        dq, dk = (residuals.put_channels(g, saved.qk_channels, head) for g in (dq, dk))
        return dq, dk, dv
    q, k, v = saved
    return attend_gradients(q, k, v, mask, do)


def attention_pair(kind: Kind, keep: float, num_keys: int) -> pair.Pair:
    """Attention as a pair over `x = (q, k, v)` with the mask as `aux`."""
    return pair.Pair(
        lambda params, qkv, mask: forward(qkv, mask, kind, keep),
        lambda params, saved, mask, do: (None, backward(saved, mask, do, num_keys)),
    )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    residual: Kind = "flash",
    keep: float = 0.2,
) -> jax.Array:
    """Softmax attention, `[B, H, N, head], [B, H, M, head] x 2 -> [B, H, N, head]`.

    Args:
      q, k, v: one floating dtype; scores and softmax are computed in float32.
      mask: bool `[B or 1, H or 1, N or 1, M]`; False hides a key. A query with no visible key
        attends to all keys equally.
      residual: "flash", "qkv", "channels" or "elements", see the module docstring.
      keep: fraction of channels or elements kept by the last two, in (0, 1].

    Raises:
      ValueError: shapes or dtypes do not fit, or `residual` is unknown.
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
    if mask is not None:
        mask = _check_mask(mask, (*q.shape[:3], k.shape[2]))
    return pair.bind(attention_pair(residual, keep, k.shape[2]))(None, (q, k, v), mask)


def _check_mask(mask: jax.Array, full: tuple[int, ...]) -> jax.Array:
    fits = mask.ndim == 4 and all(a in (1, b) for a, b in zip(mask.shape, full, strict=True))
    if mask.dtype != jnp.bool_ or not fits or mask.shape[3] != full[3]:
        raise ValueError(
            f"mask is {mask.dtype} {mask.shape}: must be bool [B or 1, H or 1, N or 1, M] of"
            f" {full}; False hides a key"
        )
    return jnp.broadcast_to(mask, (full[0], *mask.shape[1:]))
