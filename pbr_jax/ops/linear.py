"""Linear layer whose backward pass uses a few columns of its input.

`y = x W + b` needs `x` only for `dW = x^T dy`; `dx = dy W^T` never touches it. Keeping K of the D
columns of `x` stores K / D of the bytes and computes K / D of the weight gradient (Algorithm 1,
lines 8-15 and 21-23). `y`, `dx` and `db` stay exact, and so do the kept rows of `dW`; the other
rows are zero.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pbr_jax.ops import pair, residuals, weight_gradient
from pbr_jax.ops.arrays import as_row
from pbr_jax.plans import Implementation, LinearKind, budget_for

Kind = LinearKind
KINDS: tuple[str, ...] = ("dense", "columns", "magnitude", "elements")


class MagnitudeColumns(NamedTuple):
    """Residual of PreBackRazor-: packed columns chosen from the input, and which they are."""

    packed: jax.Array  # [..., K]
    columns: jax.Array  # int32 [K]


def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x W + b` in the dtype of `x`: `[..., D], [D, F], [F] -> [..., F]`."""
    y = jnp.matmul(x, kernel.astype(x.dtype))
    return y if bias is None else y + as_row(bias, y.ndim, y.dtype)


def input_gradient(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """`dx = dy W^T`: `[..., F], [D, F] -> [..., D]`."""
    return jnp.einsum("...f,df->...d", dy, kernel.astype(dy.dtype))


def save_input(x: jax.Array, params: dict, kind: Kind, keep: float = 1.0) -> Any:
    """What the backward pass of a linear layer keeps of its input `x`, `[B, ..., D]`."""
    if kind == "dense":
        return x
    if kind == "columns":
        if "columns" not in params:
            return x  # keep = 1: nothing is selected, all of it is saved
        return residuals.take_columns(x, params["columns"])
    if kind == "magnitude":
        columns = residuals.largest_columns(x, budget_for(keep, x.shape[-1]))
        return MagnitudeColumns(residuals.take_columns(x, columns), columns)
    if kind == "elements":
        return residuals.pack_elements(x, keep, residuals.half_precision(x.dtype))
    raise ValueError(f"linear residual = {kind!r}: must be dense, columns, magnitude or elements")


def parameter_gradients(
    params: dict, saved: Any, dy: jax.Array, implementation: Implementation | None = None
) -> dict:
    """Cotangents of `kernel`, `rows` and `bias` from what `save_input` kept.

    With `rows` in `params` the weight gradient is packed, `[K, F]`, and the kernel gets none; with
    `columns` alone it is scattered into the shape of the kernel. `active` (JointSPAR) holds a flag
    for the kernel and one for the bias; the gradient of an inactive tensor is zero and its product
    is skipped.

    Raises:
      ValueError: the named implementation cannot take the arrays.
    """
    kernel, bias, active = params["kernel"], params.get("bias"), params.get("active", {})
    grads: dict[str, Any] = dict.fromkeys(params)
    of_kernel = "rows" if "rows" in params else "kernel"

    shape = (*dy.shape[:-1], kernel.shape[0])

    def seen():
        return _seen(saved, shape, dy.dtype)

    def kernel_gradient():
        return _placed(weight_gradient.product(seen(), dy, kernel.dtype), params, saved)

    def bias_gradient():
        return None if bias is None else weight_gradient.bias_gradient(dy, bias.dtype)

    def both_gradients():
        dw, db = weight_gradient.gradients(seen(), dy, kernel.dtype, implementation)
        return _placed(dw, params, saved), None if bias is None else db.astype(bias.dtype)

    def bias_alone():
        zeros = _zeros(kernel_gradient)
        return zeros, _if_active(active.get("bias"), bias_gradient)

    if _choose(saved, shape, dy, implementation) == "xla":
        dw = _if_active(active.get("kernel"), kernel_gradient)
        db = _if_active(active.get("bias"), bias_gradient)
    else:
        dw, db = _if_active(active.get("kernel"), both_gradients, bias_alone)
        db = _if_active(active.get("bias"), lambda: db)
    grads[of_kernel] = dw
    if bias is not None:
        grads["bias"] = db
    return grads


def _seen(saved: Any, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> Any:
    """The input that the weight gradient is a product of: all of it, packed or unpacked columns."""
    if isinstance(saved, MagnitudeColumns):
        return saved.packed
    if isinstance(saved, residuals.Elements):
        return residuals.unpack_elements(saved, shape, dtype)
    return saved


def _choose(saved, shape, dy, implementation) -> Implementation:
    seen = jax.eval_shape(lambda: _seen(saved, shape, dy.dtype))
    return weight_gradient.KERNEL.choose(implementation, seen, dy)


def _placed(packed: jax.Array, params: dict, saved: Any) -> jax.Array:
    """A weight gradient where it belongs: among zeros, unless it is wanted packed or is whole."""
    num_columns = params["kernel"].shape[0]
    if isinstance(saved, MagnitudeColumns):
        # Without it a ViT-B/16 step by PreBackRazor- takes 0.1 GB more, by the kernel on jax 0.11.
        packed = lax.optimization_barrier(packed)
        return residuals.put_rows(packed, saved.columns, num_columns)
    if "rows" in params or "columns" not in params or isinstance(saved, residuals.Elements):
        return packed
    return residuals.put_rows(packed, params["columns"], num_columns)


def _if_active(flag, gradient, otherwise=None):
    """`gradient()` if there is no flag or it is set; else `otherwise()`, by default zeros."""
    if flag is None:
        return gradient()
    return lax.cond(flag, gradient, otherwise or (lambda: _zeros(gradient)))


def _zeros(gradient):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient))


