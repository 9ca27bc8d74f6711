"""What settings mean together: the method with its overrides, and the columns that it keeps."""

from pbr_jax import methods
from pbr_jax.configs.common import Config
from pbr_jax.families import Architecture, find
from pbr_jax.methods import Method
from pbr_jax.plans import budget_for


def resolve_method(config: Config) -> Method:
    """The method named in `config` with its overrides.

    Raises:
      ValueError: overrides do not go with the method; a line for each.
    """
    names = ("keep", "policy", "joint_spar", "attention_keep")
    pruning = {name: getattr(config.pruning, name) for name in names}
    return methods.resolve(config.method, **pruning, **vars(config.plan))


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
