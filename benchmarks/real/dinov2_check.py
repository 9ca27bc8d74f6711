"""Our ViT with the converted weights beside the ONNX runtime with the file that they are from."""

from pathlib import Path
from typing import Any

import numpy as np

SIDE, PATCH, TOLERANCE = 224, 14, 1e-4


def _runtime(model: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[B, N, D]` behind the last LayerNorm, and the positions as the graph resizes them."""
    import onnx
    import onnxruntime

    graph = onnx.load(str(model))
    last = next(n for n in graph.graph.node if "backbone.layernorm.bias" in n.input)
    resized = next(n for n in graph.graph.node if n.op_type == "Resize")
    tokens, places = last.output[0], resized.output[0]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in (tokens, places))
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Any = session.run([tokens, places], {session.get_inputs()[0].name: images})
    return found[0], found[1].reshape(found[1].shape[1], -1).T


def _ours(folder: Path, images: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """The class token `[B, D]`: a head that is the identity hands it out."""
    import jax
    import jax.numpy as jnp

    from pbr_jax.configs.common import Config, Model
    from pbr_jax.training import from_config

    sizes = {"size": "S", "patch": PATCH, "image_size": SIDE, "num_classes": 384}
    config = Config(method="full", model=Model(**sizes, weights=str(folder)))  # type: ignore
    model = from_config.build(config).model
    params, _, _ = model.begin(config.seed)
    params = {**params, "head": {"kernel": jnp.eye(384), "bias": jnp.zeros(384)}}
    if positions is not None:
        first = params["pos_embedding"][:, :1]
        params["pos_embedding"] = jnp.concatenate([first, positions[None]], axis=1)
    apply = jax.jit(lambda p, x: model.module.apply({"params": p}, x))
    return np.asarray(apply(params, images.transpose(0, 2, 3, 1)))


def check_against_runtime(folder: Path, model: Path) -> None:
    """Prints the largest relative difference of class tokens.

    Raises:
      SystemExit: with the runtime's own positions it is above `TOLERANCE`.
    """
    rng = np.random.default_rng(0)
    # Coarse noise, enlarged: images with large parts, normalised as DINOv2 expects them.
    coarse = rng.standard_normal((4, 3, SIDE // 8, SIDE // 8), np.float32)
    images = coarse.repeat(8, axis=2).repeat(8, axis=3)
    tokens, places = _runtime(model, images)
    theirs = tokens[:, 0]
    for label, positions in (("their positions", places), ("our positions", None)):
        ours = _ours(folder, images, positions)
        worst = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine = np.min(np.sum(ours * theirs, axis=1) / norms)
        print(f"class token, {label}: largest difference {worst:.1e} of the largest value,"
              f" least cosine {cosine:.6f}")  # fmt: skip
        if positions is not None and worst > TOLERANCE:
            raise SystemExit(f"above the tolerance of {TOLERANCE}")
