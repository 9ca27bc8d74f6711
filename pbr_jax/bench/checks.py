"""Checks that kernels and train steps compute on this device what they should.

A result in a low precision cannot be exact, so each is judged by what XLA's own code in the same
precision deviates from a reference: float64 where the exact formula is known, else XLA in float32
with exact products. Codes and bits are compared with those of XLA in the same precision.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax.bench import exact
from pbr_jax.bench.cases.case import BenchCase
from pbr_jax.compare.steps import random_batch, random_params
from pbr_jax.configs.common import Config, Optimizer
from pbr_jax.families import KERNEL, Architecture
from pbr_jax.gpu import CARDS, Card
from pbr_jax.plans import Implementation
from pbr_jax.runs.progress import progress
from pbr_jax.settings.resolve import architecture
from pbr_jax.settings.variants import with_method
from pbr_jax.training import from_config
from pbr_jax.training.sites import layers, with_layers

_FACTOR = 3.0  # times the deviation of XLA's code, as the tests allow for gradients
_ROUNDING = 1e-5  # deviation of float32 by another order of summation
_STEP_ROUNDING = 1e-4  # the same over a whole step
_DIFFERING = 0.01  # share of codes that may differ, at ties
_RATE = 2.0**20  # learning rate, so large that the moves are not lost in rounding
EXACT_DX = ("full", "remat", "prebackrazor", "tiny")  # methods whose kept gradients are exact


def relative_error(found: Any, expected: Any) -> float:
    """`|found - expected| / |expected|`, Euclidean norms, float64; 0 if both are zero."""
    expected = np.asarray(expected, np.float64)
    distance = np.linalg.norm(np.asarray(found, np.float64) - expected)
    return float(distance / (np.linalg.norm(expected) or 1.0))


def check_case(case: BenchCase, arrays: list[jax.Array]) -> dict[str, Any]:
    """Compares the results of a kernel with XLA's and with a reference.

    Returns:
      `{"op", "shape", "implementation", "reference": "float64" or "float32", "errors": one for each
      result, "xla_errors": the same of XLA's code, "passed", "refused"}`; an error of codes is the
      share that differs, and `refused` says why a kernel did not run, or is None.
    """
    result: dict[str, Any] = {"op": case.op, "shape": case.shape, "implementation": case.kernel}
    try:
        found = _results(case, arrays, case.kernel)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return result | {"refused": str(error).splitlines()[0], "passed": None}
    same_precision = _results(case, arrays, "xla")
    # The reference is XLA in float32 with exact products, or float64 where a formula is known.
    wide = [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in arrays]
    with jax.default_matmul_precision("highest"):
        reference = _results(case, wide, "xla")
    known = exact.case_results(case, arrays)
    reference[: len(known)] = known
    errors, xla_errors, allowed = [], [], []
    for one, other, right in zip(found, same_precision, reference, strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            errors.append(relative_error(one, right))
            xla_errors.append(relative_error(other, right))
            allowed.append(max(_FACTOR * xla_errors[-1], _ROUNDING))
        else:  # codes and bits
            errors.append(float(np.mean(np.asarray(one) != np.asarray(other))))
            xla_errors.append(0.0)
            allowed.append(_DIFFERING)
    return result | {
        "reference": "float64" if known else "float32",
        "errors": errors,
        "xla_errors": xla_errors,
        "passed": all(error <= most for error, most in zip(errors, allowed, strict=True)),
        "refused": None,
    }


def _results(case: BenchCase, arrays, implementation: Implementation) -> list[Any]:
    run = jax.jit(lambda *args: case.run(*args, implementation=implementation))
    return jax.tree.leaves(run(*arrays))


def check_steps(config: Config, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Compares the gradient that a step applies, by each method, with XLA's and with float64.

    The optimizer is replaced by plain gradient descent, so that a step shows its gradient, and
    dropout is off, since float64 has no such bits.

    Returns:
      For each method `{"method", "kernels_to_xla": deviation of the step with the device's kernels
      from that of XLA alone, both with exact products; "to_float64": of the rows that it moved from
      the exact gradient; "low_to_float64", "low_xla_to_float64": the same in the dtype and
      precision of `config`, with kernels and without; "rows": share of rows moved, "passed"}`.
    """
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0),
        optimizer=Optimizer(
            learning_rate=_RATE, momentum=0.0, clip_norm=None, schedule="constant", warmup_steps=0
        ),
    )
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    batch = random_batch(config, padded=True)
    params = random_params(wide, from_config.build(with_method(wide, "full", keep_plan=True)))
    gradient, sizes = exact.gradient(config, params, batch), architecture(config)

    def check(method: str) -> dict[str, Any]:
        exact_run, low_run = (with_method(c, method, keep_plan=True) for c in (wide, config))
        with jax.default_matmul_precision("highest"):
            xla = _moves(exact_run, params, batch, "xla")
            kernels = _moves(exact_run, params, batch, None)
        low = _moves(low_run, params, batch, None)
        low_xla = _moves(low_run, params, batch, "xla")
        moved = [_moved(layer[KERNEL]).ravel() for layer in layers(kernels, sizes).values()]
        row: dict[str, Any] = {
            "method": method,
            "kernels_to_xla": relative_error(_flat(kernels), _flat(xla)),
            "to_float64": error_where_moved(kernels, gradient, sizes),
            "low_to_float64": error_where_moved(low, gradient, sizes),
            "low_xla_to_float64": error_where_moved(low_xla, gradient, sizes),
            "rows": float(np.mean(np.concatenate(moved))),
        }
        # A code at a tie may fall either way in another order of summation.
        is_exact = method.partition("/")[0] in EXACT_DX
        row["passed"] = (
            row["kernels_to_xla"] <= (_STEP_ROUNDING if is_exact else _DIFFERING)
            and (row["to_float64"] <= _STEP_ROUNDING or not is_exact)
            and row["low_to_float64"] <= _FACTOR * row["low_xla_to_float64"] + _STEP_ROUNDING
        )
        done(method)
        return row

    with progress("steps", len(methods)) as done:
        return [check(method) for method in methods]


