"""A user's Flax module, Linen or NNX, as pure functions of nested dicts of arrays."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Model
from pbr_jax.families import late

PyTree = Any
Reads = str | Sequence[str] | Mapping[str, str]

# Arguments that say whether a module is trained, and their value if it is.
_FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False}


class OwnModel(NamedTuple):
    """Pure functions; parameters and what else moves are nested dicts, keys are text.

    Attributes:
      module: as made.
      shapes: `specs -> (params, extra)` as shapes and dtypes, `specs` those of a batch.
      begin: `(seed, specs) -> (params, extra, notes)`, pretrained if the module is.
      apply: `(params, extra, batch, key, train) -> (outputs, extra)`. The key is consumed.
    """

    module: Any
    shapes: Callable[..., tuple[PyTree, PyTree]]
    begin: Callable[..., tuple[PyTree, PyTree, list[str]]]
    apply: Callable[..., tuple[Any, PyTree]]


@functools.lru_cache(4)  # pretrained weights are read once
def make_own(place: str, model: Model) -> OwnModel:
    """What the function at `place` makes of the settings; see `pbr_jax.families.own`.

    Raises:
      ValueError: it returns something else.
    """
    from flax import linen, nnx

    make = late(place)
    if _takes_rngs(make):
        reads = []

        def module_of(seed):
            module, names = _checked(place, make(model, nnx.Rngs(seed)))[:2]
            reads.append(names)
            return module

        abstract = nnx.eval_shape(lambda: module_of(0))
        return _of_nnx(abstract, reads[0], module_of)
    module, names, weights = _checked(place, make(model))
    if isinstance(module, linen.Module):
        return _of_linen(module, names, weights)
    return _of_nnx(module, names, lambda seed: module)


def _takes_rngs(make: Callable[..., Any]) -> bool:
    return len(inspect.signature(make).parameters) > 1


def _checked(place: str, made: Any) -> tuple[Any, Reads, Any]:
    from flax import linen, nnx

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


def _call(function: Callable, flags: Sequence[str], reads: Reads, batch: Any, train: bool) -> Any:
    """The module's outputs for what it reads of a batch."""
    names = [reads] if isinstance(reads, str) else [*reads]
    named = reads if isinstance(reads, Mapping) else dict.fromkeys(names, "")
    wanted = reads.values() if isinstance(reads, Mapping) else names
    if missing := [name for name in wanted if name not in batch]:
        raise ValueError(
            f"the model reads {', '.join(missing)} of a batch, which has {', '.join(sorted(batch))}"
        )
    kwargs = {flag: _FLAGS[flag] == train for flag in flags}
    if isinstance(reads, Mapping):
        return function(**{argument: batch[name] for argument, name in named.items()}, **kwargs)
    return function(*(batch[name] for name in names), **kwargs)


def _flags(call: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(call).parameters if name in _FLAGS]


def _of_linen(module: Any, reads: Reads, weights: Any) -> OwnModel:
    from flax import linen
    from flax.core import DenyList

    flags = _flags(type(module).__call__)

    def fresh(key, batch):
        init = functools.partial(module.init, {"params": key})
        variables = linen.meta.unbox(_call(init, flags, reads, batch, True))
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
        listed = ", ".join(name.removeprefix("params/") for name in missing)
        new = [f"not among the weights, so new: {listed}"] if missing else []
        return merged.pop("params"), merged, new

    def apply(params, extra, batch, key, train):
        # Every stream of random numbers falls back to this one.
        variables, mutable = {"params": params, **extra}, DenyList(("params",)) if train else False
        function = functools.partial(module.apply, variables, rngs={"params": key}, mutable=mutable)
        found = _call(function, flags, reads, batch, train)
        out, moved = found if train else (found, extra)
        return _logits(out), {name: moved.get(name, own) for name, own in extra.items()}

    return OwnModel(module, shapes, begin, apply)


def _of_nnx(module: Any, reads: Reads, module_of: Callable[[int], Any]) -> OwnModel:
    from flax import nnx

    def parts(module):
        """Graph, parameters, random numbers and what else moves."""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    flags = _flags(type(module).__call__)
    graph, *states = parts(module)
    like = [
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), s) for s in states
    ]

    def begin(seed, specs):
        _, params, _, extra = parts(module_of(seed))
        return _as_dict(params), _as_dict(extra), []

    def apply(params, extra, batch, key, train):
        # Streams begin anew in every step, from its key, so that none of them is state.
        leaves, structure = jax.tree.flatten(like[1])
        fresh = [
            jax.random.fold_in(key, i)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        streams = jax.tree.unflatten(structure, fresh)
        own = nnx.merge(graph, _as_state(like[0], params), streams, _as_state(like[2], extra))
        (own.train if train else own.eval)()
        out = _call(own, flags, reads, batch, train)
        return _logits(out), _as_dict(parts(own)[3])

    return OwnModel(module, lambda specs: (_as_dict(like[0]), _as_dict(like[2])), begin, apply)


def _logits(out: Any) -> Any:
    out = getattr(out, "logits", out)
    if not isinstance(out, jax.Array) or out.ndim < 1:
        raise ValueError(
            f"the model's output is a {type(out).__name__}: must be logits [B, classes], or an"
            " object that has them as `logits`"
        )
    return out.astype(jnp.float32)


def _as_dict(state: PyTree) -> dict[str, Any]:
    """The leaves of an NNX state as a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *above, last = _names(path)
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def _as_state(like: PyTree, tree: Mapping[str, Any]) -> PyTree:
    """The inverse of `_as_dict`."""

    def leaf(path, _):
        return functools.reduce(lambda node, name: node[name], _names(path), tree)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _names(path: tuple) -> list[str]:
    """The path of a variable, without the name of the field that holds its value."""
    text = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return text.split("/")


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
            found[name] = jnp.asarray(given[name], own.dtype)
    return found, missing
