"""A user's Linen module as pure functions."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.core import DenyList

from pbr_jax.models.lora import is_adapter
from pbr_jax.models.own_call import Caller, OwnModel, Reads, logits_of


def of_linen(module: linen.Module, reads: Reads, weights: Any) -> OwnModel:
    """The pure functions of a Linen module; `weights` are pretrained variables or parameters."""
    call = Caller(type(module), reads)

    def fresh(key, batch):
        init = functools.partial(module.init, {"params": key})
        variables = linen.meta.unbox(call(init, batch, True))
        params = variables.pop("params", {})
        return params, {name: variables[name] for name in variables if name != "intermediates"}

    def shapes(specs):
        return jax.eval_shape(fresh, jax.random.key(0), specs)

    def begin(seed, specs):
        batch = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)
        params, extra = jax.jit(fresh)(jax.random.key(seed), batch)
        if weights is None:
            return params, extra, []
        given = linen.meta.unbox(dict(weights))
        given = given if "params" in given else {"params": given}
        merged, missing = _merged({"params": params, **extra}, given)
        missing = [name for name in missing if not is_adapter((name,))]  # which no weights have
        listed = ", ".join(name.removeprefix("params/") for name in missing)
        new = [f"not among the weights, so new: {listed}"] if missing else []
        return merged.pop("params"), merged, new

    def apply(params, extra, batch, key, train):
        # Every stream of random numbers falls back to this one.
        variables, mutable = {"params": params, **extra}, DenyList(("params",)) if train else False
        function = functools.partial(module.apply, variables, rngs={"params": key}, mutable=mutable)
        found = call(function, batch, train)
        out, moved = found if train else (found, extra)
        return logits_of(out), {name: moved.get(name, own) for name, own in extra.items()}

    return OwnModel(module, shapes, begin, apply)


def _merged(drawn: Mapping[str, Any], given: Any, path: str = "") -> tuple[dict[str, Any], list]:
    """`drawn` with what is `given` in its place, and the paths that were not given.

    Raises:
      ValueError: something that is given has no place, or another shape.
    """
    missing = []
    if foreign := [f"{path}{name}" for name in given if name not in drawn]:
        raise ValueError(f"the weights have {', '.join(foreign[:4])}: the model has no such array")
    found: dict[str, Any] = {}
    for name, own in drawn.items():
        here = f"{path}{name}"
        if name not in given:
            found[name] = own
            missing.append(here)
        elif isinstance(own, Mapping):
            found[name], below = _merged(own, given[name], f"{here}/")
            missing += below
        elif jnp.shape(given[name]) != own.shape:
            raise ValueError(
                f"the weights' {here} has shape {jnp.shape(given[name])}: the model's has"
                f" {own.shape}; leave it out, and it is drawn"
            )
        else:
            # A copy, since a train step donates what it is given.
            found[name] = jnp.array(given[name], own.dtype)
    return found, missing
