"""Our ViT and BERT against those of Hugging Face's Transformers, which share no code with them.

    python .ci/parity.py        needs transformers==4.57.6, the last with Flax models; no PyTorch

Random weights, small and of real proportions, float32. Both ways: files that Transformers itself
reads as the models it made are read by ours, and what ours exports is read by `from_pretrained`;
logits, and the hidden state of the first token after some of the blocks, differ by at most 1e-4.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import traverse_util
from safetensors.numpy import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
from fakes import words as published_sizes

from pbr_jax import weights as public
from pbr_jax.models.bert import Bert
from pbr_jax.models.vit import ViT

TOLERANCE = 1e-4
VIT_EPSILON = 1e-6  # with which Google trained; Transformers' own default is 1e-12
transformers.logging.set_verbosity_error()


def main() -> int:
    """Runs every comparison; returns 1 if one is not within the tolerance."""
    small = {"width": 48, "depth": 3, "heads": 4, "mlp_dim": 80, "num_classes": 7}
    base = {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072, "num_classes": 10}
    errors = []
    for sizes in (small, base):
        grid = {"patch": 16, "image_size": 224} if sizes is base else {"patch": 4, "image_size": 20}
        words = {"vocab_size": 30522, "max_length": 512}
        words = words if sizes is base else {"vocab_size": 99, "max_length": 24}
        for model in (ViT(**sizes, **grid), Bert(**sizes, **words)):
            errors += compare(model)
    worst = max(errors)
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(not worst <= TOLERANCE)


def compare(model: ViT | Bert) -> list[float]:
    """All comparisons of one model; the largest absolute difference of each."""
    began = time.monotonic()
    theirs, weights = make_theirs(model)
    batch = make_batch(model)
    outputs = run_theirs(theirs, weights, batch)
    hidden = [np.asarray(state[:, 0]) for state in outputs.hidden_states]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        write_as_published(theirs.config, weights, path / "theirs")
        again = type(theirs).from_pretrained(path / "theirs")
        jax.tree.map(np.testing.assert_array_equal, again.params, weights)
        params = load(path / "theirs", model)
        errors = {"logits": error(run_ours(model, params, batch), outputs.logits)}
        for depth in sorted({1, model.depth // 2, model.depth}):
            states = run_ours(*first_blocks(model, params, depth), batch)
            expected = first_token(weights, hidden[depth])
            errors[f"hidden state after block {depth}"] = error(states, expected)

        family, sizes = published_sizes(model)
        mine = jax.tree.map(lambda leaf: leaf[::-1].copy(), params)  # other weights than theirs
        names = [f"class {i}" for i in range(model.num_classes)]
        public.save(path / "ours", "safetensors", family, mine, sizes, names)
        exported = type(theirs).from_pretrained(path / "ours")
        assert exported.config.id2label[3] == "class 3"
        expected = run_theirs(exported, exported.params, batch).logits
        errors["logits of our export"] = error(run_ours(model, mine, batch), expected)
        if family == "vit":
            published = as_google(weights, model)
            np.savez(path / "google.npz", **published)
            same = load(path / "google.npz", model)
            jax.tree.map(np.testing.assert_array_equal, same, params)
            public.save_npz(path / "ours.npz", "vit", params, sizes)
            with np.load(path / "ours.npz") as file:
                assert set(file.files) == set(published)
                for name, array in published.items():
                    np.testing.assert_array_equal(file[name], array)
    print(f"{family}, width {model.width}, {model.depth} blocks", end="")
    print(f", {time.monotonic() - began:.0f} s")
    for what, difference in errors.items():
        print(f"  {difference:.1e}  {what}")
    return list(errors.values())


def make_theirs(model: ViT | Bert) -> tuple[transformers.FlaxPreTrainedModel, dict]:
    """A model of Transformers with the sizes of ours, and weights none of which is zero or one."""
    common = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_dim,
        "num_labels": model.num_classes,
    }
    if isinstance(model, ViT):
        config = transformers.ViTConfig(
            **common,
            layer_norm_eps=VIT_EPSILON,
            image_size=model.image_size,
            patch_size=model.patch,
        )
        theirs = transformers.FlaxViTForImageClassification(config, _do_init=False)
    else:
        config = transformers.BertConfig(
            **common, vocab_size=model.vocab_size, max_position_embeddings=model.max_length
        )
        theirs = transformers.FlaxBertForSequenceClassification(config, _do_init=False)
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 1 / np.sqrt(leaf.shape[0]) if path[-1].key == "kernel" and leaf.ndim == 2 else 0.1
        values = np.float32(scale) * generator.standard_normal(leaf.shape, np.float32)
        return values + np.float32(path[-1].key == "scale")

    return theirs, jax.tree_util.tree_map_with_path(draw, theirs.params_shape_tree)


def make_batch(model: ViT | Bert) -> dict[str, np.ndarray]:
    """Images, or texts with padding."""
    generator = np.random.default_rng(1)
    if isinstance(model, ViT):
        shape = (2, model.image_size, model.image_size, 3)
        return {"image": generator.standard_normal(shape, np.float32)}
    length = min(model.max_length, 128) - 4
    return {
        "tokens": generator.integers(0, model.vocab_size, (3, length), np.int32),
        "token_types": generator.integers(0, 2, (3, length), np.int32),
        "lengths": np.array([length, length // 3, 1], np.int32),
    }


def run_theirs(theirs, weights, batch):
    """Their outputs, hidden states included."""

    @jax.jit
    def run(weights):
        if "image" in batch:
            images = batch["image"].transpose(0, 3, 1, 2)
            return theirs(images, params=weights, output_hidden_states=True)
        visible = np.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]
        return theirs(
            batch["tokens"],
            attention_mask=visible.astype(np.int32),
            token_type_ids=batch["token_types"],
            params=weights,
            output_hidden_states=True,
        )

    return run(weights)


def run_ours(model, params, batch) -> np.ndarray:
    """Our logits."""
    inputs = model.inputs(jax.tree.map(jnp.asarray, batch))
    return np.asarray(jax.jit(model.apply)({"params": params}, inputs))


def first_blocks(model, params, depth: int):
    """Our model with its first blocks only, and as logits what its head reads."""
    params = dict(params)
    blocks = params["blocks"]
    if isinstance(model, Bert) and depth < model.depth:
        params["norm"] = {name: leaf[depth] for name, leaf in blocks["norm1"].items()}
    params["blocks"] = jax.tree.map(lambda leaf: leaf[:depth], blocks)
    width = np.eye(model.width, dtype=np.float32)
    params["head"] = {"kernel": width, "bias": np.zeros(model.width, np.float32)}
    return model.clone(depth=depth, num_classes=model.width), params


def first_token(weights, state: np.ndarray) -> np.ndarray:
    """What their head reads if a block's `state` `[B, D]` of the first token is the last one."""
    if "vit" in weights:
        norm = weights["vit"]["layernorm"]
        centred = state - state.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + VIT_EPSILON) * norm["scale"] + norm["bias"]
    pooler = weights["bert"]["pooler"]["dense"]
    return np.tanh(state @ pooler["kernel"] + pooler["bias"])


