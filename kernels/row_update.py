"""Optimizer step on selected rows, in place: SGD with momentum or AdamW, and squared row norms.

A block of threads takes one slot, reads the row of the parameter and of its moments that the slot
names and the packed gradient, and writes the new row over the old one:

    slots [R] ──────────────────────► which row
    gradient [R, F], a row ──┬── |g|^2 ────────────────────► norms [R]
    parameter [D, F], its row ┴─► new parameter, moments ──► the same rows, in place
    moments   [D, F], its row ┘

Rows that no slot names are neither read nor written.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


class Rule(NamedTuple):
    """Update of a value along its gradient, by the formulas of Optax."""

    # "sgd" (moments: one if `momentum`) or "adamw" (moments: mu and nu)
    name: Literal["sgd", "adamw"]
    momentum: float = 0.0  # of SGD
    # b1, b2, eps: of AdamW
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0  # part of the gradient for SGD, decoupled for AdamW

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the moments, as Optax calls them."""
        if self.name == "adamw":
            return ("mu", "nu")
        return ("trace",) if self.momentum else ()

    def new(self, param, grad, moments, now: "Scalars"):
        """The parameter and its moments after a step, elementwise, `grad` already clipped."""
        if self.name == "sgd":
            step = grad + self.weight_decay * param if self.weight_decay else grad
            if self.momentum:
                step = step + self.momentum * moments[0]
                moments = (step,)
        else:
            mu = self.b1 * moments[0] + (1 - self.b1) * grad
            nu = self.b2 * moments[1] + (1 - self.b2) * (grad * grad)
            moments = (mu, nu)
            step = (mu / now.correction1) / (jnp.sqrt(nu / now.correction2) + self.eps)
            if self.weight_decay:
                step = step + self.weight_decay * param
        return param - now.rate * step, moments


class Scalars(NamedTuple):
    """Scalars that differ from step to step, float32."""

    apply: Any  # 0 where nothing shall change, else 1
    rate: Any  # learning rate
    scale: Any  # of the gradient, from clipping
    # correction1, correction2: `1 - b ** t` of AdamW's moments
    correction1: Any
    correction2: Any


# One block of threads a row, in parts of this many elements; 8 for each thread of 4 warps.
_PART = 1024
_WARPS = 4
_STAGES = 2


def update_rows(
    rule: Rule,
    now: Scalars,
    slots: jax.Array,
    grads: jax.Array,
    param: jax.Array,
    moments: tuple[jax.Array, ...],
    *,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array]:
    """The parameter and its moments with new rows, and squared norms of the gradient's rows.

    Args:
      rule: static.
      now: float32 scalars.
      slots: int32 `[R]`, distinct rows of the parameter; D or more marks an unused slot.
      grads: float32 `[R, F]`.
      param, moments: float32 `[D, F]`; donate them, or they are copied first.

    Returns:
      Parameter and moments `[D, F]`, and `[R]` norms, before any scaling.
    """
    num_slots, width = grads.shape
    num_rows = param.shape[0]
    part = min(_PART, pl.next_power_of_2(width))

    # A block of threads owns one row, since slots are distinct, and so may overwrite what it read.
    # The scalars stay in registers over all parts of the row.
    def kernel(scalars_ref, slots_ref, grads_ref, *refs):
        old, new, norms_ref = refs[: len(refs) // 2], refs[len(refs) // 2 : -1], refs[-1]
        slot = pl.program_id(0)
        row = slots_ref[slot]
        scalars = Scalars(*(scalars_ref[i] for i in range(len(Scalars._fields))))
        # An unused slot still sums its gradient but reads and writes no row; a step that is not to
        # be applied reads and does not write.
        used = row < num_rows
        stored = used & (scalars.apply > 0)

        def step(i, norm):
            columns = pl.ds(i * part, part)
            inside = i * part + lax.iota(jnp.int32, part) < width

            def load(ref, index, mask):
                return triton.load(ref.at[index, columns], mask=mask, other=0.0)

            # The packed gradient lies at the slot, parameter and moments at the row that it names.
            grad = load(grads_ref, slot, inside)
            values, *sums = (load(ref, row, inside & used) for ref in old)
            value, sums = rule.new(values, grad * scalars.scale, tuple(sums), scalars)
            for ref, result in zip(new, (value, *sums), strict=True):
                triton.store(ref.at[row, columns], result, mask=inside & stored)
            return norm + jnp.sum(grad * grad)

        norms_ref[slot] = lax.fori_loop(0, pl.cdiv(width, part), step, jnp.zeros((), jnp.float32))

    # The results alias parameter and moments, so the rows that no slot names are already in place.
    arrays = (param, *moments)
    scalars = jnp.stack([jnp.asarray(value, jnp.float32) for value in now])
    *results, norms = pl.pallas_call(
        kernel,
        grid=(num_slots,),
        out_shape=(
            *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays),
            jax.ShapeDtypeStruct((num_slots,), jnp.float32),
        ),
        input_output_aliases={3 + i: i for i in range(len(arrays))},
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name=f"row_update_{rule.name}",
    )(scalars, slots, grads, *arrays)
    return results[0], tuple(results[1:]), norms
