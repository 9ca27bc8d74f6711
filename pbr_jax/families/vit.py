"""Vision transformers (Dosovitskiy et al., 2021)."""

from pbr_jax.configs.common import SIDE, Model
from pbr_jax.families import transformer
from pbr_jax.families.record import Family, near_multiples


def num_tokens(model: Model) -> int:
    """Patches of an image, and the class token where the head reads it."""
    return (model.image_size // model.patch) ** 2 + (model.pool == "cls")


def _faults(model: Model) -> list[str]:
    side, patch = model.image_size, model.patch
    fault = (
        f"model.image_size = {side}: not divisible by model.patch = {patch}; "
        f"the nearest that is: {near_multiples(side, patch, SIDE)}"
    )
    return [fault] if side % patch else []


FAMILY = Family(
    name="vit",
    title="ViT",
    reads="image",
    settings=("patch", "image_size", "channels", "pool"),
    describe=lambda model: transformer.describe(model, num_tokens(model)),
    build="pbr_jax.models.vit:build",
    faults=_faults,
    exact="pbr_jax.models.exact:vit_logits",
    published="pbr_jax.weights.vit:PUBLISHED",
)
