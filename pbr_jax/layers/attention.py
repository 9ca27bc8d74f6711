"""Attention that keeps no N x N array, and one copy of the selected columns of its input."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.layers.columns import Columns, selected_columns
from pbr_jax.layers.linear import (
    Declared,
    DenseGeneral,
    Initializer,
    Linear,
    applied,
    linear_settings,
)
from pbr_jax.ops import attention
from pbr_jax.ops.arrays import sample_keys
from pbr_jax.ops.visibility import Visibility, dropout_seeds
from pbr_jax.plans import Implementation


class MultiHeadDotProductAttention(nn.Module):
    """Multi-head attention that stores no N x N array; drop-in for Flax's of the same name.

    In self-attention query, key and value share their input, and so their columns. Dropout of the
    attention weights draws for every sample and head. Autoregressive decoding is not offered.
    """

    num_heads: int  # H; divides `qkv_features`
    qkv_features: int | None = None  # None takes the width of the input
    out_features: int | None = None  # likewise
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    residual: str = "flash"  # what attention keeps, a kind of `pbr_jax.ops.attention`
    keep: float = 0.1  # fraction of columns kept by the four linear layers
    attention_keep: float = 0.2  # fraction kept by the residuals "channels" and "elements"
    dropout_rate: float = 0.0  # of the attention weights, from the stream `dropout`
    deterministic: bool | None = None  # no dropout; here or in the call, if there is a rate
    implementation: Implementation | None = None  # of attention and the linear layers
    broadcast_dropout: bool = False  # the stock layer's True is refused

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array:
        """`[..., N, D] (, [..., M, D] twice) -> [..., N, out]`; `mask` like `[..., H, N, M]`."""
        if self.broadcast_dropout:
            raise ValueError(
                "broadcast_dropout = True: must be False; dropout of the attention weights draws"
                " for every sample and head"
            )
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        # Attention has one batch axis; what is one array stays one, whose columns are shared.
        lead = inputs_q.shape[:-2]
        given = [inputs_q, inputs_k, inputs_v]
        if len(lead) != 1:
            flat = {id(a): a.reshape(-1, *a.shape[-2:]) for a in given}
            given = [flat[id(a)] for a in given]
        if mask is not None:
            mask = mask.astype(bool)
            if len(lead) != 1:
                mask = jnp.broadcast_to(mask, (*lead, *mask.shape[-3:]))
                mask = mask.reshape(-1, *mask.shape[-3:])
        width = self.qkv_features or inputs_q.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"num_heads = {self.num_heads}: must divide qkv_features = {width}")
        settings = linear_settings(self) | {"use_bias": self.use_bias}
        heads = (self.num_heads, width // self.num_heads)
        # Of each input: its columns, and the layers that read it.
        columns: dict[int, Columns] = {}
        waiting: dict[int, list[Linear]] = {}
        for name, x in zip(("query", "key", "value"), given, strict=True):
            layer = Declared(heads, name=name, **settings)
            if id(x) not in columns:
                columns[id(x)] = selected_columns(layer, x.shape[-1], self.keep)
            waiting.setdefault(id(x), []).append(layer(x, columns[id(x)]))
        inputs = {id(x): x for x in given}
        found = {key: iter(applied(own, inputs[key])) for key, own in waiting.items()}
        q, k, v = (jnp.swapaxes(next(found[id(x)]), -3, -2) for x in given)
        rate, seeds = self.dropout_rate, None
        if rate > 0 and nn.merge_param("deterministic", self.deterministic, deterministic):
            rate = 0.0
        if rate > 0:
            seeds = dropout_seeds(sample_keys(self.make_rng("dropout"), q.shape[0]))
        out = attention.attention(
            q,
            k,
            v,
            Visibility(mask=mask, seeds=seeds),
            dropout=rate,
            kind=self.residual,
            keep=self.attention_keep,
            implementation=self.implementation,
        )
        features = self.out_features or inputs_q.shape[-1]
        join = DenseGeneral(features, axis=(-2, -1), name="out", **settings)
        out = join(jnp.swapaxes(out, -3, -2))
        return out if len(lead) == 1 else out.reshape(*lead, *out.shape[1:])
