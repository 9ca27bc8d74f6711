"""A user's Flax module, Linen or NNX, as pure functions of nested dicts of arrays."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import linen, nnx

from pbr_jax.configs.common import Lora, Model
from pbr_jax.families import late
from pbr_jax.models.lora import with_lora
from pbr_jax.models.own_call import OwnModel, Reads
from pbr_jax.models.own_linen import of_linen
from pbr_jax.models.own_nnx import of_nnx


@functools.lru_cache(4)  # pretrained weights are read once
def make_own(place: str, model: Model, lora: Lora | None = None) -> OwnModel:
    """What the function at `place` makes of the settings; see `pbr_jax.families.own`.

    With `lora` its linear layers have A and B beside their kernels (`pbr_jax.models.lora`).

    Raises:
      ValueError: it returns something else.
    """
    make = late(place)
    if _takes_rngs(make):
        _check_linen(place, lora)
        reads = []

        def module_of(seed):
            module, names = _checked(place, make(model, nnx.Rngs(seed)))[:2]
            reads.append(names)
            return module

        abstract = nnx.eval_shape(lambda: module_of(0))
        return of_nnx(abstract, reads[0], module_of)
    module, names, weights = _checked(place, make(model))
    if isinstance(module, linen.Module):
        adapted = module if lora is None else with_lora(module, lora)
        return of_linen(adapted, names, weights)
    _check_linen(place, lora)
    return of_nnx(module, names, lambda seed: module)


def _takes_rngs(make: Callable[..., Any]) -> bool:
    return len(inspect.signature(make).parameters) > 1


def _check_linen(place: str, lora: Lora | None) -> None:
    if lora is not None:
        raise ValueError(
            f"method = lora: model.family = {place} is an NNX module, and A and B are added to"
            " Linen modules here; give a Linen module, or have the function return what"
            " qwix.apply_lora_to_model made, with method=full"
        )


def _checked(place: str, made: Any) -> tuple[Any, Reads, Any]:
    parts = made if isinstance(made, tuple) else (made,)
    module, reads, weights = (*parts, None, None)[:3]
    known = isinstance(module, linen.Module | nnx.Module)
    if not known or not isinstance(reads, str | Sequence | Mapping) or len(parts) > 3:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(
            f"model.family = {place}: returned {kinds}; must return a Linen or NNX module and what"
            ' it reads of a batch, such as `return module, "image"`'
        )
    if weights is not None and not isinstance(module, linen.Module):
        raise ValueError(
            f"model.family = {place}: returned weights beside an NNX module; put them into it"
        )
    return module, reads, weights
