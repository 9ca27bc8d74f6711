"""What devices that share a batch exchange: parameters on the way in, gradients on the way back."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Exchange(NamedTuple):
    """How a device gets whole parameters, and gives gradients, of which it has a share.

    Attributes:
      gather: `(params, path, dtype) -> params`, whole, of a tree that lies at `path` among all
        parameters. What is no parameter, and what a device has whole, comes back as it is; a
        kernel is rounded to `dtype` on the wire, if one is given.
      reduce: `(grads, params) -> grads`, means over all devices, of which a device keeps what it
        has of `params`. A gradient may be None.
      collect: `[T, ...] -> [P T, ...]`, the arrays of all P devices, one behind the other.
      devices: P.
    """

    gather: Callable[..., PyTree]
    reduce: Callable[[PyTree, PyTree], PyTree]
    collect: Callable[[jax.Array], jax.Array]
    devices: int

    def rounded(self, dtype: jax.typing.DTypeLike) -> "Exchange":
        """The same where kernels are used in this dtype alone."""
        return self._replace(gather=functools.partial(self.gather, dtype=dtype))

    def whole(self, params: PyTree, path: Sequence[str] = ()) -> PyTree:
        """All of `params`, a tree at `path`; differentiated, their gradients are the means."""

        @jax.custom_vjp
        def whole(params):
            return self.gather(params, path)

        def forward(params):
            return whole(params), params

        def backward(params, grads):
            return (self.reduce(grads, params),)

        whole.defvjp(forward, backward)
        return whole(params)

    def rows(self, table: jax.Array, path: Sequence[str], numbers: jax.Array) -> jax.Array:
        """`table[numbers]`, `[V, D]` at `path` by int `[...]`; its gradient is the mean.

        Devices tell each other the gradients of the rows that they took, where that is less than
        the whole table's: an all-reduce moves it twice.
        """
        *above, name = path
        alone = {name: table}
        touched = self.devices * numbers.size
        if self.gather(alone, above)[name] is not table or touched >= 2 * table.shape[0]:
            return self.whole(alone, above)[name][numbers]

        @jax.custom_vjp
        def rows(table, numbers):
            return table[numbers]

        def forward(table, numbers):
            return rows(table, numbers), numbers

        def backward(numbers, grads):
            everywhere = self.collect(numbers.ravel())
            added = self.collect(grads.reshape(-1, grads.shape[-1]))
            total = jnp.zeros(table.shape, table.dtype).at[everywhere].add(added)
            return total / self.devices, None

        rows.defvjp(forward, backward)
        return rows(table, numbers)
