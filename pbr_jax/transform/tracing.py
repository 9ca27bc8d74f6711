"""Jaxprs of functions of parameters, kept for equal shapes: one trace where `jax.jit` has one."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.transform import jaxprs
from pbr_jax.transform.sites import Analysis

PyTree = Any
_MOST = 16  # traces that one function keeps


class Trace(NamedTuple):
    """A function as equations.

    Attributes:
      closed: its jaxpr, of the parameters' leaves and then the other arrays.
      tree: structure of its output.
      analysis: how it uses its parameters.
      shapes: of the parameters.
    """

    closed: Any
    tree: Any
    analysis: Analysis
    shapes: tuple[tuple[int, ...], ...]


class Traced:
    """`function(params, *args, **kwargs)`, traced on demand.

    Arrays among the arguments are inputs of the trace; all else, numbers of Python too, is fixed in
    it, and another value is another trace. As in `jax.jit`, what the function closes over is fixed
    with the first trace of its kind, unless it belongs to a trace that is under way.
    """

    def __init__(self, function: Callable[..., PyTree]) -> None:
        self.function = function
        self._kept: collections.OrderedDict[Any, Trace] = collections.OrderedDict()

    def __call__(self, params: PyTree, args: tuple, kwargs: dict) -> tuple[Trace, list, list]:
        """The trace, the leaves of the parameters, and the other arrays."""
        leaves, tree = jax.tree.flatten(params)
        leaves = [_array(leaf) for leaf in leaves]
        others, other_tree = jax.tree.flatten((args, kwargs))
        dynamic = [_is_array(leaf) for leaf in others]
        arrays = [_array(leaf) for leaf, is_array in zip(others, dynamic, strict=True) if is_array]
        fixed = [None if is_array else leaf for leaf, is_array in zip(others, dynamic, strict=True)]

        def flat(leaves, arrays):
            given = iter(arrays)
            rest = [next(given) if d else f for d, f in zip(dynamic, fixed, strict=True)]
            args, kwargs = jax.tree.unflatten(other_tree, rest)
            out = self.function(jax.tree.unflatten(tree, leaves), *args, **kwargs)
            found, made["tree"] = jax.tree.flatten(out)
            return found

        made: dict[str, Any] = {}
        shapes = [_abstract(leaf) for leaf in (*leaves, *arrays)]
        # A value's type belongs to it: 1, 1.0 and True are equal.
        typed = tuple((type(value), value) for value in fixed)
        key: Any = (tree, other_tree, tuple(dynamic), tuple(shapes), typed, jaxprs.surroundings())
        try:
            known = self._kept.get(key)
        except TypeError:  # an argument that has no hash
            key, known = None, None
        if known is None:
            known = self._trace(flat, leaves, arrays, made)
            foreign = any(isinstance(c, jax.core.Tracer) for c in known.closed.consts)
            if key is not None and not foreign:
                self._kept[key] = known
                if len(self._kept) > _MOST:
                    self._kept.popitem(last=False)
        return known, leaves, arrays

    @staticmethod
    def _trace(flat: Callable, leaves: Sequence, arrays: Sequence, made: dict) -> Trace:
        closed = jax.make_jaxpr(flat)(leaves, arrays)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        return Trace(closed, made["tree"], Analysis(closed.jaxpr, shapes), shapes)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _abstract(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
