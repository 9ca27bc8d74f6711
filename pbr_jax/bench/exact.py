"""Plain models and ops in float64, as the papers write them, to check gradients against.

They share no code with the ops and layers of this package, and save whatever autodiff saves. ViT:
Dosovitskiy et al. (2021), equations 1-4; BERT: Devlin et al. (2019), post-norm.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pbr_jax.bench.cases.attention import with_gradients
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.configs.common import Config
from pbr_jax.families import find, late
from pbr_jax.training.step import Batch


def gradient(config: Config, params: Any, batch: Batch) -> Any:
    """Gradient of the task's mean loss in all parameters, without dropout; float64 NumPy arrays.

    Raises:
      ValueError: the family has no plain model.
    """
    name = config.model.family
    family = find(name)
    if family.exact is None:
        raise ValueError(f"model.family = {name}: has no plain model to check against")
    outputs, task = late(family.exact), late(family.task)

    def loss(params):
        return jnp.mean(task.losses(outputs(config, params, batch), batch))

    # Float64 is on for this alone: all else computes as it does in training.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))


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
        x = x + _attend(_norm(x, p["norm1"], 1e-6), p, m.heads)
        return x + _mlp(_norm(x, p["norm2"], 1e-6), p), None

    x, _ = lax.scan(block, x + params["pos_embedding"], params["blocks"])
    x = _norm(x, params["norm"], 1e-6)
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
        x = _norm(x, p["norm1"], 1e-12)
        x = _norm(x + _attend(x, p, config.model.resolved().heads, hidden), p["norm2"], 1e-12)
        return x + _mlp(x, p), None

    x, _ = lax.scan(block, x, params["blocks"])
    x = _norm(x, params["norm"], 1e-12)
    return _linear(jnp.tanh(_linear(x[:, 0], params["pooler"])), params["head"])


def _norm(x, p, epsilon):
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


def case_results(case: BenchCase, arrays: list[jax.Array]) -> list[np.ndarray]:
    """First results of a benchmark case, as many as are known here.

    Dropout, codes and the choice of elements are not known: only their own code defines them.
    """
    if "dropout" in case.shape or case.op not in OPS:
        return []
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = [
            jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
            for a in arrays
        ]
        return [np.asarray(leaf) for leaf in jax.jit(OPS[case.op])(*wide)]


def _softmax_attention(q, k, v):
    return jax.nn.softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v


def _layer_norm_backward(dy, skip, x_hat, rstd, scale):
    d = dy * scale
    mean = (d * x_hat).mean(-1, keepdims=True)
    dx = skip + rstd * (d - d.mean(-1, keepdims=True) - x_hat * mean)
    return dy.sum((0, 1)), (dy * x_hat).sum((0, 1)), dx  # in the order of leaves: bias, scale


OPS: Mapping[str, Callable[..., Any]] = {
    "weight gradient": lambda x, dy: (x.T @ dy, dy.sum(0)),
    "attention, forward": lambda q, k, v: (_softmax_attention(q, k, v),),
    "attention, forward and backward, flash": functools.partial(with_gradients, _softmax_attention),
    "attention, forward and backward, qkv": functools.partial(with_gradients, _softmax_attention),
    "LayerNorm, forward, int8": lambda x, scale, bias: (
        _norm(x, {"scale": scale, "bias": bias}, 1e-6),
    ),
    "LayerNorm, backward and residual addition": _layer_norm_backward,
    "matrix product, x y": lambda x, y: (x @ y,),
    "matrix product, x^T dy": lambda x, dy: (x.T @ dy,),
}
