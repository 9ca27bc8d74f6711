"""How images are prepared for public weights, as the files beside them say it: read and written.

Pixels in [0, 1] become `(pixel - mean) / std`. Hugging Face's processors and timm say this in words
of their own, which `preparation_of` translates.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.configs.common import MEAN, STD, Rule
from pbr_jax.weights.beside import ARCHITECTURE, CONFIG, folder_of, read_object

PREPROCESSOR = "preprocessor_config.json"
# A file, and the object in it that speaks of images, where it may also speak of other things.
_FILES = (
    (PREPROCESSOR, ("image_processor", "pretrained_cfg")),
    ("processor_config.json", ("image_processor",)),
    (CONFIG, ("pretrained_cfg",)),
    (ARCHITECTURE, ()),
)
_BILINEAR, _RESIZED = 2, "images are resized bilinearly"
_HERE = {  # a key -> what evaluation has for it here, and in words
    "resample": (_BILINEAR, _RESIZED),
    "interpolation": ("bilinear", _RESIZED),
    "do_center_crop": (False, "whole images are resized"),
    "do_flip_channel_order": (False, "channels are red, green and blue"),
    "rescale_offset": (False, "pixels are not shifted"),
}


class Normalization(NamedTuple):
    """Mean and deviation of pixels in [0, 1]: one number each, or one for every channel."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


class Preparation(NamedTuple):
    """What a file beside weights says of their images."""

    file: Path
    normalization: Normalization
    side: int | None  # of the square that images are resized to, None where it does not say
    notes: list[str]  # what it says and is not done here


def preparation_of(path: Path) -> Preparation | None:
    """What lies beside the weights at `path`, a file or a directory; None where nothing does.

    Raises:
      ValueError: it is damaged, or what it says has no meaning; names the file and the key.
    """
    folder = folder_of(path)
    for name, sections in _FILES:
        file = folder / name
        content = read_object(file)
        inner = next((content[s] for s in sections if isinstance(content.get(s), dict)), None)
        if inner is not None or (content and name == PREPROCESSOR) or "image_mean" in content:
            return _preparation(file, content if inner is None else inner)
    return None


def written(normalization: Normalization, side: int, channels: int) -> dict[str, Any]:
    """The content of `PREPROCESSOR`: what evaluation does to an image of 8 bits here."""
    mean, std = (list(n) * (channels // len(n)) for n in normalization)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _preparation(file: Path, said: Mapping[str, Any]) -> Preparation:
    # Theirs is `(255 * pixel * factor - mean) / std`, with steps that may be left out.
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1
    if not _is_number(factor) or factor <= 0:
        raise _fault(file, "rescale_factor", factor, "must be a number above 0")
    scale = 1.0 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    if said.get("do_normalize", True):
        mean = _numbers(file, said, ("image_mean", "mean"), scale, MEAN)
        std = _numbers(file, said, ("image_std", "std"), scale, STD)
    else:
        mean, std = (0.0,), (1 / scale,)
        if not STD.holds(std[0]):
            raise _fault(
                file, "rescale_factor", factor, "leaves nothing of pixels, or far too much"
            )
    notes = [
        f"{file}: {key} = {said[key]}; here {words}"
        for key, (value, words) in _HERE.items()
        if said.get(key, value) not in (value, None)
    ]
    return Preparation(file, Normalization(mean, std), _side(said), notes)


def _numbers(
    file: Path, said: Mapping[str, Any], keys: tuple[str, ...], scale: float, rule: Rule
) -> tuple[float, ...]:
    """The numbers under the first of `keys` that is there, for pixels in [0, 1]; 0.5 without."""
    key = next((key for key in keys if said.get(key) is not None), None)
    if key is None:
        return (0.5,)
    values = said[key] if isinstance(said[key], list) else [said[key]]
    if not values or not all(map(_is_number, values)):
        raise _fault(file, key, said[key], "must be a number, or a list of one for each channel")
    scaled = tuple(value / scale for value in values)
    if not all(map(rule.holds, scaled)):
        raise _fault(file, key, said[key], f"for pixels in [0, 1] it {rule.text.partition(',')[0]}")
    return scaled


def _is_number(value: Any) -> bool:
    # NaN and what no float can hold are no numbers here.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _side(said: Mapping[str, Any]) -> int | None:
    """Of `size`, a number or an object of numbers, or of timm's `input_size`, [C, H, W]."""
    size = said.get("size", said.get("input_size"))
    sides = list(size.values()) if isinstance(size, dict) else size
    if isinstance(sides, list) and sides:
        sides = sides[-1] if all(side == sides[-1] for side in sides[-2:]) else None
    return sides if type(sides) is int else None


def _fault(file: Path, key: str, value: Any, rule: str) -> ValueError:
    return ValueError(
        f"{file}: {key} = {reprlib.repr(value)}: {rule}; correct it, or set data.mean and"
        " data.std, which go first"
    )
