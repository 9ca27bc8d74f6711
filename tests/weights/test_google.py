"""Google's ViT files: the same logits here, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import param_shapes, random_params, vit, words
from measures import assert_close
from published import ATTENTION, WIDTH, google_vit, google_vit_logits
from scipy import ndimage

from pbr_jax import weights as public

POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.fixture
def write(tmp_path):
    """`arrays -> path` of an `.npz` with them."""

    def write(arrays):
        path = tmp_path / "weights.npz"
        np.savez(path, **arrays)
        return path

    return write


def load(path, model=None):
    model = vit() if model is None else model
    return public.load(public.read(path), *words(model), random_params(model, 7))


def save(path, params, model, *dtype):
    public.save_npz(path, "vit", params, words(model)[1], *dtype)


def test_a_published_file_computes_its_own_logits(write):
    arrays = google_vit()
    params, notes = load(write(arrays))
    assert notes == []
    images = np.random.default_rng(1).standard_normal((3, 4, 4, 3))
    apply = jax.jit(vit().apply)
    actual = apply({"params": params}, jnp.asarray(images, jnp.float32))
    assert_close(actual, google_vit_logits(arrays, images), 2e-6)


def test_shapes_and_dtypes_are_those_of_the_model(write):
    arrays = {name: array.astype(np.float16) for name, array in google_vit().items()}
    params, _ = load(write(arrays))
    expected = jax.tree.map(lambda s: (s.shape, np.dtype("float32")), param_shapes(vit()))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == expected


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_saving_and_loading_returns_the_same_bits(tmp_path, pool, channels):
    model = vit(pool=pool, channels=channels)
    params = random_params(model)
    save(tmp_path / "mine.npz", params, model)
    again, notes = load(tmp_path / "mine.npz", model)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_is_saved_has_the_published_names(write, tmp_path):
    arrays = google_vit()
    params, _ = load(write(arrays))
    save(tmp_path / "again.npz", params, vit())
    with np.load(tmp_path / "again.npz") as file:
        assert set(file.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)


def test_half_precision_files_are_half_as_large(tmp_path):
    params = random_params(vit())
    save(tmp_path / "half.npz", params, vit(), np.float16)
    with np.load(tmp_path / "half.npz") as file:
        assert {file[name].dtype for name in file.files} == {np.dtype("float16")}
    loaded, _ = load(tmp_path / "half.npz")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), loaded, params)


@pytest.mark.parametrize("classes", [21843, None])
def test_another_head_starts_afresh_and_is_noted(write, classes):
    arrays = google_vit(classes=classes or 5)
    if classes is None:
        del arrays["head/kernel"], arrays["head/bias"]
    params, notes = load(write(arrays))
    found = "no head" if classes is None else f"a head of {classes} classes"
    assert notes == [f"{write(arrays)}: {found}; the head of 5 classes starts afresh"]
    jax.tree.map(np.testing.assert_array_equal, params["head"], random_params(vit(), 7)["head"])
    np.testing.assert_array_equal(params["cls"], arrays["cls"])


def test_the_layer_before_the_head_of_pretraining_is_named_and_not_used(write):
    arrays = google_vit()
    more = {"pre_logits/kernel": np.zeros((16, 16)), "pre_logits/bias": np.zeros(16)}
    params, notes = load(write(arrays | more))
    assert "pre_logits" not in params
    assert len(notes) == 1 and "not used: pre_logits/bias, pre_logits/kernel (the re" in notes[0]


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 2), (5, 4), (1, 3), (3, 1)])
def test_positions_are_resized_as_the_reference_does(write, pool, old, new):
    arrays = google_vit(grid=old)
    first, grid = np.split(arrays[POSITIONS], [1], axis=1)
    if pool == "mean":
        del arrays["cls"]
        arrays[POSITIONS] = grid
    params, notes = load(write(arrays), vit(pool=pool, image_size=2 * new))
    zoom = (new / old, new / old, 1)
    expected = ndimage.zoom(grid.reshape(old, old, WIDTH), zoom, order=1).reshape(1, -1, WIDTH)
    if pool == "cls":
        expected = np.concatenate([first, expected], axis=1)
    np.testing.assert_allclose(params["pos_embedding"], expected, atol=1e-6)
    assert [note.partition(": ")[2] for note in notes] == [
        f"positions resized from a grid of {old} x {old} to {new} x {new}"
    ]


def test_a_class_token_can_be_left_out(write):
    arrays = google_vit()
    params, notes = load(write(arrays), vit(pool="mean"))
    assert "cls" not in params
    np.testing.assert_array_equal(params["pos_embedding"], arrays[POSITIONS][:, 1:])
    assert [note.partition(": ")[2][:31] for note in notes] == ["the class token is not used: th"]


def test_all_that_does_not_fit_is_listed_at_once(write):
    arrays = google_vit()
    for block in range(2):
        del arrays[f"Transformer/encoderblock_{block}/{ATTENTION}/out/bias"]
    del arrays["cls"], arrays["Transformer/encoderblock_1/LayerNorm_0/bias"]
    arrays["Transformer/encoderblock_2/LayerNorm_0/bias"] = np.zeros(WIDTH, np.float32)
    arrays[POSITIONS] = np.zeros((1, 197, 8), np.float32)
    arrays["embedding/bias"][3] = np.nan
    with pytest.raises(ValueError, match="do not fit the model") as raised:
        load(write(arrays))
    assert str(raised.value).splitlines()[1:] == [
        "  missing: Transformer/encoderblock_*/MultiHeadDotProductAttention_1/out/bias of blocks"
        " 0 to 1",
        "  missing: Transformer/encoderblock_1/LayerNorm_0/bias",
        "  missing: cls",
        "  not in the model: Transformer/encoderblock_2/LayerNorm_0/bias",
        f"  {POSITIONS} is (1, 197, 8), the model wants (1, 5, 16)",
        "  embedding/bias has values that are not finite in float32",
    ]


@pytest.mark.parametrize("name", ["Transformer/encoder_norm/more", "embedding/bias"])
def test_each_fault_alone_is_one(write, name):
    arrays = google_vit() | {name: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=f"do not fit the model:\n.*{name}[^\n]*$"):
        load(write(arrays))


def test_a_kernel_without_its_bias_is_no_head(write):
    arrays = google_vit()
    del arrays["head/kernel"]
    with pytest.raises(ValueError, match="missing: head/kernel"):
        load(write(arrays))


def test_a_grid_that_is_not_square_is_not_resized(write):
    arrays = google_vit() | {POSITIONS: np.zeros((1, 7, WIDTH), np.float32)}
    with pytest.raises(ValueError, match="6 patches are no square grid"):
        load(write(arrays))
