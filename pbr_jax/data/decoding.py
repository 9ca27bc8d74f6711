"""Image files to pixels: one way for training, evaluation, prediction and checks.

An image is seen as its camera held it, by the orientation that its EXIF notes; transparent pixels
show white, as on a page; of an animated image the first frame is taken.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from pbr_jax.data.augment import random_box
from pbr_jax.reading import foreign

# As Pillow's own limit, of which it only warns up to twice as many.
MAX_PIXELS = 89_478_485
# Those that are bounded by their header. Pillow knows more, and starts Ghostscript for PostScript.
FORMATS = ("BMP", "GIF", "PNG", "TIFF", "WEBP")
warnings.simplefilter("error", Image.DecompressionBombWarning)
_TOO_LARGE = (
    f"more than {MAX_PIXELS // 10**6} million pixels, which would fill the memory; make it smaller,"
    " or a baseline JPEG, which is decoded at a part of its size and may have four times as many"
)
_Turn = Image.Transpose
# EXIF's orientation to what undoes it; 1 is upright.
_TURNS = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
_SIDEWAYS = {_Turn.TRANSPOSE, _Turn.ROTATE_270, _Turn.TRANSVERSE, _Turn.ROTATE_90}


class _Fault(Exception):
    """What is wrong with an image, in words of ours."""


def decode(
    content: bytes, name: str, mode: str, size: int, generator: np.random.Generator | None = None
) -> Image.Image:
    """The whole image, or with a generator a random part of it, at `size` x `size` pixels.

    A JPEG whose part is more than twice as large is decoded at half the size, a quarter or an
    eighth, which is much faster.

    Raises:
      ValueError: the file is no image, is cut short, has more than 8 bits per channel, or has too
        many pixels; names it.
    """
    with _naming(name):
        file = _open(content)
        turn = _turn(file)
        width, height = _seen(file, turn)
        # Only a part has to be decoded well, and only at the size at which it is seen.
        box = random_box(width, height, generator) if generator else (0, 0, width, height)
        scale = size / min(box[2] - box[0], box[3] - box[1])
        if scale < 0.5:
            file.draft(mode, (int(file.width * scale), int(file.height * scale)))
        image = _pixels(file, turn, mode)
    # The box is in pixels of the file; `draft` may have decoded a smaller image.
    x, y = image.width / width, image.height / height
    left, top, right, bottom = box
    part = (round(left * x), round(top * y), round(right * x), round(bottom * y))
    if part != (0, 0, *image.size):
        image = image.crop(part)
    return image.resize((size, size), Image.Resampling.BILINEAR)


def decoded_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image as it is seen; raises `ValueError` where `decode` would."""
    with _naming(name):
        file = _open(content)
        turn = _turn(file)
        size = _seen(file, turn)
        file.draft("RGB", (1, 1))  # reads all of a JPEG all the same
        _pixels(file, turn, "RGB")
    return size


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken file can make Pillow raise almost anything
        raise ValueError(f"{name}: not a readable image ({_cause(error)})") from error


def _cause(error: Exception) -> str:
    """What an error says about a file; the same each time."""
    if isinstance(error, _Fault):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _TOO_LARGE
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
    return f"{'cut short' if 'truncated' in text.lower() else 'damaged'}: {text}"


def _open(content: bytes) -> ImageFile.ImageFile:
    """Opens an image of which nothing is decoded yet."""
    if content.startswith(b"\xff\xd8\xff"):
        # Image.open would refuse sizes that `draft` makes small.
        file: ImageFile.ImageFile = JpegImageFile(io.BytesIO(content))
        # Of a progressive one all of the file is held.
        most = MAX_PIXELS if file.info.get("progressive") else 4 * MAX_PIXELS
    else:
        try:
            file, most = Image.open(io.BytesIO(content), formats=FORMATS), MAX_PIXELS
        except UnidentifiedImageError as error:
            raise _Fault(_instead(content)) from error
    if file.width * file.height > most:
        raise _Fault(_TOO_LARGE)
    if file.mode.startswith(("I", "F")):
        raise _Fault(f"its pixels have more than 8 bits per channel, mode {file.mode}")
    return file


def _instead(content: bytes) -> str:
    """What a file is whose content Pillow does not know."""
    start = content[:512].lstrip().lower()
    if b"<svg" in start:
        return "an SVG drawing; convert it to PNG"
    if content[4:8] == b"ftyp":
        return "a HEIC or AVIF photo, or a video; convert it to JPEG or PNG"
    return foreign(start) or "not an image, by its content"


def _turn(file: ImageFile.ImageFile) -> Image.Transpose | None:
    """What makes an image upright; None for one that is, or that has no sound note of it."""
    # In other files notes may stand behind the pixels, or Pillow follows them when it loads these.
    if not isinstance(file, JpegImageFile):
        file.load()
    try:
        return _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged notes do not make an image unusable
        return None


def _seen(file: ImageFile.ImageFile, turn: Image.Transpose | None) -> tuple[int, int]:
    """Width and height once it is upright."""
    return (file.height, file.width) if turn in _SIDEWAYS else (file.width, file.height)


def _pixels(file: ImageFile.ImageFile, turn: Image.Transpose | None, mode: str) -> Image.Image:
    """Decodes all pixels: upright, in `mode`, and white where they are transparent."""
    file.load()
    image: Image.Image = file
    if file.has_transparency_data:
        image = file.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif file.mode == "P":
        # A palette may be of colours with transparency, which "RGB" alone has no place for.
        image = file.convert("RGBA")
    image = image if image.mode == mode else image.convert(mode)  # which would be a copy
    return image if turn is None else image.transpose(turn)
