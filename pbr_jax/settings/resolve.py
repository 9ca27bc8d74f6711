"""What settings mean together: the method with its overrides, and the columns that it keeps."""

import dataclasses
from collections.abc import Mapping

from pbr_jax import methods
from pbr_jax.configs.common import Config
from pbr_jax.families import Architecture, find
from pbr_jax.methods import Method
from pbr_jax.plans import budget_for


def named_method(config: Config) -> Method:
    """The method named in `config` with its overrides, whatever the batch.

    Raises:
      ValueError: overrides do not go with the method; a line for each.
    """
    names = ("keep", "policy", "joint_spar", "attention_keep")
    pruning = {name: getattr(config.pruning, name) for name in names}
    return methods.resolve(config.method, **pruning, **vars(config.plan))


def resolve_method(config: Config) -> Method:
    """The method named in `config` with its overrides, as it runs the batch.

    A method's own chunks give way to a batch that they do not divide: the most that do, of no more
    than its own, take their place. Chunks that were asked for stay.

    Raises:
      ValueError: overrides do not go with the method; a line for each.
    """
    method, micro = named_method(config), examples_at_a_time(config)
    own = method.plan.batch_chunks
    if _chunks_are_given(config) or micro is None or micro % own == 0:
        return method
    chunks = max(number for number in range(1, own) if micro % number == 0)
    return dataclasses.replace(method, plan=dataclasses.replace(method.plan, batch_chunks=chunks))


def examples_at_a_time(config: Config) -> int | None:
    """Examples of a batch that are run at a time; None where accumulation does not divide it."""
    micro, rest = divmod(config.batch_size, config.optimizer.accumulation_steps)
    return None if rest else micro


def batch_divisor(config: Config) -> int:
    """What must divide the batch: accumulation's parts times the chunks that were asked for."""
    chunks = named_method(config).plan.batch_chunks if _chunks_are_given(config) else 1
    return config.optimizer.accumulation_steps * chunks


def chunk_notes(config: Config) -> list[str]:
    """A line if the batch runs in another number of chunks than the method's own."""
    own, used = (f(config).plan.batch_chunks for f in (named_method, resolve_method))
    if own == used:
        return []
    parts = f"{used} parts" if used > 1 else "1 part"
    return [
        f"method {config.method} runs {examples_at_a_time(config)} examples in {parts} in place of"
        f" {own}, which do not divide them"
    ]


def _chunks_are_given(config: Config) -> bool:
    return config.plan.batch_chunks is not None or "/chunks" in config.method


def architecture(config: Config) -> Architecture:
    """Sizes of the configured model.

    Raises:
      ValueError: they are incomplete.
    """
    return find(config.model.family).describe(config.model)


def column_budgets(config: Config, method: Method, sizes: Architecture) -> dict[str, int]:
    """K of each site where a policy chooses columns; not of those that keep all of them."""
    if not method.plan.kind("linear").selects:
        return {}
    # K of every site; where it is D, nothing is left to choose.
    budgets = {
        name: budget_for(method.plan.keep_at(name), site.columns, config.pruning.group_size)
        for name, site in sizes.sites.items()
    }
    return {name: k for name, k in budgets.items() if k < sizes.sites[name].columns}


def rate_factors(
    power: float, budgets: Mapping[str, int], sizes: Architecture
) -> dict[str, float] | None:
    """`{site: (K / D)^-power}`, factors on the rate of the kernels that are pruned; None if all 1.

    A row of such a kernel moves in K of D steps, and by these factors farther when it does.
    """
    if not (power and budgets):
        return None
    return {site: (k / sizes.sites[site].columns) ** -power for site, k in budgets.items()}


def rate_notes(config: Config) -> list[str]:
    """A line if kernels are trained at another rate than the rest."""
    sizes = architecture(config)
    budgets = column_budgets(config, resolve_method(config), sizes)
    factors = rate_factors(config.optimizer.rate_for_keep, budgets, sizes)
    if not factors:
        return []
    each = ", ".join(f"{site} {factor:.3g}" for site, factor in factors.items())
    rule = f"keep^-{config.optimizer.rate_for_keep:g} (optimizer.rate_for_keep)"
    return [
        f"learning rates of kernels of which a part is trained are multiplied by {rule}: {each}"
    ]
