"""Families of models by name; importing them imports neither JAX nor a model."""

from pbr_jax.families import bert, vit
from pbr_jax.families.record import BIAS, KERNEL, Architecture, Attention, Family, Site, late

__all__ = [
    "BIAS",
    "FAMILIES",
    "KERNEL",
    "Architecture",
    "Attention",
    "Family",
    "Site",
    "find",
    "late",
]

FAMILIES: dict[str, Family] = {family.name: family for family in (vit.FAMILY, bert.FAMILY)}


def find(name: str) -> Family:
    """The family of that name, or the one at a place "module:NAME" of one's own.

    Raises:
      ValueError: there is none.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    # Else a place, where a user's own module may fail as it is imported.
    if ":" not in name:
        raise ValueError(
            f"must be {', '.join(FAMILIES)}, or the place of a Family of your own, such as"
            " my_package.my_module:FAMILY"
        )
    try:
        family = late(name)
    except (Exception, SystemExit) as error:  # whatever a module does as it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"cannot be imported ({why}); is its folder on PYTHONPATH?") from error
    if not isinstance(family, Family):
        raise ValueError(f"is a {type(family).__name__}; must be a pbr_jax.families.Family")
    return family
