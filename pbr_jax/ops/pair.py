"""An op is a pair of pure functions; `bind` makes it differentiable.

`custom_vjp` alone cannot compose: what one op saves is hidden from the next. A pair shows its
residual. A transformer block can therefore share one residual among several consumers, drop it and
recompute it, or run in chunks of the batch, and is still one function to JAX.

The three arguments of a pair are

* `params`: a pytree shared by all samples: weights, and the selection that applies to them
  (`columns`, zeros `rows` whose cotangent is the packed weight gradient, `active` flags of
  JointSPAR);
* `x`: the activation, `[B, ...]`, differentiated (a tuple of several for attention);
* `aux`: a pytree with leading axis B that is not differentiated (dropout keys, attention masks), or
  None.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from pbr_jax.ops.shardings import alike

PyTree = Any


class Pair(NamedTuple):
    """A differentiable function as two pure functions.

    Attributes:
      forward: `(params, x, aux) -> (y, residual)`.
      backward: `(params, residual, aux, dy) -> (dparams, dx)`. `dparams` has the structure of
        `params`, with None for what is not differentiated.
      value: `(params, x, aux) -> y`, where XLA could not drop the residual from `forward`.
    """

    forward: Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]
    backward: Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]
    value: Callable[[PyTree, PyTree, PyTree], jax.Array] | None = None


def bind(
    pair: Pair, check: Callable[[PyTree], None] = lambda params: None
) -> Callable[[PyTree, PyTree, PyTree], jax.Array]:
    """The pair as a function `(params, x, aux) -> y` that JAX can differentiate (reverse mode).

    `check(params)` runs when the function is about to be differentiated, and only then: what a
    backward pass needs may be absent in evaluation.
    """

    @jax.custom_vjp
    def apply(params, x, aux):
        return pair.value(params, x, aux) if pair.value else pair.forward(params, x, aux)[0]

    def forward(params, x, aux):
        check(params)
        y, residual = pair.forward(params, x, aux)
        return y, (params, residual, aux)

    def backward(saved, dy):
        params, residual, aux = saved
        dparams, dx = pair.backward(params, residual, aux, dy)
        # A gradient of zeros varies with the others: all arguments do.
        (dparams, dx), _ = alike((dparams, dx), params)
        return dparams, dx, None

    apply.defvjp(forward, backward)
    return lambda params, x, aux: apply(*alike(params, x, aux))


def sequence(first: Pair, second: Pair) -> Pair:
    """`second(first(x))`; both read their own entries of the same `params` dict."""

    def forward(params, x, aux):
        y, first_residual = first.forward(params, x, aux)
        z, second_residual = second.forward(params, y, aux)
        return z, (first_residual, second_residual)

    def backward(params, residual, aux, dz):
        second_grads, dy = second.backward(params, residual[1], aux, dz)
        first_grads, dx = first.backward(params, residual[0], aux, dy)
        return {**first_grads, **second_grads}, dx

    return Pair(forward, backward)


def recompute(pair: Pair) -> Pair:
    """Saves only the input and runs the forward pass again in the backward pass."""

    def forward(params, x, aux):
        return pair.forward(params, x, aux)[0], x

    def backward(params, x, aux, dy):
        # Barrier: otherwise XLA may merge both forward passes and keep the residual after all.
        x, dy = lax.optimization_barrier((x, dy))
        _, residual = pair.forward(params, x, aux)
        return pair.backward(params, residual, aux, dy)

    return Pair(forward, backward)
