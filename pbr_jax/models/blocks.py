"""Declarations that the model families share: parameters of a layer, and the scanned blocks.

Parameters of the blocks are stacked `[L, ...]` and the blocks are one loop: compile time does not
grow with depth, and what a block keeps for the backward pass is exactly what its plan says.

    blocks    norm1, norm2 {scale, bias [L, D]}
              qkv {kernel [L, D, 3 D], bias}  proj {kernel [L, D, D], bias}
              fc1 {kernel [L, D, F], bias}    fc2 {kernel [L, F, D], bias}

A training call also takes the collection `selection`, `{"blocks": {site: {columns, rows, active}}}`
with a leading axis L on every leaf (see `pbr_jax.ops.linear`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.ops import half_blocks, pair
from pbr_jax.ops.arrays import Part, sample_keys
from pbr_jax.ops.stack import stack
from pbr_jax.plans import ResidualPlan

BLOCKS = "blocks"
"""Name of the blocks' parameters, which a module that calls `run_blocks` has in its `exchanges`."""
XAVIER = nn.initializers.xavier_uniform()


class LinearParams(nn.Module):
    """Declares `kernel [D, F]` and `bias [F]`; returns them with what `selection` has for them."""

    in_features: int
    out_features: int
    initializer: nn.initializers.Initializer = XAVIER

    @nn.compact
    def __call__(self) -> dict:
        params = {
            "kernel": self.param("kernel", self.initializer, (self.in_features, self.out_features)),
            "bias": self.param("bias", nn.initializers.zeros, (self.out_features,)),
        }
        # Nothing is selected in evaluation, or of a layer that is trained whole.
        names = (n for n in ("columns", "rows", "active") if self.has_variable("selection", n))
        return params | {n: self.get_variable("selection", n) for n in names}


class NormParams(nn.Module):
    """Declares `scale` and `bias`, `[D]`."""

    features: int

    @nn.compact
    def __call__(self) -> dict:
        return {
            "scale": self.param("scale", nn.initializers.ones, (self.features,)),
            "bias": self.param("bias", nn.initializers.zeros, (self.features,)),
        }


class BlockParams(nn.Module):
    """Declares the parameters of one transformer block, in the order of the forward pass."""

    width: int
    mlp_dim: int
    initializer: nn.initializers.Initializer

    @nn.compact
    def __call__(self, carry: None) -> tuple[None, dict]:
        width = self.width
        parts = {
            "norm1": NormParams(width, name="norm1"),
            "qkv": LinearParams(width, 3 * width, self.initializer, name="qkv"),
            "proj": LinearParams(width, width, self.initializer, name="proj"),
            "norm2": NormParams(width, name="norm2"),
            "fc1": LinearParams(width, self.mlp_dim, self.initializer, name="fc1"),
            "fc2": LinearParams(self.mlp_dim, width, self.initializer, name="fc2"),
        }
        return None, {name: part() for name, part in parts.items()}


def run_blocks(
    module: Any,
    x: jax.Array,
    aux: dict,
    shape: half_blocks.BlockShape,
    *,
    train: bool,
    part: Part | None = None,
    initializer: nn.initializers.Initializer = XAVIER,
) -> jax.Array:
    """All blocks one after the other, named `BLOCKS`; call it inside `nn.compact`.

    Args:
      module: that the blocks are part of, with `depth`, `mlp_dim` and `plan`. The plan is that of
        training: evaluation keeps nothing.
      x: `[B, N, D]`.
      aux: leading axis B, for every block (see `half_blocks`).
      part: which samples of the batch these are; None for all. Parameters and gradients of the
        blocks go through its exchange.
    """
    exchange = None if part is None else part.exchange
    if exchange is None:
        # A scan only over the declarations: the blocks themselves are run by `ops.stack`.
        declared = nn.scan(
            BlockParams,
            variable_axes={"params": 0, "selection": 0},
            split_rngs={"params": True},
            length=module.depth,
        )
        _, params = declared(x.shape[-1], module.mlp_dim, initializer, name=BLOCKS)(None)
    else:  # a device's shares, which do not have the shapes that are declared
        selected = module.get_variable("selection", BLOCKS, {})
        own = module.get_variable("params", BLOCKS)
        params = {name: {**leaves, **selected.get(name, {})} for name, leaves in own.items()}
        exchange = exchange.rounded(x.dtype)  # in which they are multiplied
    if module.is_initializing():
        return x  # of the same shape and dtype: parameters are drawn without running the blocks
    plan = module.plan
    if not train:
        plan = ResidualPlan(implementation=plan.implementation)
    elif max(shape.dropout, shape.attention_dropout) > 0 or plan.stochastic_codes:
        aux = aux | {"keys": sample_keys(module.make_rng("dropout"), x.shape[0], part)}
    halves = half_blocks.transformer_block(plan, shape)
    blocks = stack(halves, plan.batch_chunks, _enter, exchange, (BLOCKS,), plan.offload)
    return pair.bind(blocks, functools.partial(half_blocks.check_selection, plan))(params, x, aux)


def _enter(aux: dict, index: jax.Array) -> dict:
    """What the block of that number is told: keys of its own, and whether it is the first."""
    if "keys" not in aux:
        return aux
    keys = aux["keys"]
    return aux | {
        "keys": jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index),
        "embedded": jnp.broadcast_to(index == 0, keys.shape),
    }
