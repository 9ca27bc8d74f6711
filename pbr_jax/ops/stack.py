"""All blocks of a model as one pair: the loop over blocks and chunks of the batch.

The only place that says when a residual is written and read, and when devices exchange the
parameters and gradients of a block.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import offload
from pbr_jax.ops.exchange import Exchange
from pbr_jax.ops.pair import Pair

PyTree = Any


def stack(
    pairs: Sequence[Pair],
    num_chunks: int = 1,
    enter: Callable[[PyTree, jax.Array], PyTree] | None = None,
    exchange: Exchange | None = None,
    path: tuple[str, ...] = (),
    on_host: bool = False,
) -> Pair:
    """Many blocks in a row, each of the same `pairs` in sequence, in equal chunks of the batch.

    Leaves of `params` lead with the number of blocks, L, as do the gradients. Within a block one
    chunk follows the other, so that transients are `num_chunks` times smaller; weight gradients
    accumulate. A chunk writes its residual straight into that of all blocks and reads it from
    there: no copy of a block's own share is ever made.

    Args:
      pairs: each reads its own entries of the `params` dict; `x` and `y` are alike.
      num_chunks: must divide the batch.
      enter: `(aux, index) -> aux` for the block of that number.
      exchange: with the devices that share the batch; None where there are none, and where
        gradients are exchanged later. Gradients are then those of all devices.
      path: of `params` among all parameters, for the exchange.
      on_host: residuals lie in the memory of the host. Each comes back while the one before it is
        used.

    Raises:
      ValueError: the batch is not a multiple of `num_chunks`.
    """
    blocks = _Stack(pairs, num_chunks, enter, exchange, path, on_host)
    return Pair(blocks.forward, blocks.backward, blocks.value)


class _Stack(NamedTuple):
    """Both passes of `stack`; the only place that writes and reads residuals of several blocks.

    The residual of a pair is an array of slots, `[L * num_chunks, B / num_chunks, ...]`, one for
    each chunk of each block. For three blocks and two chunks:

        block      0       1       2
        chunk    0   1   0   1   0   1
        slot     0   1   2   3   4   5    forward fills   0 1 2 3 4 5
                                          backward reads  4 5 2 3 0 1
    """

    pairs: Sequence[Pair]
    num_chunks: int
    enter: Callable[[PyTree, jax.Array], PyTree] | None
    exchange: Exchange | None
    path: tuple[str, ...]
    on_host: bool

    def value(self, params, x, aux):
        return self._run(params, x, aux, [])[0]

    def forward(self, params, x, aux):
        def residuals(own, aux, x):
            found = []
            for pair in self.pairs:
                x, residual = pair.forward(own, x, aux)
                found.append(residual)
            return found

        # All slots are allocated at once, by the shapes of one, and written in place.
        shapes = jax.eval_shape(lambda: residuals(*self._first(params, aux, x)))
        num_slots = _depth(params) * self.num_chunks
        empty = offload.empty if self.on_host else jnp.empty
        slots = jax.tree.map(lambda a: empty((num_slots, *a.shape), a.dtype), shapes)
        return self._run(params, x, aux, slots)

    def _run(self, params, x, aux, slots):
        """`(y, slots)` with all slots filled; `slots` is empty where no residual is wanted."""

        def step(block, chunk, own, aux, carry):
            xs, slots = carry
            x, filled = _at(xs, chunk), []
            for i, pair in enumerate(self.pairs):
                x, residual = pair.forward(own, x, aux)
                if slots:
                    if self.on_host:
                        residual = offload.to_host(residual)
                    of_pair = _put(slots[i], residual, block * self.num_chunks + chunk)
                    # Barrier: otherwise XLA copies residuals late and holds their sources.
                    x, of_pair = lax.optimization_barrier((x, of_pair))
                    filled.append(of_pair)
            return _put(xs, x, chunk), filled

        xs, slots = self._loop(params, aux, step, (self._split(x), slots))
        return xs.reshape(x.shape), slots

    def backward(self, params, slots, aux, dy):
        def gradients(own, aux, dy):
            found: dict[str, PyTree] = {}
            for pair, of_pair in zip(reversed(self.pairs), reversed(slots), strict=True):
                grads, dy = pair.backward(own, self._read(of_pair, 0), aux, dy)
                found |= grads
            return found

        def step(block, chunk, own, aux, carry):
            (dys, ahead), totals = carry
            place = block if self.exchange is None else 0
            slot, dy = block * self.num_chunks + chunk, _at(dys, chunk)
            here = ahead
            if self.on_host:  # what this slot held is here by now, and the next sets out
                ahead = self._read(slots, self._after(slot, chunk))
            for i in reversed(range(len(self.pairs))):
                residual = here[i] if self.on_host else self._read(slots[i], slot)
                grads, dy = self.pairs[i].backward(own, residual, aux, dy)
                totals = totals | {n: self._add(totals[n], g, place) for n, g in grads.items()}
                # Barrier: otherwise XLA puts weight gradients off and holds what they are made of,
                # and loads early what only the next pair reads.
                totals, dy, slot = lax.optimization_barrier((totals, dy, slot))
            return (_put(dys, dy, chunk), ahead), totals

        # Gradients of all blocks are allocated at once, too; every chunk adds its own.
        shapes = jax.eval_shape(lambda: gradients(*self._first(params, aux, dy)))
        depth = _depth(params)
        ahead = self._read(slots, (depth - 1) * self.num_chunks) if self.on_host else ()
        flow = self._split(dy), ahead
        if self.exchange is None:
            carry = flow, _zeros(shapes, depth)
            (dys, _), grads = self._loop(params, aux, step, carry, reverse=True)
        else:
            (dys, _), grads = self._exchanged(params, aux, step, flow, shapes)
        return grads, dys.reshape(dy.shape)

    def _read(self, slots, slot):
        """What lies in a slot, on the device."""
        found = _at(slots, slot)
        return offload.to_device(found) if self.on_host else found

    def _after(self, slot, chunk):
        """The slot that the backward pass reads next; after the last one, the first of all."""
        to_block_before = jnp.where(chunk == self.num_chunks - 1, 2 * self.num_chunks, 0)
        return jnp.maximum(slot + 1 - to_block_before, 0)

    def _exchanged(self, params, aux, step, flow, shapes):
        """`(flow, gradients)` of all blocks, the means of all devices.

        Those of a block are carried one turn and exchanged while the next block computes. The last
        block stands before the loop, since with it nothing is exchanged.
        """
        assert self.exchange is not None
        reduce, depth = self.exchange.reduce, _depth(params)
        share = jax.eval_shape(lambda: _at(params, 0))

        def block(index, flow):
            return self._block(params, aux, step, index, (flow, _zeros(shapes, 1)))

        def mean(grads):
            return reduce(_at(grads, 0), share)

        def turn(i, carry):
            flow, grads, totals = carry
            index = depth - 1 - i
            totals = _put(totals, mean(grads), index + 1)
            return *block(index, flow), totals

        flow, grads = block(jnp.int32(depth - 1), flow)
        totals = _zeros(jax.eval_shape(mean, grads), depth)
        flow, grads, totals = lax.fori_loop(1, depth, turn, (flow, grads, totals))
        return flow, _put(totals, mean(grads), 0)

    def _loop(self, params, aux, step, carry, reverse=False):
        """Carries `step(block, chunk, own, aux, carry)` through all chunks of all blocks.

        `own` are the parameters of the block, `aux` is that of the chunk. `reverse` begins with the
        last block.
        """
        depth = _depth(params)

        def block(i, carry):
            index = depth - 1 - i if reverse else i
            return self._block(params, aux, step, index, carry)

        return lax.fori_loop(0, depth, block, carry)

    def _block(self, params, aux, step, index, carry):
        """Carries `step` through all chunks of the block of that number."""
        own, parts = self._own(params, index), self._enter(aux, index)

        def chunk(j, carry):
            return step(index, j, own, _at(parts, j), carry)

        return lax.fori_loop(0, self.num_chunks, chunk, carry)

    def _own(self, params, index):
        """The parameters of the block of that number, whole."""
        own = _at(params, index)
        return own if self.exchange is None else self.exchange.gather(own, self.path)

    def _enter(self, aux, index):
        """`aux` of the block of that number, in chunks."""
        return jax.tree.map(self._split, aux if self.enter is None else self.enter(aux, index))

    def _first(self, params, aux, x):
        """The first chunk of the first block: its parameters, `aux` and `x`, for their shapes."""
        zero = jnp.int32(0)
        return self._own(params, zero), *_at((self._enter(aux, zero), self._split(x)), zero)

    def _split(self, array):
        """`[B, ...] -> [num_chunks, B / num_chunks, ...]`."""
        batch, num_chunks = array.shape[0], self.num_chunks
        if batch % num_chunks:
            raise ValueError(
                f"batch_chunks = {num_chunks}: must divide the batch of {batch}; choose a divisor"
            )
        return array.reshape(num_chunks, batch // num_chunks, *array.shape[1:])

    def _add(self, total, grads, block):
        """`total` with the gradients of one more chunk of a block; one alone is only put there."""
        if self.num_chunks > 1:
            grads = jax.tree.map(jnp.add, _at(total, block), grads)
        return _put(total, grads, block)


def _depth(params: PyTree) -> int:
    return jax.tree.leaves(params)[0].shape[0]


def _zeros(shapes: PyTree, depth: int) -> PyTree:
    """Zeros for so many blocks, of the shapes of one."""
    return jax.tree.map(lambda a: jnp.zeros((depth, *a.shape), a.dtype), shapes)


def _at(tree: PyTree, index: jax.Array | int) -> PyTree:
    """Entry `index` of the leading axis of every leaf.

    Indices are never negative; telling XLA lets a matmul read the slice in place instead of copying
    it.
    """

    def at(a):
        return lax.dynamic_index_in_dim(a, index, keepdims=False, allow_negative_indices=False)

    return jax.tree.map(at, tree)


def _put(tree: PyTree, values: PyTree, index: jax.Array | int) -> PyTree:
    """`tree` with entry `index` of the leading axis of every leaf replaced."""

    def put(a, value):
        return lax.dynamic_update_index_in_dim(a, value, index, 0, allow_negative_indices=False)

    return jax.tree.map(put, tree, values)
