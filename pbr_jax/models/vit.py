"""Vision Transformer (Dosovitskiy et al., 2021), pre-norm, with scanned blocks.

Parameters, kernels `[in, out]`:

    embedding {kernel [patch * patch * C, D], bias}   cls [1, 1, D]   pos_embedding [1, N, D]
    blocks    (see `pbr_jax.models.blocks`)
    norm {scale, bias [D]}   head {kernel [D, classes], bias}
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from pbr_jax.configs.common import SHAPE, Model
from pbr_jax.models.blocks import BLOCKS, LinearParams, NormParams, run_blocks
from pbr_jax.models.inputs import image_specs
from pbr_jax.ops import half_blocks, layer_norm, linear, pair
from pbr_jax.ops.arrays import Part
from pbr_jax.plans import ResidualPlan

_EPSILON = 1e-6


class ViT(nn.Module):
    """ViT classifier: `[B, H, W, C] -> logits float32 [B, num_classes]`."""

    width: int  # D
    depth: int  # L
    heads: int  # H
    mlp_dim: int  # hidden width of the MLP
    patch: int  # side in pixels
    image_size: int  # side in pixels
    num_classes: int
    channels: int = 3
    pool: Literal["cls", "mean"] = "cls"  # the class token, or without one the mean of the patches
    dropout: float = 0.0  # rate on both residual branches and after GELU
    dtype: jnp.dtype = jnp.float32  # of the activations; parameters stay float32
    approximate_gelu: bool = False  # tanh form instead of erf
    plan: ResidualPlan = ResidualPlan()  # what the blocks keep for the backward pass
    exchanges = (BLOCKS,)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, part: Part | None = None
    ) -> jax.Array:
        shape = half_blocks.BlockShape(self.heads, _EPSILON, self.dropout, self.approximate_gelu)
        x = run_blocks(self, self._embed(images), {}, shape, train=train, part=part)
        # LayerNorm acts on each token alone: the class token is taken first, to keep nothing else.
        if self.pool == "cls":
            x = x[:, 0]
        norm = NormParams(self.width, name="norm")()
        x = layer_norm.layer_norm(x, norm["scale"], norm["bias"], epsilon=_EPSILON)
        if self.pool == "mean":
            x = jnp.mean(x, axis=1, dtype=jnp.float32).astype(self.dtype)
        head = LinearParams(self.width, self.num_classes, nn.initializers.zeros, name="head")()
        return linear.linear(x, head["kernel"], head["bias"]).astype(jnp.float32)

    @staticmethod
    def inputs(batch: Mapping[str, Any]) -> Any:
        """What the model reads of a batch."""
        return batch["image"]

    def input_specs(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the inputs in a batch."""
        return image_specs(batch_size, self.image_size, self.channels)

    def _embed(self, images: jax.Array) -> jax.Array:
        """Patches as tokens, `[B, H, W, C] -> [B, N, D]`, class token first, positions added."""
        expected = (self.image_size, self.image_size, self.channels)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {images.shape}: must be [B, {', '.join(map(str, expected))}],"
                " the image_size and channels of this model"
            )
        p = LinearParams(self.patch**2 * self.channels, self.width, name="embedding")()
        x = pair.bind(patch_embedding(self.patch, self.dtype))(p, images, None)
        if self.pool == "cls":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
            first = jnp.broadcast_to(cls.astype(x.dtype), (len(x), 1, self.width))
            x = jnp.concatenate([first, x], axis=1)
        # Positions are as many as tokens, so weights of another image size must be resized.
        normal = nn.initializers.normal(0.02)
        pos = self.param("pos_embedding", normal, (1, x.shape[1], self.width))
        return x + pos.astype(x.dtype)


def build(model: Model, plan: ResidualPlan) -> ViT:
    """The ViT that a configuration describes."""
    fields = (*SHAPE, "patch", "image_size", "num_classes", "channels", "pool", "dropout")
    settings = {name: getattr(model.resolved(), name) for name in fields}
    return ViT(**settings, dtype=jnp.dtype(model.dtype), plan=plan)


def patch_embedding(patch: int, dtype: DTypeLike) -> pair.Pair:
    """Linear projection of patches, `[B, H, W, C] -> [B, N, D]`, that keeps the images themselves.

    They are an input of the step and are there anyway; their patches would be one more copy.
    """

    def patches(images: jax.Array) -> jax.Array:
        # `[B, H, W, C]` to a grid of patches, whose pixels lie side by side in the last axis.
        batch, height, width, channels = images.shape
        grid = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
        flat = (batch, height // patch * (width // patch), patch * patch * channels)
        return grid.transpose(0, 1, 3, 2, 4, 5).reshape(flat).astype(dtype)

    def forward(params, images, aux):
        return linear.project(patches(images), params["kernel"], params["bias"]), images

    def backward(params, images, aux, dy):
        # Without the barrier XLA would keep the patches of the forward pass after all.
        images, dy = lax.optimization_barrier((images, dy))
        grads = linear.parameter_gradients(params, patches(images), dy, linear.Settings())
        d_patches = linear.input_gradient(dy, params["kernel"])
        (d_images,) = jax.linear_transpose(patches, images)(d_patches)
        return grads, d_images

    return pair.Pair(forward, backward)
