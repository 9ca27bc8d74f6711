"""LayerNorm and MLP that keep less for the backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.layers.linear import Dense, Initializer, linear_settings, promoted
from pbr_jax.ops import gelu, layer_norm
from pbr_jax.plans import Implementation


class LayerNorm(nn.Module):
    """Layer normalisation that saves one array; drop-in for `nn.LayerNorm` over the last axis."""

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Ones and zeros stand in for what the layer does not learn.
        shape, params = x.shape[-1:], {}
        if self.use_scale:
            params["scale"] = self.param("scale", self.scale_init, shape, self.param_dtype)
        if self.use_bias:
            params["bias"] = self.param("bias", self.bias_init, shape, self.param_dtype)
        x = promoted(x, self.dtype, params)
        # Ones and zeros stand in for what the layer does not learn.
        scale = params.get("scale", jnp.ones(shape, x.dtype))
        bias = params.get("bias", jnp.zeros(shape, x.dtype))
        return layer_norm.layer_norm(x, scale, bias, epsilon=self.epsilon)


class MlpBlock(nn.Module):
    """`Dense -> GELU -> Dense`, the MLP of a transformer; parameters `Dense_0`, `Dense_1`."""

    mlp_dim: int  # hidden width
    out_dim: int | None = None  # None takes the width of the input
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.normal(1e-6)
    keep: float = 0.1  # fraction of columns kept by both layers
    approximate: bool = False  # tanh form of GELU
    implementation: Implementation | None = None  # of the weight gradients

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer: Callable[..., Dense] = functools.partial(Dense, **linear_settings(self))
        u = layer(self.mlp_dim, name="Dense_0")(x)
        g = gelu.gelu(u, approximate=self.approximate)
        return layer(self.out_dim or x.shape[-1], name="Dense_1")(g)
