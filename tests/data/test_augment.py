"""The affine augmentation against SciPy and against its own limits."""

import numpy as np
import pytest
from scipy import ndimage

from pbr_jax.data.augment import affine, sample_bilinear


def images(num=5, height=8, width=7, channels=2):
    return np.random.default_rng(0).random((num, height, width, channels), np.float32)


def generators(x, seed=0):
    return [np.random.default_rng((seed, place)) for place in range(len(x))]


def test_sampling_agrees_with_scipy():
    x = images()
    generator = np.random.default_rng(1)
    rows = generator.uniform(-3, 11, x.shape[:3])
    columns = generator.uniform(-3, 10, x.shape[:3])
    actual = sample_bilinear(x, rows, columns)
    assert actual.dtype == np.float32
    for b in range(len(x)):
        for c in range(x.shape[3]):
            padded = np.pad(x[b, :, :, c], 5)  # SciPy's own edges are handled otherwise
            at = [rows[b] + 5, columns[b] + 5]
            expected = ndimage.map_coordinates(padded, at, order=1, mode="constant")
            np.testing.assert_allclose(actual[b, :, :, c], expected, atol=1e-5)


def test_no_change_is_no_change():
    x = images()
    y = affine(x, generators(x, 0), shift=0, degrees=0, scale=0)
    np.testing.assert_array_equal(y, x)


def test_each_image_is_changed_in_its_own_way():
    x = np.repeat(images(1), 6, axis=0)
    y = affine(x, generators(x, 0))
    assert y.shape == x.shape and y.dtype == np.float32
    assert len({image.tobytes() for image in y}) == 6
    assert y.min() >= 0 and y.max() <= 1


def test_the_generators_decide_each_for_its_image():
    x = images()
    a, b, c = (affine(x, generators(x, seed)) for seed in (3, 3, 4))
    assert a.tobytes() == b.tobytes() != c.tobytes()
    assert affine(x[2:4], generators(x, 3)[2:4]).tobytes() == a[2:4].tobytes()


@pytest.mark.parametrize(
    ("limits", "farthest"),
    [({"shift": 2, "degrees": 0, "scale": 0}, 2), ({"shift": 0, "degrees": 0, "scale": 0.5}, 1.7)],
)
def test_a_blob_moves_no_farther_than_allowed(limits, farthest):
    x = np.zeros((200, 15, 15, 1), np.float32)
    x[:, 7, 10] = 1  # three pixels right of the centre
    y = affine(x, generators(x, 0), **limits)[..., 0]
    rows = (y.sum(2) * np.arange(15)).sum(1) / y.sum((1, 2))
    columns = (y.sum(1) * np.arange(15)).sum(1) / y.sum((1, 2))
    moved = np.maximum(abs(rows - 7), abs(columns - 10))
    assert 0.5 * farthest < moved.max() <= farthest + 1e-4


def test_rotation_turns_about_the_centre():
    """A pixel three to the right of the centre stays three away from it, at most `degrees` off."""
    x = np.zeros((200, 15, 15, 1), np.float32)
    x[:, 7, 10] = 1
    y = affine(x, generators(x, 0), shift=0, degrees=90, scale=0)[..., 0]
    row = (y.sum(2) * np.arange(15)).sum(1) / y.sum((1, 2)) - 7
    column = (y.sum(1) * np.arange(15)).sum(1) / y.sum((1, 2)) - 7
    np.testing.assert_allclose(np.hypot(row, column), 3, atol=0.3)
    angle = np.rad2deg(np.arctan2(row, column))
    assert angle.min() < -60 and angle.max() > 60 and abs(angle).max() < 92


@pytest.mark.parametrize("arguments", [{"shift": -1}, {"degrees": -1}, {"scale": 1}, {"scale": -1}])
def test_wrong_arguments_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        affine(images(), generators(images()), **arguments)
