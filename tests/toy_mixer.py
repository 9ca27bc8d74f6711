"""A third family in one file: a tiny MLP-Mixer (Tolstikhin et al., 2021), without attention.

    --config.model.family=toy_mixer:FAMILY

Nothing of the package knows of it. Its record, its module and its sites are all that there is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pbr_jax.configs.common import Model
from pbr_jax.families import Architecture, Family, Site
from pbr_jax.models.blocks import LinearParams, NormParams
from pbr_jax.ops import layer_norm, linear, pair
from pbr_jax.plans import ResidualPlan

# Layer -> widths of its input and output, in words of `_widths`.
LAYERS = {
    "tokens_in": ("tokens", "hidden"),
    "tokens_out": ("hidden", "tokens"),
    "channels_in": ("width", "hidden"),
    "channels_out": ("hidden", "width"),
}


def _widths(model: Model) -> dict[str, int]:
    assert model.width is not None and model.mlp_dim is not None
    tokens = (model.image_size // model.patch) ** 2
    return {"tokens": tokens, "width": model.width, "hidden": model.mlp_dim}


def _describe(model: Model) -> Architecture:
    widths = _widths(model)
    sites = {
        name: Site(widths[inputs], widths[outputs], ("mixer", name))
        for name, (inputs, outputs) in LAYERS.items()
    }
    return Architecture(widths["width"], model.depth, widths["tokens"], sites)


class Block(nn.Module):
    """Mixes tokens, then channels; every linear layer is pruned as the plan says."""

    widths: Mapping[str, int]
    plan: ResidualPlan

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        def mlp(x, mixed):
            for end in ("in", "out"):
                name = f"{mixed}_{end}"
                params = LinearParams(*(self.widths[w] for w in LAYERS[name]), name=name)()
                kind = self.plan.linear if train else "dense"
                layer = linear.Settings(kind, self.plan.keep_at(name))
                x = pair.bind(linear.linear_pair(layer))(params, x, None)
                x = nn.gelu(x) if end == "in" else x
            return x

        norm1, norm2 = (NormParams(self.widths["width"], name=n)() for n in ("norm1", "norm2"))
        h = layer_norm.layer_norm(x, norm1["scale"], norm1["bias"])
        x = x + mlp(h.swapaxes(1, 2), "tokens").swapaxes(1, 2)
        return x + mlp(layer_norm.layer_norm(x, norm2["scale"], norm2["bias"]), "channels"), None


class Mixer(nn.Module):
    """`[B, H, W, C] -> logits [B, num_classes]`."""

    model: Model
    plan: ResidualPlan

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False, part: Any = None) -> jax.Array:
        m = self.model
        patches = nn.Conv(m.width, (m.patch, m.patch), (m.patch, m.patch), name="stem")(images)
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0, "selection": 0},
            split_rngs={"params": True},
            length=m.depth,
            in_axes=nn.broadcast,
        )
        x = patches.reshape(images.shape[0], -1, m.width)
        x, _ = blocks(_widths(m), self.plan, name="mixer")(x, train)
        return nn.Dense(m.num_classes, name="head")(jnp.mean(x, axis=1))

    @staticmethod
    def inputs(batch: Mapping[str, Any]) -> Any:
        return batch["image"]

    def input_specs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        m = self.model
        shape = (batch_size, m.image_size, m.image_size, m.channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}


FAMILY = Family(
    name="toy-mixer",
    title="Mixer",
    reads="image",
    describe=_describe,
    build="toy_mixer:Mixer",
    shape=("width", "depth", "mlp_dim"),
    settings=("patch", "image_size", "channels"),
)
