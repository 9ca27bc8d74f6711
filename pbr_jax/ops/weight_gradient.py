"""Weight and bias gradient of a linear layer: by XLA, or by a kernel that reads dy once for both.

The kernel is the first choice where few columns are kept: the product is then limited by reading
dy, of which XLA needs two passes. With many columns the product is limited by arithmetic, and
cuBLAS is the better at that. Predicted, not measured: nothing was timed on a GPU yet.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax.kernels import weight_gradient as kernel
from pbr_jax.ops import dispatch
from pbr_jax.ops.arrays import as_matrix
from pbr_jax.plans import Implementation

# Columns up to which reading dy takes longer than the product: three tiles of the kernel, 2 * 384
# operations for the 2 bytes of an element. From about 600 on an H200 arithmetic takes longer.
_FEW_COLUMNS = 384


def _refusal(x: Any, dy: Any) -> str | None:
    if x.dtype != dy.dtype:
        return f"x has dtype {x.dtype} and dy {dy.dtype}: must be the same"
    return dispatch.unfit(x=x, dy=dy)


KERNEL = dispatch.Kernel(
    "linear", _refusal, kernel.TILES, preferred=lambda x, dy: x.shape[-1] <= _FEW_COLUMNS
)
"""Kernel of `gradients`; chosen for x and dy."""


def product(x: jax.Array, dy: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """`dW = x^T dy` by XLA, accumulated in `dtype`: `[..., K], [..., F] -> [K, F]`."""
    return jnp.einsum("tk,tf->kf", as_matrix(x), as_matrix(dy), preferred_element_type=dtype)


def bias_gradient(dy: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """`db = sum(dy)`, accumulated in `dtype`: `[..., F] -> [F]`."""
    return jnp.sum(as_matrix(dy), axis=0, dtype=dtype)


def gradients(
    x: jax.Array,
    dy: jax.Array,
    dtype: jax.typing.DTypeLike = jnp.float32,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`dW [K, F]` and `db [F]` from `x`, `[..., K]`, and `dy`, `[..., F]`.

    Raises:
      ValueError: the named implementation cannot take the arrays.
    """
    if KERNEL.choose(implementation, x, dy) == "xla":
        return product(x, dy, dtype), bias_gradient(dy, dtype)
    blocks = KERNEL.cut()[dy.dtype.itemsize]
    dw, db = kernel.weight_gradient(
        as_matrix(x), as_matrix(dy), blocks=blocks, interpret=dispatch.interpreting()
    )
    return dw.astype(dtype), db.astype(dtype)
