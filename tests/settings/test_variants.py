"""The same run by another method: what it keeps of its settings, and which methods there are."""

from fakes import config

from pbr_jax.configs.common import Keep, Plan, Pruning
from pbr_jax.methods import OF_HALF_BLOCKS
from pbr_jax.settings.resolve import resolve_method
from pbr_jax.settings.variants import candidates, method_names, split_methods, with_method


def test_every_method_has_a_row():
    names = method_names(config("fast/js30"))
    assert names == [*OF_HALF_BLOCKS]
    assert method_names(config("lean/chunks2/js30")) == ["lean/chunks2", *OF_HALF_BLOCKS]
    for name in names:
        resolve_method(with_method(config("prebackrazor"), name))


def test_settings_stay_where_they_mean_something():
    run = config("fast", pruning=Pruning(keep=0.5, policy="uniform"), plan=Plan(gelu="code4"))
    assert with_method(run, "fast") is run
    assert with_method(run, "fast/js50").plan == run.plan
    lean = with_method(run, "lean")
    assert (lean.plan, lean.pruning) == (Plan(), run.pruning)
    backrazor = with_method(run, "backrazor").pruning
    assert (backrazor.keep, backrazor.policy) == (0.5, None)
    full = with_method(run, "full").pruning
    assert (full.keep, full.policy) == (None, None)
    sites = config("fast", pruning=Pruning(keep=Keep(fc2=0.2)))
    assert with_method(sites, "tiny").pruning == sites.pruning


def test_candidates_train_the_same_share_of_the_tensors():
    assert candidates(config()) == method_names(config())
    spar = candidates(config("fast/js30"))
    runs = [with_method(config("fast/js30"), name) for name in spar]
    assert {resolve_method(run).joint_spar for run in runs} == {0.3}
    assert len(spar) == len(OF_HALF_BLOCKS)


def test_a_comparison_by_one_plan_keeps_it():
    run = config("fast", plan=Plan(gelu="code4"))
    assert with_method(run, "lean", keep_plan=True).plan == run.plan


def test_a_list_has_each_method_once_and_names_what_is_none():
    methods, faults = split_methods("full,lean/js50,full,ful")
    assert methods == ["full", "lean/js50", "ful"]
    assert len(faults) == 1 and faults[0].startswith("--methods ful: no such method")
