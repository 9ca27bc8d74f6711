"""Methods by name: what a block keeps, and who chooses the columns.

`resolve("prebackrazor++/js50")` is PreBackRazor++ with JointSPAR over half of the parameter
tensors, `resolve("remat/chunks1")` rematerialisation without chunks of the batch. Every field of a
method can be overridden.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pbr_jax.plans import Keep, ResidualPlan


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to fine-tune."""

    name: str  # as given to `resolve`
    plan: ResidualPlan  # what a transformer block keeps for its backward pass
    policy: str | None = None  # who chooses columns, of `pruning.policy.NAMES`; None where nobody
    joint_spar: float | None = None  # fraction of tensors trained at a time; None means all
    interval: int | Literal["never"] = 1  # steps between two draws of columns
    group_size: int = 1  # contiguous columns that are chosen together
    state: Literal["whole", "packed"] = "whole"  # rows that the optimizer has moments of
    adapters: bool = False  # A and B of LoRA are trained, and nothing else


_PRUNED = Keep(0.1)  # the paper's "90 %"
_MORE_OF_FC1 = Keep(0.1, fc1=0.4)  # it is fc1 that costs accuracy: docs/accuracy.md
_BACKRAZOR = ResidualPlan(
    linear="elements", layer_norm="elements", attention="elements", keep=_PRUNED
)

_FAST = ResidualPlan(
    linear="columns",
    layer_norm="int8",
    attention="qkv",
    gelu="code2",
    batch_chunks=4,
    keep=_MORE_OF_FC1,
)
_LEAN = dataclasses.replace(_FAST, attention="recompute")
_TINY = ResidualPlan(linear="columns", recompute=True, batch_chunks=8, keep=_MORE_OF_FC1)
_REMAT = ResidualPlan(recompute=True, batch_chunks=4)

# PaCA and S2FT: columns that are drawn once, or groups of them, and an optimizer for these alone.
_STATIC = ResidualPlan(linear="columns", keep=_PRUNED)

PRESETS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("full", ResidualPlan()),
        Method("remat", _REMAT),
        Method("remat+offload", dataclasses.replace(_REMAT, offload=True)),
        Method("lora", ResidualPlan(recompute=True), state="packed", adapters=True),
        Method("static", _STATIC, "uniform", interval="never", state="packed"),
        # Groups of 8 divide the heads of every usual model, and K is a multiple of 8 anyway.
        Method("static-groups", _STATIC, "uniform", None, "never", 8, "packed"),
        Method("backrazor", _BACKRAZOR),
        Method("prebackrazor-", dataclasses.replace(_BACKRAZOR, linear="magnitude")),
        Method("prebackrazor", ResidualPlan(linear="columns", keep=_PRUNED), "bandit"),
        Method(
            "prebackrazor++",
            ResidualPlan(linear="columns", attention="channels", keep=_PRUNED),
            "bandit",
        ),
        Method("fast", _FAST, "bandit"),
        Method("lean", _LEAN, "bandit"),
        Method("tiny", _TINY, "bandit"),
        Method("tiny+offload", dataclasses.replace(_TINY, offload=True), "bandit"),
    )
}
METHODS: tuple[str, ...] = tuple(PRESETS)
"""Every method, each kind beside its like: baselines, rivals, the paper's, plans."""
OF_HALF_BLOCKS = tuple(name for name, method in PRESETS.items() if not method.adapters)
"""Those of families whose blocks are `ops.stack`: a backward pass of its own has no place for A."""
SUFFIXES = re.compile(r"(/chunks(?P<chunks>[1-9][0-9]{0,5}))?(/js(?P<percent>[1-9][0-9]?))?")


def with_variants(suffixes: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Every method, followed by its variants: `{"remat": ["/chunks1"]}` adds `remat/chunks1`."""
    return tuple(name + suffix for name in METHODS for suffix in ("", *suffixes.get(name, ())))


def resolve(
    name: str,
    *,
    keep: float | Keep | None = None,
    policy: str | None = None,
    joint_spar: float | None = None,
    interval: int | Literal["never"] | None = None,
    group_size: int | None = None,
    state: Literal["whole", "packed"] | None = None,
    **plan_fields: Any,
) -> Method:
    """The method called `name`, with any field overridden.

    Args:
      name: one of `METHODS`, optionally with the suffixes `/chunksN`, blocks run in N parts of the
        batch, and `/jsNN`, JointSPAR with NN % of the parameter tensors, in this order.
      keep: fraction of columns or elements kept, for all sites or per site; sites that it leaves
        open take the method's own.
      policy: who chooses the columns.
      joint_spar: fraction of tensors, in place of the suffix.
      interval, group_size, state: of the draws, and of what the optimizer keeps.
      **plan_fields: fields of `ResidualPlan`; None leaves the method's own.

    Raises:
      ValueError: the name is unknown, or overrides do not apply to this method: a line for each.
    """
    base, slash, suffixes = name.partition("/")
    match = SUFFIXES.fullmatch(slash + suffixes)
    if match is None or base not in PRESETS:
        raise ValueError(
            f"method = {name!r}: must be one of {', '.join(METHODS)}, optionally followed by"
            " /chunks4, /js50 or the like"
        )
    # The plan: the method's own, then the suffix, then the overrides.
    preset, faults = PRESETS[base], []
    given = {field: value for field, value in plan_fields.items() if value is not None}
    if keep is not None:
        if preset.plan.keep == Keep(1.0):
            faults.append(
                f"pruning.keep = {keep}: method {name!r} prunes nothing; set pruning.keep=none, or"
                " choose another method"
            )
        keep = keep if isinstance(keep, Keep) else Keep(keep)
        given["keep"] = keep.with_defaults(preset.plan.keep)
    if match["chunks"]:
        given.setdefault("batch_chunks", int(match["chunks"]))
    plan = dataclasses.replace(preset.plan, **given)
    if plan.offload and not plan.recompute:
        faults.append(
            f"plan.offload = true: moves the block inputs of a plan that recomputes, and method"
            f" {name!r} keeps more; set plan.offload=none, or plan.recompute=true"
        )
    if preset.adapters and (match["percent"] or joint_spar is not None):
        faults.append(
            f"method = {name}: trains A and B at all times; leave out"
            + (" the suffix /js" if match["percent"] else " pruning.joint_spar")
        )
    # The policy: only columns are chosen, and only a method with a policy says by whom.
    selects = plan.kind("linear").selects
    if selects and preset.policy is None:
        faults.append(
            f"plan.linear = {plan.linear!r}: method {name!r} has no policy to choose columns; set"
            " plan.linear=none, or a method that has one, such as method=prebackrazor"
        )
    if policy is not None and not (selects and preset.policy):
        faults.append(
            f"pruning.policy = {policy!r}: method {name!r} with plan.linear = {plan.linear!r} lets"
            " no policy choose columns; set pruning.policy=none"
        )
    if faults:
        raise ValueError("\n".join(faults))
    chosen = (policy or preset.policy) if selects else None
    if match["percent"]:
        joint_spar = joint_spar or int(match["percent"]) / 100
    return dataclasses.replace(
        preset,
        name=name,
        plan=plan,
        policy=chosen,
        joint_spar=joint_spar,
        interval=interval or preset.interval,
        group_size=group_size or preset.group_size,
        state=state or preset.state,
    )
