"""LoRA for the trainer: the A and B of a Linen module are trained, and nothing else of it.

Frozen parameters have neither gradient nor update: in `trained` each is an array of no elements,
which `NOTHING` gathers. Any provider whose loss is `(params, extra, batch, key)` is made one of
these by `adapters`; `own_adapted` does it to a module of one's own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Lora
from pbr_jax.models import lora as models
from pbr_jax.models.own_call import OwnModel
from pbr_jax.training.selection import SelectorState
from pbr_jax.training.slices import ALL, NOTHING

PyTree = Any


def own_adapted(own: OwnModel, dtype: str) -> OwnModel:
    """The pure functions of a module `with_lora`: A and B float32, and multiplied in `dtype`.

    Otherwise a product with a float32 A would make all that follows float32.
    """

    def shapes(specs):
        params, extra = own.shapes(specs)
        return models.cast(params, jnp.float32), extra

    def begin(seed, specs):
        params, *rest = own.begin(seed, specs)
        return models.cast(params, jnp.float32), *rest

    def apply(params, *rest):
        return own.apply(models.cast(params, dtype), *rest)

    return OwnModel(own.module, shapes, begin, apply)


def adapters(loss: Callable[..., Any], lora: Lora) -> dict[str, Any]:
    """The fields of a `PrunedModel` that say what is trained, of a module `with_lora`.

    Args:
      loss: `(params, extra, batch, key) -> (loss, (figures, extra))`, of all parameters.
      lora: the settings by which the module was made.
    """

    def split(params, selection):
        trained = models.map_leaves(_same, NOTHING.gather, params)
        return trained, models.map_leaves(NOTHING.gather, _same, params)

    def of_adapters(trained, frozen, extra, selection, batch, key, part=None):
        params = models.map_leaves(lambda own, _: own, lambda _, base: base, trained, frozen)
        return loss(params, extra, batch, key)

    def slices(selection, params):
        return models.map_leaves(lambda _: ALL, lambda _: NOTHING, params)

    return {
        "policies": lambda: SelectorState({}, {}),
        "select": lambda key, state, step: (state, {}),
        "split": split,
        "loss": of_adapters,
        "slices": slices,
        "pack": lambda selection, grads: grads,
        "unbias": lambda state, selection, grads: grads,
        "learn": lambda state, *rest: state,
        "merged": functools.partial(_merged, lora=lora),
    }


@functools.partial(jax.jit, static_argnames="lora")
def _merged(params: PyTree, lora: Lora) -> PyTree:
    return models.merged(params, lora)


def _same(leaf: Any) -> Any:
    return leaf
