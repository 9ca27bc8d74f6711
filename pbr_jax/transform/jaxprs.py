"""The one place that reads what differs between versions of JAX: equations and their parameters."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import NamedSharding

Jaxpr = Any  # `Jaxpr` of JAX; 0.11 has one class for it and for the closed one
Equation = Any

_CALLS = ("jit", "pjit", "closed_call", "core_call", "core_closed_call")
_REMAT = ("remat2", "checkpoint", "remat")


def is_variable(atom: Any) -> bool:
    """Whether an operand is a variable, and not a literal."""
    return not isinstance(atom, core.Literal)


def kind(eqn: Equation) -> str:
    """ "call", "remat", "scan", "dot" or "other": how an equation is walked through."""
    name = eqn.primitive.name
    if name in _CALLS:
        return "call"
    if name in _REMAT:
        return "remat"
    return {"scan": "scan", "dot_general": "dot"}.get(name, "other")


def inner(eqn: Equation) -> tuple[Jaxpr, Sequence[Any]]:
    """The jaxpr inside a call, remat or scan, and its constants."""
    params = eqn.params
    jaxpr = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    consts = getattr(jaxpr, "consts", ())
    return getattr(jaxpr, "jaxpr", jaxpr), consts


def scan_split(eqn: Equation) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def call_constraints(eqn: Equation) -> tuple[Sequence[Any], Sequence[Any]]:
    """Shardings that a jitted function demands of its inputs and outputs; None where none."""

    def named(shardings: Sequence[Any]) -> list[Any]:
        return [s if isinstance(s, NamedSharding) else None for s in shardings]

    params = eqn.params
    return named(params.get("in_shardings", ())), named(params.get("out_shardings", ()))


def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
    """Evaluates an equation as it stands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    if isinstance(params, tuple):  # functions first, in some versions
        values, params = [*params[0], *values], params[1]
    out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def context(eqn: Equation):
    """What surrounded the equation when it was traced: its mesh and the names of its scopes."""
    scope = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(scope) if scope else contextlib.nullcontext():
        yield


def surroundings() -> tuple:
    """What a trace depends on beside its arguments, for the key of a cache."""
    config: Any = jax.config
    mesh = jax.sharding.get_abstract_mesh()
    return (
        mesh,
        config.jax_enable_x64,
        config.jax_numpy_dtype_promotion,
        config.jax_default_matmul_precision,
    )
