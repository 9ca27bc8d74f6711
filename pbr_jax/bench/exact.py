"""Gradients of plain models and results of plain ops in float64, to check ours against.

They share no code with the ops and layers of this package, and save whatever autodiff saves.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.bench.cases.attention import with_gradients
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.configs.common import Config
from pbr_jax.families import find, late
from pbr_jax.models.exact import norm
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


def is_known(case: BenchCase) -> bool:
    """Whether a plain form of the case is here; none hides keys."""
    return case.op in OPS and not any(word in case.shape for word in ("dropout", "causal"))


def case_results(case: BenchCase, arrays: list[jax.Array]) -> list[np.ndarray]:
    """First results of a benchmark case, as many as are known here.

    Dropout, codes and the choice of elements are not known: only their own code defines them.
    """
    if not is_known(case):
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
        norm(x, {"scale": scale, "bias": bias}, 1e-6),
    ),
    "LayerNorm, backward and residual addition": _layer_norm_backward,
    "matrix product, x y": lambda x, y: (x @ y,),
    "matrix product, x^T dy": lambda x, dy: (x.T @ dy,),
}
