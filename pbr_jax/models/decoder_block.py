"""A block of a decoder in plain Flax Linen: RMSNorm, attention with grouped heads, a gated MLP.

Parameters, kernels `[in, out]`, with H heads of queries and G of keys, C channels each:

    norm1, norm2 {scale [D]}        post1, post2 {scale [D]} behind both halves, with `post_norms`
    q {kernel [D, H C]}             k, v {kernel [D, G C]}           o {kernel [H C, D]}
    q_norm, k_norm {scale [C]}, with `qk_norm`
    gate, up {kernel [D, F]}        down {kernel [F, D]}

`pbr_jax.prune` sees four activations that feed kernels: those of q, k, v; of o; of gate, up; and of
down. Norms, rotation and gate keep their inputs only and are made again in the backward pass.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pbr_jax.configs.common import Decoder
from pbr_jax.models.decoder_attention import attend, attend_cached, written
from pbr_jax.models.rotary import rotate
from pbr_jax.plans import ResidualPlan

INIT = nn.initializers.normal(0.02)
BLOCK_INPUT = "block_input"
"""Name of a block's input inside the function that is checkpointed, where a policy sees it."""


class Layer(NamedTuple):
    """What one block has of its own beside parameters; stacked `[L, ...]` for all."""

    frequencies: Float[Array, "*L half"]
    window: Int[Array, "*L"] | None  # tokens that a query sees; 0: all; None: all in every block
    cache: tuple[Float[Array, "*L B G M C"], Float[Array, "*L B G M C"]] | None = None


class Row(NamedTuple):
    """What all blocks know of the tokens of a batch."""

    positions: Int[Array, "B N"]
    segments: Int[Array, "B N"] | None


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], epsilon: float, offset: bool
) -> Float[Array, "... D"]:
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis (Zhang and Sennrich, 2019).

    In float32, rounded once to the dtype of `x`; with `offset` it is `1 + scale`. Differentiated,
    it keeps its arguments.
    """
    wide, factor = x.astype(jnp.float32), scale.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    factor = 1 + factor if offset else factor
    normal = wide * jax.lax.rsqrt(mean + epsilon)
    return (normal * factor.reshape((1,) * (x.ndim - 1) + factor.shape)).astype(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with its `scale`, in `param_dtype`."""

    shape: Decoder
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        offset = self.shape.norm_offset
        init = nn.initializers.zeros if offset else nn.initializers.ones
        scale = self.param("scale", init, x.shape[-1:], self.param_dtype)
        return rms_norm(x, scale, self.shape.norm_eps, offset)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def gated(
    gate: Float[Array, "... F"], up: Float[Array, "... F"], activation: str
) -> Float[Array, "... F"]:
    """SwiGLU or GeGLU (Shazeer, 2020) of two products; differentiated, it keeps both."""
    act = nn.silu if activation == "silu" else functools.partial(nn.gelu, approximate=True)
    return act(gate) * up


class Block(nn.Module):
    """`(x [B, N, D], its Layer, Row) -> (x, keys and values)`, as `nn.scan` has it."""

    heads: int  # H
    mlp_dim: int  # F
    shape: Decoder  # with `kv_heads` and `head_dim`
    dtype: jnp.dtype  # of activations
    param_dtype: jnp.dtype
    plan: ResidualPlan
    keeps_cache: bool = False  # whether it returns keys and values

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, row: Row) -> tuple[jax.Array, Any]:
        # Named inside the block: a name that a scan hands on says nothing to a policy.
        x = checkpoint_name(x, BLOCK_INPUT)
        h, kept = self._attention(self._norm("norm1")(x), layer, row)
        x = x + (self._norm("post1")(h) if self.shape.post_norms else h)
        # Gate and up read one activation, and share its columns.
        h = self._norm("norm2")(x)
        h = gated(self._linear("gate")(h), self._linear("up")(h), self.shape.activation)
        h = self._linear("down", x.shape[-1])(h)
        return x + (self._norm("post2")(h) if self.shape.post_norms else h), kept

    def _attention(self, h: jax.Array, layer: Layer, row: Row) -> tuple[jax.Array, Any]:
        s, head = self.shape, self.shape.head_dim
        assert head is not None and s.kv_heads is not None

        def heads(name: str, count: int) -> jax.Array:
            y = self._linear(name, count * head)(h).reshape(*h.shape[:2], count, head)
            return jnp.swapaxes(y, 1, 2)

        q, k, v = heads("q", self.heads), heads("k", s.kv_heads), heads("v", s.kv_heads)
        # Norm, then rotation: scores depend on how far apart two tokens stand.
        if s.qk_norm:
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        q, k = (rotate(x, row.positions, layer.frequencies) for x in (q, k))
        if s.query_scale not in (None, head):  # attention itself divides by the root of `head`
            q = q * jnp.asarray(math.sqrt(head / s.query_scale), q.dtype)
        # A whole row in training; one token against what is kept of those before it in generation.
        if layer.cache is None:
            how = {"kind": self.plan.attention, "implementation": self.plan.implementation}
            y = attend(q, k, v, row.segments, layer.window, **how)
        else:
            k, v = (
                written(old, new, row.positions)
                for old, new in zip(layer.cache, (k, v), strict=True)
            )
            y = attend_cached(q, k, v, row.positions, layer.window)
        y = jnp.swapaxes(y, 1, 2).reshape(*h.shape[:2], self.heads * head)
        return self._linear("o", h.shape[-1])(y), (k, v) if self.keeps_cache else None

    def _linear(self, name: str, features: int | None = None) -> nn.Dense:
        return nn.Dense(
            features or self.mlp_dim,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=INIT,
            name=name,
        )

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.shape, self.param_dtype, name=name)
