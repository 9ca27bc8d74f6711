"""Published ViT weights: a file in Google's layout computes the same logits here, and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import param_shapes, quick_jit, random_params, vit
from measures import assert_close
from scipy import special

from pbr_jax.checkpoints import vit_npz

WIDTH, HEADS, MLP, PATCH, BLOCKS, CLASSES = 16, 2, 32, 2, 2, 5
ATTENTION = "MultiHeadDotProductAttention_1"


def published(pre_logits=False, classes=CLASSES, seed=0):
    """Arrays under the names and in the shapes of `ViT-B_16.npz`, for a small model."""
    head = WIDTH // HEADS
    shapes = {
        "cls": (1, 1, WIDTH),
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/posembed_input/pos_embedding": (1, 5, WIDTH),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, classes),
        "head/bias": (classes,),
    }
    for i in range(BLOCKS):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
        for part in ("query", "key", "value"):
            shapes[f"{block}/{ATTENTION}/{part}/kernel"] = (WIDTH, HEADS, head)
            shapes[f"{block}/{ATTENTION}/{part}/bias"] = (HEADS, head)
        shapes[f"{block}/{ATTENTION}/out/kernel"] = (HEADS, head, WIDTH)
        shapes[f"{block}/{ATTENTION}/out/bias"] = (WIDTH,)
        shapes[f"{block}/MlpBlock_3/Dense_0/kernel"] = (WIDTH, MLP)
        shapes[f"{block}/MlpBlock_3/Dense_0/bias"] = (MLP,)
        shapes[f"{block}/MlpBlock_3/Dense_1/kernel"] = (MLP, WIDTH)
        shapes[f"{block}/MlpBlock_3/Dense_1/bias"] = (WIDTH,)
    if pre_logits:
        shapes |= {"pre_logits/kernel": (WIDTH, WIDTH), "pre_logits/bias": (WIDTH,)}
    generator = np.random.default_rng(seed)
    return {
        name: (0.3 * generator.standard_normal(shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes.items()
    }


def logits_of(arrays, images):
    """The ViT that the published names belong to, in NumPy float64."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}/scale"] + w[f"{name}/bias"]

    def dense(x, name, equation="bnd,df->bnf"):
        return np.einsum(equation, x, w[f"{name}/kernel"]) + w[f"{name}/bias"]

    side = images.shape[1] // PATCH
    squares = images.reshape(len(images), side, PATCH, side, PATCH, 3)
    x = np.einsum("bipjqc,pqcd->bijd", squares, w["embedding/kernel"]) + w["embedding/bias"]
    x = x.reshape(len(images), side * side, WIDTH)
    x = np.concatenate([np.repeat(w["cls"], len(x), axis=0), x], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(BLOCKS):
        block = f"Transformer/encoderblock_{i}"
        h = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            dense(h, f"{block}/{ATTENTION}/{part}", "bnd,dhc->bnhc")
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(WIDTH // HEADS)
        out = np.einsum("bhnm,bmhc->bnhc", special.softmax(scores, axis=-1), v)
        x = x + dense(out, f"{block}/{ATTENTION}/out", "bnhc,hcd->bnd")
        h = dense(norm(x, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3/Dense_0")
        x = x + dense(h * special.ndtr(h), f"{block}/MlpBlock_3/Dense_1")
    return norm(x, "Transformer/encoder_norm")[:, 0] @ w["head/kernel"] + w["head/bias"]


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
    return vit_npz.load(path, param_shapes(model), HEADS)


def test_a_published_file_computes_its_own_logits(write):
    arrays = published()
    params, notes = load(write(arrays))
    assert notes == []
    images = np.random.default_rng(1).standard_normal((3, 4, 4, 3))
    apply = quick_jit(vit().apply)
    actual = apply({"params": params}, jnp.asarray(images, jnp.float32))
    assert_close(actual, logits_of(arrays, images), 2e-6)


def test_shapes_and_dtypes_are_those_of_the_model(write):
    arrays = {name: array.astype(np.float16) for name, array in published().items()}
    params, _ = load(write(arrays))
    expected = jax.tree.map(lambda s: (s.shape, np.dtype("float32")), param_shapes(vit()))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == expected


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
def test_saving_and_loading_returns_the_same_bits(tmp_path, pool, channels):
    model = vit(pool=pool, channels=channels)
    params = random_params(model)
    vit_npz.save(tmp_path / "mine.npz", params, HEADS)
    again, notes = load(tmp_path / "mine.npz", model)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_is_saved_has_the_published_names(write, tmp_path):
    arrays = published()
    params, _ = load(write(arrays))
    vit_npz.save(tmp_path / "again.npz", params, HEADS)
    with np.load(tmp_path / "again.npz") as file:
        assert set(file.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)


def test_half_precision_files_are_half_as_large(tmp_path):
    params = random_params(vit())
    vit_npz.save(tmp_path / "half.npz", params, HEADS, np.float16)
    with np.load(tmp_path / "half.npz") as file:
        assert {file[name].dtype for name in file.files} == {np.dtype("float16")}
    loaded, _ = load(tmp_path / "half.npz")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), loaded, params)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"classes": 1000}, "a head of 1000 classes; the head of 5 classes starts at zero"),
        ({}, "no head; the head of 5 classes starts at zero"),
    ],
)
def test_another_head_starts_at_zero_and_is_noted(write, changed, note):
    arrays = published(**changed)
    if not changed:
        del arrays["head/kernel"], arrays["head/bias"]
    params, notes = load(write(arrays))
    assert [line.partition(": ")[2] for line in notes] == [note]
    assert params["head"]["kernel"].shape == (WIDTH, CLASSES)
    assert not np.any(params["head"]["kernel"]) and not np.any(params["head"]["bias"])
    np.testing.assert_array_equal(params["cls"], arrays["cls"])


