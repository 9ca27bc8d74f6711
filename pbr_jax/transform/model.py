"""Front ends: what a Linen module, an NNX module and a plain function are to the transformation.

Each is a function of a pytree of parameters, which users differentiate by, and of what else it
reads.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.transform.groups import path_of

PyTree = Any


class Example(NamedTuple):
    """What `prune` traces once.

    Attributes:
      function: `(params, *args, **kwargs) -> outputs`.
      params: arrays, or their shapes and dtypes.
      args, kwargs: of the call.
    """

    function: Callable[..., PyTree]
    params: PyTree
    args: tuple
    kwargs: dict[str, Any]


class FunctionModel:
    """`function(params, *args, **kwargs)`, of any pytree of parameters."""

    def __init__(self, function: Callable[..., PyTree]) -> None:
        self.function = function

    def example(self, args: tuple, kwargs: Mapping[str, Any]) -> Example:
        """From `(params, *args)`."""
        if not args:
            raise ValueError(
                "example is empty: a function needs prune(function, params, *args), params as its"
                " first argument"
            )
        params, *rest = args
        return Example(self.function, params, tuple(rest), dict(kwargs))

    def params_of(self, given: PyTree) -> PyTree:
        """The parameters in the first argument of a loss."""
        return given

    def split(self, given: PyTree) -> tuple[PyTree, PyTree]:
        """The parameters in the first argument of `apply`, and the rest of it."""
        return given, ()

    def call(self, params: PyTree, rest: PyTree, *args: Any, **kwargs: Any) -> tuple:
        """The model's outputs, and what it changed of the rest."""
        return self.function(params, *args, **kwargs), ()

    def paths(self, params: PyTree) -> list[str]:
        """The path of every parameter."""
        return [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]

    def loss(self, loss: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """A user's loss as `(params, extra, *args, **kwargs) -> (loss, changed extra)`."""
        return lambda params, extra, *args, **kwargs: (loss(params, *args, **kwargs), ())

    def extra(self, given: PyTree) -> PyTree:
        """What a loss reads of its first argument beside the parameters."""
        return ()

    def put_back(self, given: PyTree, changed: PyTree) -> None:
        """Gives the first argument of a loss what the loss changed in it."""


class LinenModel(FunctionModel):
    """A Flax Linen module; users differentiate by the collection `params`."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.apply)
        self.module = module

    def example(self, args: tuple, kwargs: Mapping[str, Any]) -> Example:
        """From the inputs of the module's call, which is initialised by shapes alone."""
        from flax.core import DenyList

        args, kwargs = jax.tree.map(_shape, (args, dict(kwargs)))
        arrays, rebuild = _arrays_of((args, kwargs))

        def init(key, arrays):
            args, kwargs = rebuild(arrays)
            return self.module.init({"params": key}, *args, **kwargs)

        variables = dict(jax.eval_shape(init, jax.random.key(0), arrays))
        if "params" not in variables:
            raise ValueError(f"model = {type(self.module).__name__}: it has no parameters")
        params = variables.pop("params")

        def function(params, others, *args, **kwargs):
            # Every stream of random numbers falls back to this one, and all else may move.
            rngs = {"params": jax.random.key(0)}
            variables, mutable = {"params": params, **others}, DenyList(("params",))
            return self.module.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)

        return Example(function, params, (variables, *args), dict(kwargs))

    def split(self, given: PyTree) -> tuple[PyTree, PyTree]:
        """Variables are parameters and the other collections."""
        if not isinstance(given, Mapping) or "params" not in given:
            raise ValueError(
                'params: apply of a Linen module reads variables, {"params": params, ...}'
            )
        return given["params"], {name: own for name, own in given.items() if name != "params"}

    def call(self, params: PyTree, rest: PyTree, *args: Any, **kwargs: Any) -> tuple:
        """The module's `apply`; collections that moved are part of its output, as in Flax."""
        return self.module.apply({**rest, "params": params}, *args, **kwargs), ()


class NnxModel(FunctionModel):
    """A Flax NNX module; users differentiate by its state of `nnx.Param`."""

    def __init__(self, module: Any) -> None:
        graph, params, extra = _parts(module)
        self.shapes, self.module = jax.tree.map(_shape, params), module
        self._rest = (graph, extra)
        super().__init__(module)

    def call(self, params: PyTree, rest: PyTree, *args: Any, **kwargs: Any) -> tuple:
        """Calls a copy of the module."""
        return self.loss(lambda module, *a, **k: module(*a, **k))(params, rest, *args, **kwargs)

    def example(self, args: tuple, kwargs: Mapping[str, Any]) -> Example:
        """From the inputs of the module's call."""
        rest, args, named = jax.tree.map(_shape, (self._rest, args, dict(kwargs)))
        return Example(self.call, self.shapes, (rest, *args), named)

    def params_of(self, given: PyTree) -> PyTree:
        """The state of `nnx.Param` of a module, or that state itself."""
        from flax import nnx

        return nnx.state(given, nnx.Param) if isinstance(given, nnx.Module) else given

    def paths(self, params: PyTree) -> list[str]:
        """Without the name of the field that holds a variable's value."""
        return [path.removesuffix("/value") for path in super().paths(params)]

    def split(self, given: PyTree) -> tuple[PyTree, PyTree]:
        """A module, or the parameters of the one that was pruned."""
        return self.params_of(given), self.extra(given)

    def loss(self, loss: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The loss of a module, whose other variables (statistics, counts of keys) move with it."""
        from flax import nnx

        def function(params, rest, *args, **kwargs):
            graph, extra = rest
            module = nnx.merge(graph, params, extra)
            out = loss(module, *args, **kwargs)
            graph, _, extra = _parts(module)
            return out, (graph, extra)

        return function

    def extra(self, given: PyTree) -> PyTree:
        """Graph and other variables of the module."""
        from flax import nnx

        if not isinstance(given, nnx.Module):
            return self._rest
        graph, _, extra = _parts(given)
        return graph, extra

    def put_back(self, given: PyTree, changed: PyTree) -> None:
        """Updates the module's other variables."""
        from flax import nnx

        if isinstance(given, nnx.Module):
            nnx.update(given, changed[1])


def front_end(model: Any) -> FunctionModel:
    """The front end of a model.

    Raises:
      TypeError: it is neither a module of Flax nor a function.
    """
    from flax import linen, nnx

    if isinstance(model, linen.Module):
        return LinenModel(model)
    if isinstance(model, nnx.Module):
        return NnxModel(model)
    if callable(model):
        return FunctionModel(model)
    raise TypeError(
        f"model is a {type(model).__name__}: must be a Linen module, an NNX module, or a function"
        " of (params, *args)"
    )


def _parts(module: Any) -> tuple[Any, PyTree, PyTree]:
    """Graph, state of `nnx.Param` and other state of an NNX module."""
    from flax import nnx

    graph, params, *extra = nnx.split(module, nnx.Param, ...)
    return graph, params, extra[0]


def _has_shape(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _arrays_of(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """What has a shape in a tree, and a function that puts their like there; all else stays."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if _has_shape(leaf)]

    def rebuild(arrays):
        new = dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, [new.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], rebuild


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype) if _has_shape(leaf) else leaf
