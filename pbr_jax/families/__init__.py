"""Families of models by name; importing them imports neither JAX nor a model."""

from pbr_jax.families import bert, decoder, own, vit
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

FAMILIES: dict[str, Family] = {
    family.name: family for family in (vit.FAMILY, bert.FAMILY, decoder.FAMILY)
}


def find(name: str) -> Family:
    """The family of that name, or what is at a place "module:NAME" of one's own.

    That is a `Family`, or a function that makes a Flax module (`pbr_jax.families.own`).

    Raises:
      ValueError: there is none.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    # Else a place, where a user's own module may fail as it is imported.
    if ":" not in name:
        raise ValueError(
            f"must be {', '.join(FAMILIES)}, or the place of a function of your own that makes a"
            " Flax module, such as my_package.my_module:make"
        )
    try:
        found = late(name)
    except (Exception, SystemExit) as error:  # whatever a module does as it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"cannot be imported ({why}); is its folder on PYTHONPATH?") from error
    if isinstance(found, Family):
        return found
    if not callable(found):
        raise ValueError(
            f"is a {type(found).__name__}; must be a function that makes a Flax module, or a"
            " pbr_jax.families.Family"
        )
    return own.family(name)
