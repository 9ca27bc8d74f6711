"""What batches of images, of texts and of language look like to a model."""

from typing import Literal

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Model

TEXT = ("tokens", "token_types", "lengths")
LANGUAGE = ("tokens", "segments", "positions")


def image_specs(batch_size: int, side: int, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Images, float32 `[B, side, side, channels]`."""
    return {"image": jax.ShapeDtypeStruct((batch_size, side, side, channels), jnp.float32)}


def text_specs(batch_size: int, max_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Texts of the most tokens: `tokens`, `token_types` int32 `[B, N]`, and `lengths` int32 `[B]`.

    Tokens past a row's length are padding.
    """
    row = jax.ShapeDtypeStruct((batch_size, max_length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return dict(zip(TEXT, (row, row, lengths), strict=True))


def language_specs(batch_size: int, max_length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Packed rows: `tokens`, `segments` and `positions`, int32 `[B, N]` each.

    Texts of a row are segments 1, 2, ..., padding is segment 0; positions restart with each.
    """
    row = jax.ShapeDtypeStruct((batch_size, max_length), jnp.int32)
    return dict.fromkeys(LANGUAGE, row)


def input_specs(
    kind: Literal["image", "text", "language"], model: Model, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of a data set of this kind, with the sizes of `model`."""
    if kind == "image":
        return image_specs(batch_size, model.image_size, model.channels)
    specs = language_specs if kind == "language" else text_specs
    return specs(batch_size, model.max_length)
