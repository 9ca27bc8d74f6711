"""Image files to pixels: what is seen, what is refused, and in which words."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from small_data import image_bytes

from pbr_jax.data.decoding import decode, decoded_size
from pbr_jax.data.image_files import read_image

BILINEAR = Image.Resampling.BILINEAR


def saved(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content, mode="RGB", size=16, generator=None):
    return np.asarray(decode(content, "x", mode, size, generator))


def opened(content) -> Image.Image:
    return Image.open(io.BytesIO(content))


def turned(orientation, size=(40, 30), kind="JPEG") -> bytes:
    notes = Image.Exif()
    notes[0x0112] = orientation
    return saved(opened(image_bytes(size=size)), kind, exif=notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_seen_as_their_camera_held_them(orientation):
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        content = turned(orientation, kind=kind)
        upright = ImageOps.exif_transpose(opened(content))
        assert decoded_size(content, "x") == upright.size
        expected = upright.convert("RGB").resize((16, 16), BILINEAR)
        np.testing.assert_array_equal(pixels(content), np.asarray(expected))
    # Where a JPEG is decoded at a part of its size, too, and of a random part.
    content = turned(orientation, (600, 250))
    upright = ImageOps.exif_transpose(opened(content))
    expected = np.asarray(upright.resize((16, 16), BILINEAR), float)
    assert abs(pixels(content) - expected).mean() < 4
    plain = saved(upright, quality=100, kind="PNG")
    part, same = (pixels(c, "RGB", 16, np.random.default_rng(3)) for c in (content, plain))
    assert abs(part.astype(float) - same).mean() < 10


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the notes
def test_damaged_notes_of_a_camera_do_not_matter():
    image = opened(image_bytes())
    for notes in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12\0\3", b""):
        content = saved(image, "JPEG", exif=notes, quality=95)
        assert decoded_size(content, "x") == (40, 30)
        plain = saved(image, "JPEG", quality=95)
        np.testing.assert_array_equal(pixels(content), pixels(plain))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "L", "1", "P")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "CMYK"),
        ("WEBP", "RGB"),
    ],
)
def test_images_that_are_upright_and_opaque_are_seen_as_pillow_has_them(kind, mode):
    content = image_bytes(kind, mode=mode)
    for wanted in ("RGB", "L"):
        whole = opened(content)
        whole = whole.convert("RGBA") if whole.mode == "P" else whole
        expected = np.asarray(whole.convert(wanted).resize((16, 16), BILINEAR))
        np.testing.assert_array_equal(pixels(content, wanted), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_changes_nothing(mode):
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    content = saved(ramp.convert(mode))
    np.testing.assert_array_equal(pixels(content, "L"), np.asarray(ramp))


def test_transparent_pixels_are_white_and_half_of_them_lighter():
    hidden = np.full((4, 4, 4), (200, 0, 0, 0), np.uint8)
    assert (pixels(saved(Image.fromarray(hidden)), size=4) == 255).all()
    hidden[..., 3] = 128
    assert abs(pixels(saved(Image.fromarray(hidden)), size=4)[0, 0] - [227.0, 127, 127]).max() < 1
    grey = Image.fromarray(np.zeros((4, 4, 2), np.uint8), "LA")
    assert (pixels(saved(grey), "L", 4) == 255).all()
    # One colour of a palette, or of plain pixels, may stand for transparency.
    for mode in ("P", "L", "RGB"):
        key = (0, 0, 0) if mode == "RGB" else 0
        content = saved(Image.new(mode, (4, 4)), transparency=key)
        assert (pixels(content, size=4) == 255).all(), mode
    content = saved(Image.new("P", (4, 4)), "GIF", transparency=0)
    assert (pixels(content, size=4) == 255).all()


def test_of_an_animated_image_the_first_frame_is_seen():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(content, "L", 4) == 10).all()


def png_of_size(width, height) -> bytes:
    """The beginning of a PNG that says it has so many pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def jpeg_of_size(width, height, **options) -> bytes:
    """A small JPEG whose header says that it has so many pixels."""
    content = bytearray(saved(opened(image_bytes()), "JPEG", **options))
    start = content.index(b"\xff\xc2" if options else b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png_of_size(13300, 13300),
        png_of_size(20000, 20000),
        png_of_size(2**31 - 1, 2**31 - 1),
        jpeg_of_size(12000, 12000, progressive=True),
        jpeg_of_size(65000, 65000),
    ],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(content):
    message = "x: not a readable image \\(more than 89 million pixels, .* make it smaller, or a "
    for look in (pixels, lambda content: decoded_size(content, "x")):
        with pytest.raises(ValueError, match=message):
            look(content)


def test_a_jpeg_may_have_more_for_it_is_decoded_at_a_part_of_its_size():
    assert decoded_size(jpeg_of_size(12000, 12000), "x") == (12000, 12000)


def test_a_file_of_more_bytes_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "x.bmp"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)
    with pytest.raises(ValueError, match=r"x\.bmp: has 536870913 bytes; at most 536870912"):
        read_image(str(path))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>", "a web page; download the file itself"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "an SVG drawing; convert it to PNG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; `git lfs pull` "),
        (b"\0\0\0\x18ftypheic" + bytes(50), "a HEIC or AVIF photo, or a video; convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image, by its content"),
        (b"no image", "not an image, by its content"),
        (image_bytes()[:-200], "cut short: image file is truncated"),
        (image_bytes("PNG")[:-200], "cut short: "),
        (b"\xff\xd8\xff\xe0", "damaged: "),
        (image_bytes("PNG")[:50] + bytes(300), "damaged: "),
    ],
)
def test_the_message_says_what_the_file_is_and_is_the_same_each_time(content, cause):
    words = set()
    for look in (pixels, pixels, lambda content: decoded_size(content, "x")):
        with pytest.raises(ValueError, match="x: not a readable image ") as raised:
            look(content)
        words.add(str(raised.value))
    (text,) = words
    assert text.startswith(f"x: not a readable image ({cause}") and "object at" not in text


REAL = [
    *(image_bytes(kind, (12, 9)) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")),
    turned(6, (12, 9)),
    saved(Image.new("LA", (5, 4))),
]
MAGIC = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"RIFF1234WEBPVP8 ",
    b"<",
]


@st.composite
def spoilt(draw):
    """A real file, cut short, with other bytes here and there."""
    content = bytearray(draw(st.sampled_from(REAL)))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    for _ in range(draw(st.integers(0, 4)) if content else 0):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of all that it reads over
@settings(max_examples=150)
@given(spoilt() | st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary()) | st.binary())
def test_any_bytes_are_pixels_or_an_error_that_names_the_file(content):
    found = []
    for look in (lambda: decode(content, "x", "RGB", 4), lambda: decoded_size(content, "x")):
        try:
            look()
            found.append("")
        except ValueError as error:
            found.append(str(error))
    # What is checked is what training would see.
    assert bool(found[0]) == bool(found[1])
    for text in filter(None, found):
        assert text.startswith("x: not a readable image (") and " at 0x" not in text
