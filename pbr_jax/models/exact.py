"""Plain ViT and BERT in any precision, as the papers write them, to check gradients against.

They share no code with the ops and layers of this package, and save whatever autodiff saves. ViT:
Dosovitskiy et al. (2021), equations 1-4; BERT: Devlin et al. (2019), post-norm.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.configs.common import Config

Batch = Mapping[str, Any]


def vit_logits(config: Config, params: Any, batch: Batch) -> jax.Array:
    """Logits of a ViT: `image [B, H, W, C] -> [B, classes]`."""
    m = config.model.resolved()
    images = jnp.asarray(batch["image"], params["embedding"]["kernel"].dtype)
    rows, side = len(images), m.image_size // m.patch
    # Images become rows of patches (equation 1).
    grid = images.reshape(rows, side, m.patch, side, m.patch, m.channels)
    patches = grid.transpose(0, 1, 3, 2, 4, 5).reshape(rows, side * side, -1)
    x = _linear(patches, params["embedding"])
    if m.pool == "cls":
        x = jnp.concatenate([jnp.repeat(params["cls"], rows, axis=0), x], axis=1)

    def block(x, p):  # equations 2 and 3
        x = x + _attend(norm(x, p["norm1"], 1e-6), p, m.heads)
        return x + _mlp(norm(x, p["norm2"], 1e-6), p), None

    x, _ = lax.scan(block, x + params["pos_embedding"], params["blocks"])
    x = norm(x, params["norm"], 1e-6)
    return _linear(x[:, 0] if m.pool == "cls" else x.mean(1), params["head"])


def bert_logits(config: Config, params: Any, batch: Batch) -> jax.Array:
    """Logits of a BERT: `tokens`, `token_types`, `lengths` -> `[B, classes]`."""
    words = params["embedding"]
    length = batch["tokens"].shape[1]
    # Keys beyond the length of a text are hidden.
    hidden = jnp.arange(length, dtype=jnp.int32) >= batch["lengths"][:, None, None, None]
    x = words["word"][batch["tokens"]] + words["position"][:length]
    x = x + words["type"][batch["token_types"]]

    # A block begins with the LayerNorm that ends the half before it.
    def block(x, p):
        x = norm(x, p["norm1"], 1e-12)
        x = norm(x + _attend(x, p, config.model.resolved().heads, hidden), p["norm2"], 1e-12)
        return x + _mlp(x, p), None

    x, _ = lax.scan(block, x, params["blocks"])
    x = norm(x, params["norm"], 1e-12)
    return _linear(jnp.tanh(_linear(x[:, 0], params["pooler"])), params["head"])


def norm(x: jax.Array, p: Mapping[str, jax.Array], epsilon: float) -> jax.Array:
    """LayerNorm over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def _linear(x, p):
    return x @ p["kernel"] + p["bias"]


def _mlp(x, p):
    return _linear(jax.nn.gelu(_linear(x, p["fc1"]), approximate=False), p["fc2"])


def _attend(x, p, heads, hidden=None):
    def split(part):
        return part.reshape(*part.shape[:2], heads, -1).swapaxes(1, 2)

    q, k, v = (split(part) for part in jnp.split(_linear(x, p["qkv"]), 3, axis=-1))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = jnp.where(hidden, -jnp.inf, scores)
    return _linear((jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape), p["proj"])
