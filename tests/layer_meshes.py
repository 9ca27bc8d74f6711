"""Layers on four devices, equal to one; run by tests/layers/test_meshes.py.

A case is `axes-parallel-net`. Prints a line of JSON: {case: largest error}.
"""

import contextlib
import functools
import json
import sys

import jax
import jax.numpy as jnp
from flax import linen as nn
from four_devices import AXES, largest_error, on_every_device, put
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rewritten import numbers

from pbr_jax import layers
from pbr_jax.ops import attention_xla

D = 16
KEYS = {"selection": jax.random.key(7), "dropout": jax.random.key(3)}


class Block(nn.Module):
    """A block of a transformer, with a mask and dropout."""

    dropout: float

    @nn.compact
    def __call__(self, x, _):
        attend = layers.MultiHeadDotProductAttention(
            num_heads=4, dropout_rate=self.dropout, deterministic=False, use_bias=False, name="mha"
        )
        x = x + attend(layers.LayerNorm(name="norm")(x), mask=nn.make_causal_mask(x[..., 0]))
        return x + layers.MlpBlock(32, name="mlp")(x), None


class Blocks(nn.Module):
    """Two of them in a scan."""

    dropout: float = 0.5

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "selection": 0}
        rngs = {"params": True, "selection": True, "dropout": True}
        scan = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=2)
        return scan(self.dropout, name="blocks")(x, None)[0]


class Elements(nn.Module):
    """BackRazor's attention over inputs of rank 4, and a layer of several axes."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], 2, 3, D)
        attend = layers.MultiHeadDotProductAttention(4, use_bias=False, residual="elements")
        return layers.DenseGeneral((2, 4), axis=(-2, -1), name="general")(attend(x))


HEADS, JOIN = P(None, None, "model"), P(None, "model")
TENSOR = {  # Megatron's cut of the scanned parameters, by the end of their paths
    "query/kernel": HEADS,
    "key/kernel": HEADS,
    "value/kernel": HEADS,
    "out/kernel": JOIN,
    "Dense_0/kernel": HEADS,
    "Dense_0/bias": JOIN,
    "Dense_1/kernel": JOIN,
}


def spec_of(parallel, path, leaf):
    """Of a parameter; FSDP splits outputs by the axis that splits the batch."""
    if parallel == "fsdp" and leaf.ndim > 1 and "norm" not in path:
        return P(*[None] * (leaf.ndim - 1), "data")
    own = TENSOR if parallel == "tensor" else {}
    return own.get("/".join(path.split("/")[-2:]), P())


def gradients(module, params, x):
    def loss(params, x):
        y = module.apply({"params": params}, x, rngs=KEYS, mutable=["selection"])[0]
        return jnp.sum(y * y + 0.1 * y * y * y)

    return jax.value_and_grad(loss, argnums=(0, 1))(params, x)


def run(axes, parallel, net):
    # Dropout numbers the samples that a device has: inside `shard_map` others are dropped.
    module = Elements() if net == "elements" else Blocks(0.0 if axes in AXES else 0.5)
    x = numbers(1, 8, 6, D)
    params = module.init(KEYS | {"params": jax.random.key(0)}, x)["params"]
    own = functools.partial(gradients, module)
    expected = jax.jit(own)(params, x)
    if axes in AXES:
        return largest_error(on_every_device(own, axes, params, x)[0], expected)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType[axes],) * 2)
    # Arrays tell their mesh, so that none has to be in scope.
    with jax.set_mesh(mesh) if parallel == "tensor" else contextlib.nullcontext():
        placed = put(mesh, params, lambda path, leaf: spec_of(parallel, path, leaf))
        batch = put(mesh, x, lambda path, leaf: P("data"))
        found = jax.jit(own)(placed, batch)
    if axes == "Explicit":  # a gradient lies as what it is of
        same = jax.tree.map(
            lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), found[1], (placed, batch)
        )
        assert all(jax.tree.leaves(same)), same
    return largest_error(found, expected)


if __name__ == "__main__":
    # Scores are held by pieces, as those of long sequences are.
    attention_xla._SCORE_BYTES = 4 * 4 * 6 * 4
    print(json.dumps({case: run(*case.split("-")) for case in sys.argv[1:]}))