def linear_pair(
    kind: Kind, keep: float = 1.0, implementation: Implementation | None = None
) -> pair.Pair:
    """The linear layer as a pair over `params = {kernel, bias, columns, rows, active}`."""

    def forward(params, x, aux):
        y, saved = (
            project(x, params["kernel"], params.get("bias")),
            save_input(x, params, kind, keep),
        )
        _choose(saved, x.shape, y, implementation)  # a refusal is better now than when it is used
        return y, saved

    def backward(params, saved, aux, dy):
        return (
            parameter_gradients(params, saved, dy, implementation),
            input_gradient(dy, params["kernel"]),
        )

    return pair.Pair(forward, backward)


def linear(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    columns: jax.Array | None = None,
    rows: jax.Array | None = None,
    residual: Kind | None = None,
    keep: float = 1.0,
    implementation: Implementation | None = None,
) -> jax.Array:
    """`y = x W + b` that saves only part of `x` for the weight gradient.

    Args:
      x: `[B, ..., D]`.
      kernel: `[D, F]`. It may have a wider dtype than `x` (master weights); the product runs in
        that of `x`.
      bias: `[F]` or None.
      columns: int32 `[K]`, distinct, each in 0..D-1, or D for an unused slot: the columns of `x` to
        keep.
      rows: zeros `[K, F]`. If given, differentiate with respect to them: their cotangent is the
        packed weight gradient, and the kernel receives none.
      residual: what to save. None means "columns" if `columns` is given and "dense" otherwise;
        "magnitude" keeps the columns of largest norm of this batch (PreBackRazor-), "elements"
        BackRazor's.
      keep: fraction kept by "magnitude" and "elements", in (0, 1].
      implementation: of the weight gradient, see `pbr_jax.ops.dispatch`; None lets the device
        decide.

    Returns:
      `[B, ..., F]` in the dtype of `x`.

    Raises:
      ValueError: shapes, dtypes or the selection do not fit, or the named implementation cannot
        run; the message names the argument and the rule.
    """
    residual = residual or ("dense" if columns is None else "columns")
    _check(x, kernel, bias, columns, rows, residual)
    params = {"kernel": kernel, "bias": bias, "columns": columns, "rows": rows}
    given = {name: value for name, value in params.items() if value is not None}
    return pair.bind(linear_pair(residual, keep, implementation))(given, x, None)


def _check(x, kernel, bias, columns, rows, residual) -> None:
    if kernel.ndim != 2 or x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"kernel has shape {kernel.shape}: must be [D, F] with D = {x.shape[-1:]}, the"
            f" last axis of x {x.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}: must be a floating dtype; cast it with x.astype(jnp.float32)"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias has shape {bias.shape}: must be [F] = {kernel.shape[1:]}")
    if residual not in KINDS:
        raise ValueError(f"residual = {residual!r}: must be one of {', '.join(KINDS)}")
    if (columns is not None) != (residual == "columns"):
        raise ValueError(
            f"residual = {residual!r} with columns {'None' if columns is None else 'given'}:"
            ' columns go with residual="columns", and only with it'
        )
    if columns is not None:
        residuals.check_columns(columns, kernel.shape[0])
    if rows is not None:
        if columns is None:
            raise ValueError(
                "rows given without columns: packed gradients need the columns they belong to"
            )
        if rows.shape != (columns.shape[0], kernel.shape[1]):
            raise ValueError(
                f"rows has shape {rows.shape}: must be [K, F] ="
                f" {(columns.shape[0], kernel.shape[1])}"
            )
        if rows.dtype != kernel.dtype:
            raise ValueError(f"rows has dtype {rows.dtype}: must be {kernel.dtype}, that of kernel")
