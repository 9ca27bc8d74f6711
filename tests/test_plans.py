"""Residual plans: what they accept, and budgets of columns."""

import typing

import pytest

from pbr_jax import plans
from pbr_jax.plans import Keep, ResidualPlan, budget_for

KINDS = {
    "linear": plans.LinearKind,
    "layer_norm": plans.LayerNormKind,
    "attention": plans.AttentionKind,
    "gelu": plans.GeluKind,
}


def test_a_plan_keeps_everything_unless_told_otherwise():
    plan = ResidualPlan()
    assert (plan.linear, plan.layer_norm, plan.attention, plan.gelu) == (
        "dense",
        "dense",
        "flash",
        "dense",
    )
    assert plan.keep == Keep(1.0, 1.0, 1.0, 1.0)
    assert (plan.recompute, plan.batch_chunks, plan.stochastic_codes) == (False, 1, False)


@pytest.mark.parametrize("field", KINDS)
def test_a_plan_accepts_its_kinds_and_no_other(field):
    for kind in typing.get_args(KINDS[field]):
        assert getattr(ResidualPlan(**{field: kind}), field) == kind
    with pytest.raises(ValueError, match=rf"{field} = 'other': must be one of"):
        ResidualPlan(**{field: "other"})


def test_a_plan_has_at_least_one_chunk():
    with pytest.raises(ValueError, match="batch_chunks = 0: must be at least 1"):
        ResidualPlan(batch_chunks=0)


def test_the_largest_keep_of_all_sites():
    for site in plans.SITES:
        assert Keep(**dict.fromkeys(plans.SITES, 0.1) | {site: 0.7}).largest == 0.7


@pytest.mark.parametrize(
    ("keep", "num_columns", "group_size", "budget"),
    [
        (0.1, 768, 1, 80),  # 76.8 to the next multiple of 8
        (0.1, 3072, 1, 312),
        (0.07, 800, 1, 56),  # 56.00000000000001 in floating point
        (1.0, 768, 1, 768),
        (0.001, 768, 1, 8),
        (0.9, 12, 1, 12),  # no more than there are
        (0.1, 768, 3, 96),  # whole groups: multiples of 24
        (0.1, 768, 16, 80),
        (1e-9, 768, 1, 8),
        (0.1, 768, 32, 96),
    ],
)
def test_budgets(keep, num_columns, group_size, budget):
    assert budget_for(keep, num_columns, group_size) == budget


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_a_keep_outside_its_range_is_refused(keep):
    with pytest.raises(ValueError, match=r"keep = .*: must be in \(0, 1\]"):
        budget_for(keep, 768)


@pytest.mark.parametrize("group_size", [0, 5])
def test_groups_must_tile_the_columns(group_size):
    with pytest.raises(ValueError, match=rf"group_size = {group_size}: must divide.*768"):
        budget_for(0.1, 768, group_size)