def write_as_published(config, weights, folder: pathlib.Path) -> None:
    """`model.safetensors` as PyTorch's models are saved, and `config.json`."""
    arrays = {}
    for path, leaf in traverse_util.flatten_dict(weights).items():
        *modules, kind = path
        if kind == "kernel":
            leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
        kind = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kind, kind)
        arrays[".".join((*modules, kind))] = np.ascontiguousarray(leaf)
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})


def as_google(weights, model: ViT) -> dict[str, np.ndarray]:
    """The weights of their ViT under the names of `ViT-B_16.npz`."""
    vit, head = weights["vit"], weights["classifier"]
    embeddings, head_dim = vit["embeddings"], model.width // model.heads
    tree = {
        "cls": embeddings["cls_token"],
        "embedding": embeddings["patch_embeddings"]["projection"],
        "Transformer": {
            "posembed_input": {"pos_embedding": embeddings["position_embeddings"]},
            "encoder_norm": vit["layernorm"],
        },
        "head": head,
    }
    for i, layer in vit["encoder"]["layer"].items():
        attention = {
            name: {
                "kernel": part["kernel"].reshape(model.width, model.heads, head_dim),
                "bias": part["bias"].reshape(model.heads, head_dim),
            }
            for name, part in layer["attention"]["attention"].items()
        }
        out = layer["attention"]["output"]["dense"]
        kernel = out["kernel"].reshape(model.heads, head_dim, model.width)
        attention["out"] = {"kernel": kernel, "bias": out["bias"]}
        tree["Transformer"][f"encoderblock_{i}"] = {
            "LayerNorm_0": layer["layernorm_before"],
            "LayerNorm_2": layer["layernorm_after"],
            "MultiHeadDotProductAttention_1": attention,
            "MlpBlock_3": {
                "Dense_0": layer["intermediate"]["dense"],
                "Dense_1": layer["output"]["dense"],
            },
        }
    return traverse_util.flatten_dict(tree, sep="/")


def load(path: pathlib.Path, model):
    """Our parameters from a file, every one of them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.inputs(model.input_specs(1)))
    weights = public.read(path)
    params, notes = public.load(weights, *published_sizes(model), shapes["params"])
    assert notes == [], notes
    return params


def error(actual, expected) -> float:
    """The largest absolute difference; not a number if anything is not finite."""
    return float(np.max(np.abs(np.asarray(actual) - np.asarray(expected))))


if __name__ == "__main__":
    sys.exit(main())
