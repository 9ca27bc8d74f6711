"""Files that are no weights, or none of ours, are named for what they are."""

import json
import zipfile

import numpy as np
import pytest
from published import google_vit, huggingface_bert
from safetensors.numpy import save_file

from pbr_jax import weights as public


def test_a_missing_file_says_where_weights_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file.*Nothing is downloaded") as raised:
        public.read(tmp_path / "nowhere.npz")
    assert "storage.googleapis.com/vit_models" in str(raised.value)
    assert "huggingface.co/google-bert" in str(raised.value)


def test_a_directory_without_weights_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"directory without model.safetensors"):
        public.read(tmp_path)


def npz(path):
    np.savez_compressed(path, **google_vit())
    return bytearray(path.read_bytes())


def safetensors(path):
    save_file(huggingface_bert(), path)
    return bytearray(path.read_bytes())


def pickled(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")
    return path.read_bytes()


def flipped(content):
    for i in range(60, 90):
        content[i] ^= 255
    return content


def npy(path):
    np.save(path.with_suffix(".npy"), np.zeros(3))
    return path.with_suffix(".npy").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: npz(path)[:9000], r"not a readable .npz file.*complete\?"),
        (lambda path: flipped(npz(path)), r"not a readable .npz file.*complete\?"),
        (lambda path: safetensors(path)[:9000], r"not a readable safetensors file.*complete\?"),
        (lambda path: flipped(safetensors(path)), r"not a readable safetensors file.*complete\?"),
        (pickled, "a pickle of PyTorch, which could run code"),
        (lambda path: b"<html>404 Not Found</html>", "a web page"),
        (lambda path: b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (lambda path: b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras"),
        (lambda path: b'{"a": 1}', "not the index of a sharded checkpoint"),
        (npy, "neither .npz nor safetensors"),
        (lambda path: b"", "neither .npz nor safetensors"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, content, message):
    path = tmp_path / "broken"
    (tmp_path / "made").mkdir()
    path.write_bytes(content(tmp_path / "made" / "file.npz"))
    with pytest.raises(ValueError, match=f"weights {path}: {message}"):
        public.read(path)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    np.savez(tmp_path / "as.npz", **google_vit())
    (tmp_path / "as.npz").rename(tmp_path / "a.safetensors")
    save_file(huggingface_bert(), tmp_path / "b.npz")
    assert public.read(tmp_path / "a.safetensors").family == "vit"
    assert public.read(tmp_path / "b.npz").family == "bert"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("conv_root/kernel", "a hybrid of ResNet and ViT"),
        ("blocks.0.attn.qkv.weight", "a ViT in timm's layout"),
        ("roberta.encoder.layer.0.output.dense.weight", "a RoBERTa"),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", "a DistilBERT"),
        ("vision_model.embeddings.class_embedding", "a CLIP"),
    ],
)
def test_weights_of_other_models_are_named(tmp_path, name, what):
    np.savez(tmp_path / "other.npz", **{name: np.zeros(3)}, **google_vit())
    with pytest.raises(ValueError, match=f"this is {what}; what can be read is ViT in Google's"):
        public.read(tmp_path / "other.npz")


def test_arrays_of_no_known_model_are_listed(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(ValueError, match=r"of its 2 arrays \(a, b ...\) none belongs to ViT in"):
        public.read(tmp_path / "other.npz")


def test_sizes_are_told_by_the_arrays(tmp_path):
    np.savez(tmp_path / "vit.npz", **google_vit(classes=9, grid=3))
    sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "patch": 2}
    weights = public.read(tmp_path / "vit.npz")
    assert weights.sizes == sizes | {"channels": 3, "positions": 10, "classes": 9}
    assert public.own_faults(weights) == []


def test_a_file_is_judged_by_itself(tmp_path):
    """As `pbr weights check` does without a configuration."""
    arrays = google_vit()
    del arrays["head/kernel"], arrays["head/bias"]
    np.savez(tmp_path / "vit.npz", **arrays)
    assert public.own_faults(public.read(tmp_path / "vit.npz")) == []
    del arrays["Transformer/encoder_norm/bias"]
    arrays["embedding/bias"] = arrays["embedding/bias"][:7]
    np.savez(tmp_path / "vit.npz", **arrays)
    assert public.own_faults(public.read(tmp_path / "vit.npz")) == [
        "missing: Transformer/encoder_norm/bias",
        "embedding/bias is (7,), the model wants (16,)",
    ]


def test_a_run_configuration_is_not_taken_for_hugging_faces(tmp_path):
    save_file(huggingface_bert(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8}))
    assert public.read(tmp_path).config == {}