def _moves(config: Config, params: Any, batch: Any, implementation: Implementation | None) -> Any:
    """Moves of one step of gradient descent, `(old - new) / rate`, float32."""
    plan = dataclasses.replace(config.plan, implementation=implementation)
    config = dataclasses.replace(config, plan=plan)
    parts = from_config.build(config)
    state = from_config.new_state(config, parts, params)
    after, metrics = jax.jit(parts.train_step)(state, batch)
    if not metrics.finite:
        raise RuntimeError(f"{config.method}: the gradient is not finite")
    return jax.tree.map(lambda old, new: np.asarray(old - new) / _RATE, params, after.params)


def _moved(stacked: np.ndarray) -> np.ndarray:
    """Rows that moved, of stacked kernels `[L, D, 1]`, or blocks, of stacked vectors `[L, 1]`."""
    return np.any(stacked != 0, axis=-1, keepdims=True)


def error_where_moved(moves: Any, gradient: Any, sizes: Architecture) -> float:
    """Deviation from the exact gradient, of the rows that moved in the layers of the sites."""
    own = layers(gradient, sizes)
    seen = {
        site: {name: np.where(_moved(move), own[site][name], 0.0) for name, move in layer.items()}
        for site, layer in layers(moves, sizes).items()
    }
    expected = with_layers(gradient, sizes, seen)
    return relative_error(_flat(moves), _flat(expected))


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def compare_cards(card: Card) -> dict[str, Any]:
    """Compares the table's description of a card with the one that the card gives of itself.

    Returns:
      `{"name": in the table or None, "differing": {field: [table, card]}}`.
    """
    ours = next((one for one in CARDS.values() if one.description == card.description), None)
    differing = {}
    for field in dataclasses.fields(Card):
        mine, its = getattr(ours, field.name, None), getattr(card, field.name)
        if field.name not in ("name", "description") and mine != its:
            differing[field.name] = [mine, its]
    return {"name": ours.name if ours else None, "differing": differing}
