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

from pbr_jax.kernels import linear_gelu as kernel
from pbr_jax.kernels import linear_tiles
from pbr_jax.kernels.tiles import Blocks
from pbr_jax.ops import dispatch, gelu, gelu_codes, linear
from pbr_jax.plans import GeluKind, Implementation

_HOPPER = (9, 0)


def _refusal(x: Any, num_features: int, kind: GeluKind, keys: jax.Array | None) -> str | None:
    u = jax.ShapeDtypeStruct((*x.shape[:-1], num_features), x.dtype)
    return gelu.KERNEL.refusal(u, keys) or dispatch.unfit(x=x)


def _preferred(x: Any, num_features: int, kind: GeluKind, keys: jax.Array | None) -> bool:
    return kind != "dense" and (dispatch.target().capability or _HOPPER) < _HOPPER


KERNEL = dispatch.Kernel("linear_gelu", _refusal, linear_tiles.TILES, _preferred)
"""Both kernels; chosen for an input `[..., D]`, F, the kind of residual and keys that round it."""


def forward(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array,
    kind: GeluKind,
    *,
    approximate: bool = False,
    keys: jax.Array | None = None,
    columns: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array | gelu.Code, jax.Array | None]:
    """GELU of `u = x W + b`, what `gelu.save` keeps of u, and `columns` of the output, packed.

    Args:
      x: `[B, ..., D]`.
      w: `[D, F]`; the product runs in the dtype of `x`.
      bias: `[F]`.
      kind, approximate, keys, columns: as for `gelu.forward`.
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: the named implementation cannot run.
    """
    if KERNEL.choose(implementation, x, w.shape[1], kind, keys) == "xla":
        u = linear.project(x, w, bias)
        return gelu.forward(
            u,
            kind,
            approximate=approximate,
            keys=keys,
            columns=columns,
            implementation=implementation,
        )
    bits = 0 if kind == "dense" else int(kind.removeprefix("code"))
    a, saved, packed = kernel.linear_gelu(
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

    kept = gelu.Code(shaped(saved)) if bits else shaped(saved)
    return shaped(a), kept, None if packed is None else shaped(packed)


def input_gradient(
    dy: jax.Array,
    w: jax.Array,
    saved: jax.Array | gelu.Code,
    *,
    approximate: bool = False,
    stochastic: bool = False,
    implementation: Implementation | None = None,
) -> jax.Array:
    """`du = (dy W^T) g`, `[B, ..., D], [F, D] -> [B, ..., F]`, for `y = gelu(u) W`.

    Args:
      dy: `[B, ..., D]`.
      w: `[F, D]`; the product runs in the dtype of `dy`.
      saved: what `gelu.save` kept of u.
      approximate, stochastic: as for `gelu.saved_derivative`.
      implementation: see `pbr_jax.ops.dispatch`; None lets the device decide.

    Raises:
      ValueError: the named implementation cannot run.
    """
    coded = isinstance(saved, gelu.Code)
    kind: GeluKind = "code2" if coded else "dense"
    if KERNEL.choose(implementation, dy, w.shape[0], kind, None) == "xla":
        da = linear.input_gradient(dy, w)
        return da * gelu.saved_derivative(saved, da, approximate=approximate, stochastic=stochastic)
    planes = saved.planes if isinstance(saved, gelu.Code) else saved
    levels = gelu_codes.codebook(planes.shape[-2], stochastic, approximate) if coded else None
    rows = math.prod(dy.shape[:-1])
    du = kernel.linear_gelu_gradient(
        dy.reshape(rows, -1),
        w.astype(dy.dtype),
        planes.reshape(rows, *planes.shape[dy.ndim - 1 :]),
        None if levels is None else tuple(map(float, levels)),
        approximate=approximate,
        blocks=_blocks(dy.dtype, w.shape[0]),
        interpret=dispatch.interpreting(),
    )
    return du.reshape(*dy.shape[:-1], w.shape[0])


def _blocks(dtype: jax.typing.DTypeLike, num_features: int) -> Blocks:
    return linear_tiles.for_features(KERNEL.cut()[jnp.dtype(dtype).itemsize], num_features)
