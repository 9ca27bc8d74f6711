"""Where weights are looked for, and what a file of them is."""

import json

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
    with pytest.raises(FileNotFoundError, match=r"directory without model.safetensors.*pbr export"):
        public.read(tmp_path)


def test_a_directory_with_files_of_other_names_names_them(tmp_path):
    save_file(huggingface_bert(), tmp_path / "pytorch_adam.safetensors")
    np.savez(tmp_path / "ViT-B_16.npz", **google_vit())
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match="name the file itself: ") as raised:
        public.read(tmp_path)
    named = str(raised.value).partition("name the file itself: ")[2].split(" or ")
    assert [public.read(name).family for name in named] == ["vit", "bert"]


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
