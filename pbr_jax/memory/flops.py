"""Operations of a JAX program, counted on its equations."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

PyTree = Any


def matrix_flops(function: Callable[..., PyTree], *args: Any) -> int:
    """Operations of all matrix products and convolutions of `function(*args)`, two for each term.

    Arguments may be shapes; nothing is computed. A scan counts every turn, of a `cond` the dearest
    branch counts, and of a `while` one turn, whose number is not known. Kernels count as nothing.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        # A kernel's terms of one output: all of its axes but that of the outputs.
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2 * eqn.outvars[0].aval.size * math.prod(kernel) // outputs
    if name == "pallas_call":
        return 0
    inner = [_flops(jaxpr) for jaxpr in jaxprs_in_params(eqn.params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (eqn.params["length"] if name == "scan" else 1)
