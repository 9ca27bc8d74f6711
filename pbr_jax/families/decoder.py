"""Decoders of language in the manner of Llama: SmolLM2, Qwen3, Gemma 3 and their like."""

import dataclasses

from pbr_jax.configs.common import Decoder, Model
from pbr_jax.families.record import Architecture, Attention, Family, Site

KERNELS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
"""The activations of a block that feed kernels, and the names of these among its parameters."""
TABLE = "table"
"""The site of a table of words, whose columns are chosen: for `pruning.keep.table`."""


def filled(model: Model) -> Decoder:
    """The settings of a decoder with the numbers that follow from others.

    Raises:
      ValueError: the sizes of the model are incomplete.
    """
    m, d = model.resolved(), model.decoder
    if m.width is None or m.heads is None:
        raise ValueError(f"model = {m}: needs width, depth, heads and mlp_dim, or else size")
    head = m.width // m.heads if d.head_dim is None else d.head_dim
    heads = m.heads if d.kv_heads is None else d.kv_heads
    return dataclasses.replace(d, kv_heads=heads, head_dim=head)


def describe(model: Model) -> Architecture:
    """Activations that feed kernels, each under the first of those kernels.

    Raises:
      ValueError: the sizes of the model are incomplete.
    """
    m, d = model.resolved(), filled(model)
    if m.width is None or m.depth is None or m.heads is None or m.mlp_dim is None:
        raise ValueError(f"model = {m}: needs width, depth, heads and mlp_dim, or else size")
    assert d.head_dim is not None and d.kv_heads is not None
    heads = m.heads * d.head_dim
    sites = {
        "qkv": Site(m.width, heads + 2 * d.kv_heads * d.head_dim, ("blocks", "q")),
        "o": Site(heads, m.width, ("blocks", "o")),
        "gate": Site(m.width, 2 * m.mlp_dim, ("blocks", "gate")),
        "down": Site(m.mlp_dim, m.width, ("blocks", "down")),
    }
    tables = {TABLE: Site(m.width, m.vocab_size, ("embedding",))}
    return Architecture(m.width, m.depth, m.max_length, sites, Attention("qkv", m.heads), tables)


def _faults(model: Model) -> list[str]:
    m, d = model.resolved(), model.decoder
    faults = []
    if m.heads is not None and d.kv_heads is not None and m.heads % d.kv_heads:
        divisors = [n for n in range(1, m.heads + 1) if m.heads % n == 0]
        wanted = d.kv_heads
        near = min(divisors, key=lambda n: abs(n - wanted))
        faults.append(
            f"model.decoder.kv_heads = {wanted}: must divide model.heads = {m.heads}, whose"
            f" queries share them; set model.decoder.kv_heads={near}"
        )
    head = d.head_dim
    if head is None and m.width is not None and m.heads is not None and not m.width % m.heads:
        head = m.width // m.heads
    if head is not None and head % 2:
        faults.append(
            f"model.decoder.head_dim = {head}: must be even, since rotary positions turn pairs of"
            f" channels; set model.decoder.head_dim={head + 1}"
        )
    if d.window is None and d.global_every is not None:
        faults.append(
            f"model.decoder.global_every = {d.global_every}: says which layers see more than a"
            " window; set model.decoder.window, or model.decoder.global_every=none"
        )
    if d.window is None and d.rope_local_base is not None:
        faults.append(
            f"model.decoder.rope_local_base = {d.rope_local_base:g}: is that of layers that see a"
            " window; set model.decoder.window, or model.decoder.rope_local_base=none"
        )
    if d.rope_scaling == "llama3" and d.rope_high_factor <= d.rope_low_factor:
        faults.append(
            f"model.decoder.rope_high_factor = {d.rope_high_factor:g}: must be above"
            f" model.decoder.rope_low_factor = {d.rope_low_factor:g}"
        )
    if d.positions is not None and model.max_length > d.positions:
        faults.append(
            f"model.max_length = {model.max_length}: more than the {d.positions} tokens of"
            f" model.decoder.positions; set model.max_length={d.positions} or less"
        )
    if model.dropout:
        faults.append(f"model.dropout = {model.dropout:g}: a decoder has none; set model.dropout=0")
    return faults


FAMILY = Family(
    name="decoder",
    title="decoder",
    reads="language",
    settings=("vocab_size", "max_length", "param_dtype", "decoder"),
    methods=(
        *("full", "remat", "remat+offload", "lora", "static", "static-groups"),
        *("prebackrazor", "tiny", "tiny+offload"),
    ),
    describe=describe,
    build="pbr_jax.models.decoder:build",
    traced=True,
    provider="pbr_jax.training.decoder_model:decoder_model",
    faults=_faults,
    integers=lambda model: {
        "tokens": model.vocab_size,
        "segments": 2,
        "positions": model.max_length,
        "targets": model.vocab_size,
    },
    task="pbr_jax.training.task:LANGUAGE",
    published="pbr_jax.weights.decoder:PUBLISHED",
)
