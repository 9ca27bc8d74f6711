"""An op is a pair of pure functions; `bind` makes it differentiable.

`custom_vjp` alone cannot compose: what one op saves is hidden from the next. A pair shows its
residual, so a transformer block can share one residual among several consumers, drop it and
recompute it, or run in chunks of the batch, and still be one function to JAX.

The three arguments of a pair are

* `params`: a pytree shared by all samples: weights, and the selection that applies to them
  (`columns`, zeros `rows` whose cotangent is the packed weight gradient, `active` flags of
  JointSPAR);
* `x`: the activation, `[B, ...]`, differentiated (a tuple of several for attention);
* `aux`: a pytree with leading axis B that is not differentiated (dropout keys, attention masks), or
  None.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

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
        return dparams, dx, None

    apply.defvjp(forward, backward)
    return apply


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
        # Without the barrier XLA may merge both forward passes and keep the residual after all.
        x, dy = lax.optimization_barrier((x, dy))
        _, residual = pair.forward(params, x, aux)
        return pair.backward(params, residual, aux, dy)

    return Pair(forward, backward)


def stack(
    pairs: Sequence[Pair],
    num_chunks: int = 1,
    enter: Callable[[PyTree, jax.Array], PyTree] | None = None,
) -> Pair:
    """Many blocks in a row, each of the same `pairs` in sequence, in equal parts of the batch.

    Leaves of `params` lead with the number of blocks, L, as do the gradients. Within a block one
    part follows the other, so that transients are `num_chunks` times smaller; weight gradients
    accumulate. A part writes what it saves straight into the residual of all blocks, `[L *
    num_chunks, ...]`, and reads it from there: no copy of a block's own share is ever made.

    Args:
      pairs: each reads its own entries of the `params` dict; `x` and `y` are alike.
      num_chunks: must divide the batch.
      enter: `(aux, index) -> aux`, what the block of that number is told.

    Raises:
      ValueError: the batch is not a multiple of `num_chunks`.
    """

    def split(array):
        if array.shape[0] % num_chunks:
            raise ValueError(
                f"batch_chunks = {num_chunks}: must divide the batch of {array.shape[0]};"
                " choose a divisor"
            )
        return array.reshape(num_chunks, array.shape[0] // num_chunks, *array.shape[1:])

    def told(aux, index):
        return jax.tree.map(split, aux if enter is None else enter(aux, index))

    def through(params, x, aux):
        saved = []
        for pair in pairs:
            x, residual = pair.forward(params, x, aux)
            saved.append(residual)
        return x, saved

    def gradients(params, residuals, aux, dy):
        found: dict[str, PyTree] = {}
        for pair, residual in zip(reversed(pairs), reversed(residuals), strict=True):
            grads, dy = pair.backward(params, residual, aux, dy)
            found |= grads
        return found

    def run(params, x, aux, saved):
        def block(index, carry):
            own, parts = _at(params, index), told(aux, index)

            def part(chunk, carry):
                xs, saved = carry
                x, kept = _at(xs, chunk), []
                for i, pair in enumerate(pairs):
                    x, residual = pair.forward(own, x, _at(parts, chunk))
                    if saved:
                        slots = _put(saved[i], residual, index * num_chunks + chunk)
                        # Without the barrier XLA copies residuals late and holds their sources.
                        x, slots = lax.optimization_barrier((x, slots))
                        kept.append(slots)
                return _put(xs, x, chunk), kept

            return lax.fori_loop(0, num_chunks, part, carry)

        y, saved = lax.fori_loop(0, _depth(params), block, (split(x), saved))
        return y.reshape(x.shape), saved

    def value(params, x, aux):
        return run(params, x, aux, [])[0]

    def forward(params, x, aux):
        first = _first((params, split(x), told(aux, jnp.int32(0))))
        _, residuals = jax.eval_shape(through, *first)
        slots = _depth(params) * num_chunks
        saved = jax.tree.map(lambda a: jnp.empty((slots, *a.shape), a.dtype), residuals)
        return run(params, x, aux, saved)

    def backward(params, saved, aux, dy):
        depth = _depth(params)

        def block(i, carry):
            index = depth - 1 - i
            own, parts = _at(params, index), told(aux, index)

            def part(chunk, carry):
                dys, totals = carry
                slot, dy = index * num_chunks + chunk, _at(dys, chunk)
                for pair, residuals in zip(reversed(pairs), reversed(saved), strict=True):
                    grads, dy = pair.backward(own, _at(residuals, slot), _at(parts, chunk), dy)
                    totals = totals | {n: add(totals[n], g, index) for n, g in grads.items()}
                    # Without the barrier XLA puts weight gradients off and holds what they are made
                    # of, and loads early what only the next pair reads.
                    totals, dy, slot = lax.optimization_barrier((totals, dy, slot))
                return _put(dys, dy, chunk), totals

            return lax.fori_loop(0, num_chunks, part, carry)

        def add(total, grads, index):
            if num_chunks > 1:
                grads = jax.tree.map(jnp.add, _at(total, index), grads)
            return _put(total, grads, index)

        first = _first((params, saved, told(aux, jnp.int32(0)), split(dy)))
        shapes = jax.eval_shape(gradients, *first)
        totals = jax.tree.map(lambda a: jnp.zeros((depth, *a.shape), a.dtype), shapes)
        dx, grads = lax.fori_loop(0, depth, block, (split(dy), totals))
        return grads, dx.reshape(dy.shape)

    return Pair(forward, backward, value)


def _depth(params: PyTree) -> int:
    return jax.tree.leaves(params)[0].shape[0]


def _at(tree: PyTree, index: jax.Array) -> PyTree:
    # No index is negative. Told so, XLA lets a matrix product read its part where it lies.
    def at(a):
        return lax.dynamic_index_in_dim(a, index, keepdims=False, allow_negative_indices=False)

    return jax.tree.map(at, tree)


def _put(tree: PyTree, values: PyTree, index: jax.Array) -> PyTree:
    def put(a, value):
        return lax.dynamic_update_index_in_dim(a, value, index, 0, allow_negative_indices=False)

    return jax.tree.map(put, tree, values)


def _first(tree: PyTree) -> PyTree:
    """Shapes without the leading axis."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)
