"""A decoder in NumPy float64, token by token as the papers write it, and small ones to compare."""

import dataclasses
import math

import jax
import numpy as np
from fakes import SMALL_DECODER
from scipy import special

from pbr_jax.configs.common import Decoder, named_decoder
from pbr_jax.models.decoder import build
from pbr_jax.plans import ResidualPlan

_QWEN3 = dataclasses.replace(named_decoder("qwen3-4b").decoder, kv_heads=2, head_dim=8)
_GEMMA = dataclasses.replace(
    named_decoder("gemma3-1b").decoder,
    kv_heads=1,
    head_dim=8,
    query_scale=6.0,
    window=3,
    global_every=3,
)
_SCALED = dataclasses.replace(
    named_decoder("llama3.2-1b").decoder,
    kv_heads=4,
    head_dim=None,
    rope_original=32,
    rope_factor=4.0,
)
SHAPES: dict[str, Decoder] = {
    "llama": dataclasses.replace(SMALL_DECODER.decoder, tied=False),
    "scaled": dataclasses.replace(_SCALED, positions=None),
    "qwen3": dataclasses.replace(_QWEN3, positions=None),
    "gemma3": dataclasses.replace(_GEMMA, positions=None),
}


def small(kind="llama", plan=None, **fields):
    """A small decoder of a kind: settings and module; Gemma's third block of four sees all."""
    fields = {"decoder": SHAPES[kind], "depth": 4 if kind == "gemma3" else 2} | fields
    model = dataclasses.replace(SMALL_DECODER, **fields)
    return model, build(model, plan or ResidualPlan())


def drawn(module, seed=0):
    """Parameters none of which is zero or one, float32 in `param_dtype`."""
    specs = module.input_specs(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), specs)["params"]
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        offset = path[-1].key == "scale" and not module.shape.norm_offset
        values = 0.3 * generator.standard_normal(leaf.shape) + offset
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def row_of(*texts, length=12):
    """One packed row, `{"tokens", "segments", "positions"}` int32 `[1, length]`."""
    row = {name: np.zeros((1, length), np.int32) for name in ("tokens", "segments", "positions")}
    at = 0
    for number, text in enumerate(texts, 1):
        place = slice(at, at := at + len(text))
        row["tokens"][0, place] = text
        row["segments"][0, place] = number
        row["positions"][0, place] = np.arange(len(text))
    return row


def logits_of(model, params, tokens):
    """Logits `[N, V]` of one text."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    d, width, heads = model.decoder, model.width, model.heads
    head = d.head_dim or width // heads
    groups = d.kv_heads or heads
    x = p["embedding"]["table"][np.asarray(tokens)]
    x = x * math.sqrt(width) if d.embedding_scale else x

    def norm(x, scale):
        scale = scale["scale"] + d.norm_offset
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + d.norm_eps) * scale

    for i in range(model.depth):
        b = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        local = d.window is not None and bool((i + 1) % (d.global_every or i + 2))
        h = norm(x, b["norm1"])
        q, k, v = (
            (h @ b[name]["kernel"]).reshape(len(x), n, head)
            for name, n in (("q", heads), ("k", groups), ("v", groups))
        )
        if d.qk_norm:
            q, k = norm(q, b["q_norm"]), norm(k, b["k_norm"])
        angles = _angles(d, head, local)
        out = np.zeros((len(x), heads, head))
        for n in range(len(x)):
            first = max(0, n + 1 - d.window) if local else 0
            for h_ in range(heads):
                g = h_ * groups // heads
                query = _turned(q[n, h_], n * angles)
                keys = [_turned(k[m, g], m * angles) for m in range(first, n + 1)]
                scores = np.array(keys) @ query / math.sqrt(d.query_scale or head)
                out[n, h_] = special.softmax(scores) @ v[first : n + 1, g]
        y = out.reshape(len(x), -1) @ b["o"]["kernel"]
        x = x + (norm(y, b["post1"]) if d.post_norms else y)
        h = norm(x, b["norm2"])
        gate, up = h @ b["gate"]["kernel"], h @ b["up"]["kernel"]
        act = gate * special.expit(gate)
        if d.activation == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
            act = gate * (1 + np.tanh(inner)) / 2
        y = (act * up) @ b["down"]["kernel"]
        x = x + (norm(y, b["post2"]) if d.post_norms else y)
    table = p["embedding" if d.tied else "lm_head"]["table"]
    return norm(x, p["norm"]) @ table.T


def _angles(d, head, local):
    """Of one position, for every pair of channels."""
    scaled = d.rope_scaling == "llama3" and not (local and d.rope_local_base)
    base = d.rope_local_base if local and d.rope_local_base else d.rope_base
    found = []
    for i in range(head // 2):
        angle = base ** (-2 * i / head)
        length = 2 * math.pi / angle  # tokens of a turn
        if scaled and length > d.rope_original / d.rope_low_factor:
            angle /= d.rope_factor
        elif scaled and length >= d.rope_original / d.rope_high_factor:
            low, high = d.rope_low_factor, d.rope_high_factor
            smooth = (d.rope_original / length - low) / (high - low)
            angle = (1 - smooth) * angle / d.rope_factor + smooth * angle
        found.append(angle)
    return np.array(found)


def _turned(x, angles):
    z = (x[: len(angles)] + 1j * x[len(angles) :]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag])
