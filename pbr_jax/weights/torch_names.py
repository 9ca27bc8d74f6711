"""Lines for modules of PyTorch, as Hugging Face names them. Kernels there are `[out, in]`."""

from pbr_jax.weights.layout import Line


def torch_norm(theirs: str, ours: str, block: int | None = None) -> list[Line]:
    """A `torch.nn.LayerNorm`."""
    return [
        Line(f"{theirs}.weight", f"{ours}/scale", "width", block),
        Line(f"{theirs}.bias", f"{ours}/bias", "width", block),
    ]


def torch_linear(theirs: str, ours: str, axes: str, *where) -> list[Line]:
    """A `torch.nn.Linear`; `axes` are those of our kernel, "in out"."""
    inputs, out = axes.split()
    return [
        Line(f"{theirs}.weight", f"{ours}/kernel", f"{inputs} {out} -> {out} {inputs}", *where),
        Line(f"{theirs}.bias", f"{ours}/bias", out, *where),
    ]


def torch_block(layer: str, attention: str, i: int) -> list[Line]:
    """The linear layers of block i, which ViT and BERT name alike."""
    lines = []  # q, k and v are parts of one layer of ours
    for part, name in enumerate(("query", "key", "value")):
        lines += torch_linear(f"{layer}.{attention}.{name}", "blocks/qkv", "width out", i, part, 3)
    lines += torch_linear(f"{layer}.attention.output.dense", "blocks/proj", "width out", i)
    lines += torch_linear(f"{layer}.intermediate.dense", "blocks/fc1", "width mlp_dim", i)
    return lines + torch_linear(f"{layer}.output.dense", "blocks/fc2", "mlp_dim width", i)
