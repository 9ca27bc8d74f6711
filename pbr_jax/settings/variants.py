"""The same run by another method: which settings it keeps, and which methods there are to try."""

import dataclasses
from collections.abc import Iterable

from pbr_jax import methods
from pbr_jax.configs.common import Config, Plan, Pruning
from pbr_jax.families import find
from pbr_jax.plans import Keep
from pbr_jax.settings.resolve import family_faults, installed
from pbr_jax.settings.rules import method_fault

_MOST_METHODS = 100  # of a list


def with_method(config: Config, method: str, *, keep_plan: bool = False) -> Config:
    """The same run by `method`, with those of its settings that mean something there.

    Settings of `plan` stay where the method is the same but for its suffixes, and everywhere with
    `keep_plan`: a comparison by that plan.
    """
    if method == config.method:
        return config
    same = method.partition("/")[0] == config.method.partition("/")[0]
    pruning, preset = config.pruning, methods.resolve(method).plan
    # A method that prunes nothing takes no keep, and one that draws no columns takes no policy.
    if not same and preset.keep == Keep(1.0):
        pruning = dataclasses.replace(pruning, keep=None)
    if not same and not preset.kind("linear").selects:
        pruning = dataclasses.replace(pruning, policy=None)
    plan = config.plan if same or keep_plan else Plan()
    return dataclasses.replace(config, method=method, pruning=pruning, plan=plan)


def fully_fine_tuned(config: Config) -> Config:
    """The same run without any pruning, to compare with."""
    pruning = Pruning(state=config.pruning.state)  # which parameters of 16 bits need
    return dataclasses.replace(config, method="full", pruning=pruning, plan=Plan())


def method_names(config: Config) -> list[str]:
    """Every method of the family, after `config.method` where that is another, without JointSPAR.

    JointSPAR saves time and no memory, so that it stays the run's own choice.
    """
    own = config.method.removesuffix(joint_spar_suffix(config.method))
    family = find(config.model.family)
    every = installed(family.methods if family.usual is None else family.usual)
    return [*every] if own in every else [own, *every]


def for_family(config: Config, names: Iterable[str]) -> list[str]:
    """Those of these methods by which the model can be trained, and usually is."""
    usual = find(config.model.family).usual
    fitting = [name for name in names if not family_faults(with_method(config, name))]
    return [name for name in fitting if usual is None or name in usual]


def candidates(config: Config) -> list[str]:
    """Every method, with the JointSPAR of `config.method`: what a memory budget chooses from."""
    suffix, names = joint_spar_suffix(config.method), method_names(config)
    takes = [name for name in names if not (suffix and methods.resolve(name).adapters)]
    return [name + suffix for name in takes]


def joint_spar_suffix(method: str) -> str:
    """`/js50` or the like at the end of a method's name, or nothing."""
    return "".join(method.partition("/js")[1:])


def split_methods(names: str) -> tuple[list[str], list[str]]:
    """Methods of a list with commas, each once, and a line for each that is none."""
    listed = list(dict.fromkeys(names.split(",")))
    if len(listed) > _MOST_METHODS:
        return [], [f"--methods: {len(listed)} names; at most {_MOST_METHODS} at a time"]
    return listed, [f"--methods {m}: {fault}" for m in listed if (fault := method_fault(m))]
