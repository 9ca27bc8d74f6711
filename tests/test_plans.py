"""Residual plans: what they accept, and budgets of columns."""

import dataclasses
import pickle
import subprocess
import sys

import pytest

from pbr_jax.plans import KINDS, Keep, ResidualPlan, budget_for, kind


def test_a_plan_keeps_everything_unless_told_otherwise():
    plan = ResidualPlan()
    assert (plan.linear, plan.layer_norm, plan.attention, plan.gelu) == (
        "dense",
        "dense",
        "flash",
        "dense",
    )
    assert plan.keep == Keep(1.0)
    assert (plan.recompute, plan.batch_chunks, plan.stochastic_codes) == (False, 1, False)


@pytest.mark.parametrize("field", KINDS)
def test_a_plan_accepts_its_kinds_and_no_other(field):
    for name in KINDS[field]:
        plan = ResidualPlan(**{field: name})
        assert getattr(plan, field) == name
        assert plan.kind(field) is kind(field, name)
    with pytest.raises(ValueError, match=rf"{field} = 'other': must be one of"):
        ResidualPlan(**{field: "other"})


def test_a_plan_has_at_least_one_chunk():
    with pytest.raises(ValueError, match="batch_chunks = 0: must be at least 1"):
        ResidualPlan(batch_chunks=0)


def test_an_unknown_kind_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"linear = 'column': must be one of .*mean columns"):
        kind("linear", "column")
    for name in ("mosaic", "jax_triton"):
        with pytest.raises(
            ValueError, match=f"implementation = '{name}': must be one of xla, triton"
        ):
            ResidualPlan(implementation=name)


def test_every_field_of_a_plan_says_what_it_is():
    comments = {f.name: f.metadata["comment"] for f in dataclasses.fields(ResidualPlan)}
    assert all(comments.values())
    assert comments["linear"] == (
        "inputs of linear layers: dense = all columns; columns = chosen columns; magnitude ="
        " columns of largest norm; elements = largest elements"
    )


def test_plans_need_no_jax():
    program = "import sys, pbr_jax.plans, pbr_jax.methods; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


class TestKeep:
    def test_a_site_takes_its_own_fraction_or_the_default(self):
        keep = Keep(0.1, fc1=0.4)
        assert (keep["fc1"], keep["fc2"], keep.sites) == (0.4, 0.1, {"fc1": 0.4})
        assert Keep(fc1=0.4)["fc2"] is None

    def test_what_is_open_comes_from_another(self):
        own, other = Keep(fc2=0.2), Keep(0.1, fc1=0.4, fc2=0.5)
        assert own.with_defaults(other) == Keep(0.1, fc1=0.4, fc2=0.2)
        assert Keep(0.3, fc2=0.2).with_defaults(other) == Keep(0.3, fc2=0.2)
        assert ResidualPlan(keep=own).keep == Keep(1.0, fc2=0.2)

    def test_equality_is_by_content(self):
        assert Keep(fc1=0.4, fc2=0.2) == Keep(fc2=0.2, fc1=0.4)
        assert hash(Keep(fc1=0.4, fc2=0.2)) == hash(Keep(fc2=0.2, fc1=0.4))
        assert Keep(0.1) != Keep(0.1, fc1=0.1)
        assert pickle.loads(pickle.dumps(Keep(0.1, fc1=0.4))) == Keep(0.1, fc1=0.4)

    def test_it_is_written_as_it_is_made(self):
        assert repr(Keep(0.1, fc1=0.4)) == "Keep(0.1, fc1=0.4)"
        assert repr(Keep(fc2=0.2)) == "Keep(fc2=0.2)"

    def test_it_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Keep(0.1).default = 0.2


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
