"""What devices that share a batch exchange: parameters on the way in, gradients on the way back."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Exchange(NamedTuple):
    """How a device gets whole parameters, and gives gradients, of which it has a share.

    Attributes:
      gather: `(params, path, dtype) -> params`, whole, of a tree that lies at `path` among all
        parameters. What is no parameter, and what a device has whole, comes back as it is; a
        kernel is rounded to `dtype` on the wire, if one is given.
      reduce: `(grads, params) -> grads`, means over all devices, of which a device keeps what it
        has of `params`. A gradient may be None.
    """

    gather: Callable[..., PyTree]
    reduce: Callable[[PyTree, PyTree], PyTree]

    def rounded(self, dtype: jax.typing.DTypeLike) -> "Exchange":
        """The same where kernels are used in this dtype alone."""
        return self._replace(gather=functools.partial(self.gather, dtype=dtype))

    def whole(self, params: PyTree) -> PyTree:
        """All of `params`, the tree's root; differentiated, their gradients are the means."""

        @jax.custom_vjp
        def whole(params):
            return self.gather(params, ())

        def forward(params):
            return whole(params), params

        def backward(params, grads):
            return (self.reduce(grads, params),)

        whole.defvjp(forward, backward)
        return whole(params)