def test_the_layer_before_the_head_of_pretraining_is_dropped(write):
    params, _ = load(write(published(pre_logits=True)))
    assert "pre_logits" not in params


def test_all_that_does_not_fit_is_listed_at_once(write):
    arrays = published()
    del arrays["cls"], arrays[f"Transformer/encoderblock_1/{ATTENTION}/out/bias"]
    arrays["Transformer/encoderblock_2/LayerNorm_0/bias"] = np.zeros(WIDTH, np.float32)
    arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 197, WIDTH), np.float32)
    with pytest.raises(ValueError, match="do not fit the model") as raised:
        load(write(arrays))
    assert str(raised.value).splitlines()[1:] == [
        "  missing: Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/bias",
        "  missing: cls",
        "  not in the model: Transformer/encoderblock_2/LayerNorm_0/bias",
        "  Transformer/posembed_input/pos_embedding is (1, 197, 16), the model wants (1, 5, 16)",
    ]


@pytest.mark.parametrize("name", ["Transformer/encoder_norm/more", "embedding/bias"])
def test_each_fault_alone_is_one(write, name):
    arrays = published() | {name: np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=f"do not fit the model:\n.*{name}[^\n]*$"):
        load(write(arrays))


def test_a_kernel_without_its_bias_is_no_head(write):
    arrays = published()
    del arrays["head/kernel"]
    with pytest.raises(ValueError, match="missing: head/kernel"):
        load(write(arrays))


def test_a_missing_file_says_where_weights_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file.*storage.googleapis.com/vit_models"):
        load(tmp_path / "nowhere.npz")


def damaged(kind, path):
    np.savez_compressed(path, **published())
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        return content[: len(content) // 2]
    if kind == "flipped bytes":
        for i in range(60, 90):
            content[i] ^= 255
        return content
    if kind == "npy":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        return path.with_suffix(".npy").read_bytes()
    return {"empty": b"", "a web page": b"<html>404 Not Found</html>"}[kind]


@pytest.mark.parametrize("kind", ["cut off", "flipped bytes", "npy", "empty", "a web page"])
def test_an_unreadable_file_is_named(tmp_path, kind):
    path = tmp_path / "broken.npz"
    path.write_bytes(damaged(kind, path))
    with pytest.raises(ValueError, match=r"broken.npz: not a readable .npz file.*complete\?"):
        load(path)


def test_patches_of_other_channels_are_refused():
    params = param_shapes(vit(channels=2))
    with pytest.raises(ValueError, match="embedding kernel has 8 inputs: must be patch"):
        jax.eval_shape(lambda p: vit_npz.to_npz(p, HEADS), params)
