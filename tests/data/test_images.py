"""Images of every size and kind become the arrays that the model sees."""

import io

import numpy as np
import pytest
from PIL import Image

from pbr_jax.data import ImageInputs
from pbr_jax.data.augment import RATIO, SCALE, random_box
from pbr_jax.data.records import ImageRecord

DIGIT = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)


def record(image, label=3):
    return ImageRecord(image, label, "somewhere")


def image_of(inputs, *images, generator=None):
    generators = generator and [generator] * len(images)
    return inputs([record(image) for image in images], generators)["image"]


def test_small_images_are_enlarged_and_grey_becomes_colour():
    batch = ImageInputs(224, 3)([record(DIGIT), record(DIGIT[::-1])])
    assert batch["image"].shape == (2, 224, 224, 3) and batch["image"].dtype == np.float32
    assert batch["label"].tolist() == [3, 3] and batch["label"].dtype == np.int32
    assert (np.ptp(batch["image"], axis=-1) == 0).all()
    # Pillow rounds bytes to bytes after rows and again after columns; floats are not rounded.
    expected = Image.fromarray(DIGIT[..., 0]).resize((224, 224), Image.Resampling.BILINEAR)
    got = (batch["image"][0, ..., 0] + 1) * 127.5
    np.testing.assert_allclose(got, np.asarray(expected), atol=1)
    assert (
        image_of(ImageInputs(8, 3), DIGIT).tobytes()
        == np.repeat(image_of(ImageInputs(8, 1), DIGIT), 3, axis=-1).tobytes()
    )


def test_affine_changes_come_before_the_resizing():
    inputs = ImageInputs(32, 1, "affine")
    plain = image_of(inputs, DIGIT)
    assert plain.tobytes() == image_of(ImageInputs(32, 1), DIGIT).tobytes()
    moved = image_of(inputs, DIGIT, generator=np.random.default_rng(0))
    assert abs(moved - plain).max() > 0.1


def test_colours_do_not_become_grey_by_themselves():
    with pytest.raises(ValueError, match=r"model\.channels = 1: somewhere has 3 channels"):
        image_of(ImageInputs(8, 1), np.repeat(DIGIT, 3, axis=-1))


def test_random_boxes_have_the_promised_sizes():
    generator = np.random.default_rng(0)
    boxes = np.array([random_box(200, 300, generator) for _ in range(2000)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [200, 300]).all()
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, ratio = w * h / 60000, w / h
    assert share.min() > SCALE[0] * 0.97 and share.max() <= SCALE[1]
    assert share.min() < 0.07 and share.max() > 0.85
    assert ratio.min() > RATIO[0] * 0.97 and ratio.max() < RATIO[1] * 1.03
    assert boxes[:, 0].min() == boxes[:, 1].min() == 0
    assert boxes[:, 2].max() == 200 and boxes[:, 3].max() == 300


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 2), (498, 0, 501, 2)), ((2, 1000), (0, 498, 2, 501)), ((1, 1), None)]
)
def test_boxes_of_very_long_images_are_centred(size, box):
    generator = np.random.default_rng(0)
    found = {random_box(*size, generator) for _ in range(50)}
    assert (box or (0, 0, 1, 1)) in found
    for left, top, right, bottom in found:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@pytest.mark.parametrize("image", [DIGIT[:4, :4], np.repeat(DIGIT[:4, :4], 3, axis=-1)])
def test_mean_and_deviation_are_of_each_channel_or_of_all(image):
    """In arrays, and in files of the same pixels; 0.5 for all as without."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "PNG")
    pixels = np.broadcast_to(image / 255, (4, 4, 3))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for own in ((mean, std), (mean, (0.25,)), ((0.1,), std), ((0.1,), (0.9,))):
        for kind in (image, file.getvalue()):
            found = image_of(ImageInputs(4, 3, "off", *own), kind)[0]
            np.testing.assert_allclose(found, (pixels - own[0]) / own[1], atol=3e-6)
    for kind in (image, file.getvalue()):
        plain = image_of(ImageInputs(4, 3), kind)
        each = image_of(ImageInputs(4, 3, "off", (0.5,) * 3, (0.5,) * 3), kind)
        assert each.tobytes() == plain.tobytes()
        byte = np.broadcast_to(image, (4, 4, 3)).astype(np.float32)
        wanted = (
            byte / np.float32(127.5) - 1 if isinstance(kind, bytes) else (byte / 255 - 0.5) / 0.5
        )
        assert plain[0].tobytes() == wanted.astype(np.float32).tobytes()
