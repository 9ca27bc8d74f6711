"""Weight and bias gradient of a linear layer: by XLA, or by a kernel that reads dy once for both.

The kernel is the first choice where few columns are kept: the product is then limited by reading
dy, of which XLA needs two passes. With many columns the product is limited by arithmetic, and
cuBLAS is the better at that. Predicted, not measured: nothing was timed on a GPU yet.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.kernels import weight_gradient as kernel
from pbr_jax.ops import dispatch, residuals
from pbr_jax.plans import Implementation

# Columns up to which reading dy takes longer than the product: three tiles of the kernel, 2 * 384
# operations for the 2 bytes of an element. From about 600 on an H200 arithmetic takes longer.
_FEW_COLUMNS = 384
_LARGEST = 2**31  # elements that a kernel can count


class Unpacked(NamedTuple):
    """An input that another op keeps whole, and the columns of it that count."""

    x: jax.Array  # [..., D]
    columns: jax.Array  # int32 [K], D for an unused slot

    def pack(self) -> jax.Array:
        return residuals.take_columns(self.x, self.columns)


def choose(x: Any, dy: Any, implementation: Implementation | None) -> Implementation:
    """The implementation for these arrays, or for their shapes; `x` may be `Unpacked`.

    Raises:
      ValueError: as `dispatch.choose`.
    """
    array, num_rows = (x.x, x.columns.size) if isinstance(x, Unpacked) else (x, x.shape[-1])
    refusal = None
    if array.dtype != dy.dtype or dy.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        refusal = f"x is {array.dtype} and dy {dy.dtype}: must be one of bfloat16, float16, float32"
    elif max(array.size, dy.size) >= _LARGEST:
        refusal = f"x has {array.size} elements and dy {dy.size}: must be fewer than 2^31"
    offer = dispatch.Offer(refusal, preferred=num_rows <= _FEW_COLUMNS)
    return dispatch.choose("linear", implementation, {"triton": offer})


def product(x: jax.Array, dy: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """`dW = x^T dy` by XLA, accumulated in `dtype`: `[..., K], [..., F] -> [K, F]`."""
    return jnp.einsum("tk,tf->kf", _rows(x), _rows(dy), preferred_element_type=dtype)


def bias_gradient(dy: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """`db = sum(dy)`, accumulated in `dtype`: `[..., F] -> [F]`."""
    return jnp.sum(_rows(dy), axis=0, dtype=dtype)


def gradients(
    x: jax.Array | Unpacked,
    dy: jax.Array,
    dtype: jax.typing.DTypeLike = jnp.float32,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`dW [K, F]` and `db [F]` from `x`, `[..., K]` or unpacked, and `dy`, `[..., F]`.

    The kernel gathers the columns of an unpacked input itself if the features fit one of its tiles,
    so that it reads every column once; otherwise they are packed for it.

    Raises:
      ValueError: the named implementation cannot take the arrays.
    """
    if choose(x, dy, implementation) == "xla":
        packed = x.pack() if isinstance(x, Unpacked) else x
        return product(packed, dy, dtype), bias_gradient(dy, dtype)
    blocks = kernel.blocks_for(dispatch.target().capability, dy.dtype)
    columns = None
    if isinstance(x, Unpacked):
        gathers = dy.shape[-1] <= blocks.features
        x, columns = (x.x, x.columns) if gathers else (x.pack(), None)
    dw, db = kernel.weight_gradient(
        _rows(x), _rows(dy), columns, blocks=blocks, interpret=dispatch.interpreting()
    )
    return dw.astype(dtype), db.astype(dtype)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])
