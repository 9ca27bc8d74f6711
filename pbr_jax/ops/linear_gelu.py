"""`gelu(x W + b)`, and the gradient `(dy W^T) g` of what is in front of `gelu(u) W`.

By XLA a product and then GELU, or its derivative g, in passes of their own; or by a kernel each,
which keeps u and `dy W^T` on chip.

The kernels are the first choice where codes are kept and the card is older than Hopper: by
arithmetic they save an RTX 4090 a third of the floors of products and passes. On an H200 a pass of
GELU is bound by its instructions; the kernel spends the same ones, behind a product that is slower
than cuBLAS. Where u is kept they save less, and most steps need more memory with them. Predicted,
not measured: nothing was timed on a GPU yet; docs/kernels.md has the figures.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from pbr_jax import plans
from pbr_jax.kernels import linear_gelu as kernel
from pbr_jax.kernels import linear_tiles
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import dispatch, gelu, gelu_codes, linear

_HOPPER = (9, 0)


def _refusal(x: Any, num_features: int, kind: str, keys: jax.Array | None) -> str | None:
    u = jax.ShapeDtypeStruct((*x.shape[:-1], num_features), x.dtype)
    return gelu.KERNEL.refusal(u, keys) or dispatch.unfit(x=x)


def _preferred(x: Any, num_features: int, kind: str, keys: jax.Array | None) -> bool:
    return plans.kind("gelu", kind).bits > 0 and (dispatch.target().capability or _HOPPER) < _HOPPER


KERNEL = dispatch.Kernel("linear_gelu", _refusal, linear_tiles.TILES, _preferred)
"""Both kernels; chosen for an input `[..., D]`, F, the kind of residual and keys that round it."""


def forward(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array,
    settings: gelu.Settings,
    *,
    keys: jax.Array | None = None,
    columns: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """GELU of `u = x W + b`, its residual, and `columns` of the output, packed.

    Args:
      x: `[B, ..., D]`.
      w: `[D, F]`; the product runs in the dtype of `x`.
      bias: `[F]`.
      settings, keys, columns: as for `gelu.forward`.

    Raises:
      ValueError: the named implementation cannot run.
    """
    if KERNEL.choose(settings.implementation, x, w.shape[1], settings.kind, keys) == "xla":
        return gelu.forward(linear.project(x, w, bias), settings, keys=keys, columns=columns)
    # The kernel numbers the tokens; results get the leading axes of x back.
    bits, approximate = plans.kind("gelu", settings.kind).bits, settings.approximate
    a, residual, packed = kernel.linear_gelu(
        x.reshape(-1, x.shape[-1]),
        w.astype(x.dtype),
        bias,
        gelu_codes.nearest_steps(bits, approximate) if bits else None,
        columns,
        approximate=approximate,
        blocks=_blocks(x.dtype, w.shape[1]),
        interpret=dispatch.interpreting(),
    )

    def shaped(array):
        return array.reshape(*x.shape[:-1], *array.shape[1:])

    return shaped(a), shaped(residual), None if packed is None else shaped(packed)


def input_gradient(
    dy: jax.Array,
    w: jax.Array,
    residual: jax.Array,
    settings: gelu.Settings,
    *,
    stochastic: bool = False,
) -> jax.Array:
    """`du = (dy W^T) g`, `[B, ..., D], [F, D] -> [B, ..., F]`, for `y = gelu(u) W`.

    Args:
      dy: `[B, ..., D]`.
      w: `[F, D]`; the product runs in the dtype of `dy`.
      residual: of GELU.
      settings: static.
      stochastic: codes were rounded at random.

    Raises:
      ValueError: the named implementation cannot run.
    """
    kind, approximate = plans.kind("gelu", settings.kind), settings.approximate
    if KERNEL.choose(settings.implementation, dy, w.shape[0], settings.kind, None) == "xla":
        da = linear.input_gradient(dy, w)
        return da * kind.restore(residual, da, approximate=approximate, stochastic=stochastic)
    levels = None
    if kind.bits:
        levels = tuple(map(float, gelu_codes.codebook(kind.bits, stochastic, approximate)))
    rows = math.prod(dy.shape[:-1])
    du = kernel.linear_gelu_gradient(
        dy.reshape(rows, -1),
        w.astype(dy.dtype),
        residual.reshape(rows, *residual.shape[dy.ndim - 1 :]),
        levels,
        approximate=approximate,
        blocks=_blocks(dy.dtype, w.shape[0]),
        interpret=dispatch.interpreting(),
    )
    return du.reshape(*dy.shape[:-1], w.shape[0])


def _blocks(dtype: jax.typing.DTypeLike, num_features: int) -> Blocks:
    return linear_tiles.for_features(KERNEL.cut()[jnp.dtype(dtype).itemsize], num_features)
