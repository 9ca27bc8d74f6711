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

from pbr_jax import plans
from pbr_jax.ops import pair, residuals, weight_gradient
from pbr_jax.ops.arrays import as_row
from pbr_jax.plans import Implementation


class Settings(NamedTuple):
    """Static part of a linear layer."""

    kind: str = "dense"  # name of its residual, see `pbr_jax.ops.linear_kinds`
    keep: float = 1.0  # fraction kept by "magnitude" and "elements", in (0, 1]
    implementation: Implementation | None = None  # of the weight gradient, see `dispatch`


def project(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`x W + b` in the dtype of `x`: `[..., D], [D, F], [F] -> [..., F]`."""
    y = jnp.matmul(x, kernel.astype(x.dtype))
    return y if bias is None else y + as_row(bias, y.ndim, y.dtype)


def input_gradient(dy: jax.Array, kernel: jax.Array) -> jax.Array:
    """`dx = dy W^T`: `[..., F], [D, F] -> [..., D]`."""
    return jnp.einsum("...f,df->...d", dy, kernel.astype(dy.dtype))


def save_input(x: jax.Array, params: dict, settings: Settings) -> Any:
    """Residual of a linear layer: the part of its input `x`, `[B, ..., D]`, that it keeps."""
    return plans.kind("linear", settings.kind).save(x, params, settings)


def parameter_gradients(params: dict, residual: Any, dy: jax.Array, settings: Settings) -> dict:
    """Cotangents of `kernel`, `rows` and `bias` from what `save_input` kept.

    With `rows` in `params` the weight gradient is packed, `[K, F]`, and the kernel gets none; with
    `columns` alone it is scattered into the shape of the kernel. `active` (JointSPAR) holds a flag
    for the kernel and one for the bias; the gradient of an inactive tensor is zero and its product
    is skipped.

    Raises:
      ValueError: the named implementation cannot take the arrays.
    """
    kind = plans.kind("linear", settings.kind)
    kernel, bias, active = params["kernel"], params.get("bias"), params.get("active", {})
    shape = (*dy.shape[:-1], kernel.shape[0])

    def restored():
        return kind.restore(residual, shape, dy.dtype)

    def kernel_gradient():
        dw = weight_gradient.product(restored(), dy, kernel.dtype)
        return kind.place(dw, params, residual)

    def bias_gradient():
        return None if bias is None else weight_gradient.bias_gradient(dy, bias.dtype)

    def both_gradients():
        dw, db = weight_gradient.gradients(restored(), dy, kernel.dtype, settings.implementation)
        dw = kind.place(dw, params, residual)
        return dw, None if bias is None else db.astype(bias.dtype)

    # The kernel's tensor is frozen and its bias may not be: one pass for both would be wasted.
    def bias_alone():
        zeros = _zeros(kernel_gradient)
        return zeros, _if_active(active.get("bias"), bias_gradient)

    # XLA makes both gradients by themselves; a kernel makes them in one pass over dy.
    if (
        weight_gradient.KERNEL.choose(settings.implementation, jax.eval_shape(restored), dy)
        == "xla"
    ):
        dw = _if_active(active.get("kernel"), kernel_gradient)
        db = _if_active(active.get("bias"), bias_gradient)
    else:
        dw, db = _if_active(active.get("kernel"), both_gradients, bias_alone)
        db = _if_active(active.get("bias"), lambda: db)
    # Everything in `params` gets a cotangent; None says that it has none.
    grads: dict[str, Any] = dict.fromkeys(params)
    grads["rows" if "rows" in params else "kernel"] = dw
    if bias is not None:
        grads["bias"] = db
    return grads


def _if_active(flag, gradient, otherwise=None):
    """`gradient()` if there is no flag or it is set; else `otherwise()`, by default zeros."""
    if flag is None:
        return gradient()
    return lax.cond(flag, gradient, otherwise or (lambda: _zeros(gradient)))


def _zeros(gradient):
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(gradient))


def linear_pair(settings: Settings) -> pair.Pair:
    """The linear layer as a pair over `params = {kernel, bias, columns, rows, active}`."""
    kind = plans.kind("linear", settings.kind)

    def forward(params, x, aux):
        y = project(x, params["kernel"], params.get("bias"))
        residual = save_input(x, params, settings)
        # A refusal of the backward pass is better now than when it is used.
        restored = jax.eval_shape(lambda: kind.restore(residual, x.shape, y.dtype))
        weight_gradient.KERNEL.choose(settings.implementation, restored, y)
        return y, residual

    def backward(params, residual, aux, dy):
        grads = parameter_gradients(params, residual, dy, settings)
        return grads, input_gradient(dy, params["kernel"])

    return pair.Pair(forward, backward)


def linear(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    columns: jax.Array | None = None,
    rows: jax.Array | None = None,
    kind: str | None = None,
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
      kind: of the residual. None means "columns" if `columns` is given and "dense" otherwise;
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
    kind = kind or ("dense" if columns is None else "columns")
    _check_arrays(x, kernel, bias)
    _check_selection(kernel, columns, rows, kind)
    params = {"kernel": kernel, "bias": bias, "columns": columns, "rows": rows}
    given = {name: value for name, value in params.items() if value is not None}
    return pair.bind(linear_pair(Settings(kind, keep, implementation)))(given, x, None)


def _check_arrays(x, kernel, bias) -> None:
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


def _check_selection(kernel, columns, rows, kind) -> None:
    if (columns is not None) != plans.kind("linear", kind).selects:
        raise ValueError(
            f"kind = {kind!r} with columns {'None' if columns is None else 'given'}:"
            ' columns go with kind="columns", and only with it'
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
