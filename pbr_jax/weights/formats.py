"""The formats of public weights, as tables: which array of theirs is which leaf of ours.

- Google's ViT, https://github.com/google-research/vision_transformer: names of its Flax modules.
  Kernels are `[in, out]`, those of attention `[width, heads, head_dim]`.
- Hugging Face's ViT and BERT, https://github.com/huggingface/transformers: names of its PyTorch
  modules. Kernels are `[out, in]`. Models without a head lack the prefix `vit.` or `bert.`; BERT
  files converted from TensorFlow call the parameters of LayerNorm `gamma` and `beta`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from pbr_jax.weights.layout import Line

Family = Literal["vit", "bert"]


class Format(NamedTuple):
    """A way to name and lay out the weights of one family.

    Attributes:
      name: for readers.
      family: whose weights these are.
      table: depth -> a line for every array.
      block: pattern of what precedes the number of the block in a name.
      prefix: what names may begin with or not.
      renamed: endings of names in some files, and what they stand for.
      unused: pattern of a name that our model does not have -> what it is.
    """

    name: str
    family: Family
    table: Callable[[int], list[Line]]
    block: str
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    unused: Mapping[str, str] = {}

    def full_name(self, name: str) -> str:
        """`name` as the table writes it, in whatever block; other names as they are."""
        full = name
        for ending, meant in self.renamed:
            if name.endswith(ending):
                full = name.removesuffix(ending) + meant
        known = {line.theirs for line in self.table(1)}
        return next((n for n in (full, self.prefix + full) if self.in_block(n, "0") in known), name)

    def in_block(self, name: str, number: str) -> str:
        """The name of the same array of another block."""
        return re.sub(rf"(?<={self.block})\d+", number, name)

    def block_of(self, name: str) -> int | None:
        """The number of the block in a name, None where there is none."""
        found = re.search(rf"{self.block}(\d+)", name)
        return int(found[1]) if found else None

    def why_unused(self, name: str) -> str | None:
        """What an array is that only the published model has; None of any other."""
        return next((why for pattern, why in self.unused.items() if re.match(pattern, name)), None)


def google_vit(depth: int) -> list[Line]:
    """`ViT-B_16.npz` of ImageNet-21k, AugReg and what was fine-tuned from them."""

    def norm(theirs: str, ours: str, block: int | None = None) -> list[Line]:
        return [Line(f"{theirs}/{n}", f"{ours}/{n}", "width", block) for n in ("scale", "bias")]

    def linear(theirs: str, ours: str, kernel: str, bias: str, *where) -> list[Line]:
        return [
            Line(f"{theirs}/kernel", f"{ours}/kernel", kernel, *where),
            Line(f"{theirs}/bias", f"{ours}/bias", bias, *where),
        ]

    lines = [
        Line("cls", "cls", "1 1 width"),
        *linear("embedding", "embedding", "patch patch channels width", "width"),
        Line("Transformer/posembed_input/pos_embedding", "pos_embedding", "1 positions width"),
        *norm("Transformer/encoder_norm", "norm"),
        *linear("head", "head", "width classes", "classes"),
    ]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        lines += norm(f"{block}/LayerNorm_0", "blocks/norm1", i)
        for part, name in enumerate(("query", "key", "value")):
            lines += linear(
                f"{attention}/{name}",
                "blocks/qkv",
                "width heads head_dim",
                "heads head_dim",
                i,
                part,
                3,
            )
        lines += linear(f"{attention}/out", "blocks/proj", "heads head_dim width", "width", i)
        lines += norm(f"{block}/LayerNorm_2", "blocks/norm2", i)
        lines += linear(f"{block}/MlpBlock_3/Dense_0", "blocks/fc1", "width mlp_dim", "mlp_dim", i)
        lines += linear(f"{block}/MlpBlock_3/Dense_1", "blocks/fc2", "mlp_dim width", "width", i)
    return lines


def _torch_norm(theirs: str, ours: str, block: int | None = None) -> list[Line]:
    return [
        Line(f"{theirs}.weight", f"{ours}/scale", "width", block),
        Line(f"{theirs}.bias", f"{ours}/bias", "width", block),
    ]


def _torch_linear(theirs: str, ours: str, axes: str, *where) -> list[Line]:
    """A `torch.nn.Linear`; `axes` are those of our kernel, "in out"."""
    inputs, out = axes.split()
    return [
        Line(f"{theirs}.weight", f"{ours}/kernel", f"{inputs} {out} -> {out} {inputs}", *where),
        Line(f"{theirs}.bias", f"{ours}/bias", out, *where),
    ]


def _torch_block(layer: str, attention: str, i: int) -> list[Line]:
    """The linear layers of block i, which ViT and BERT name alike."""
    lines = []
    for part, name in enumerate(("query", "key", "value")):
        lines += _torch_linear(f"{layer}.{attention}.{name}", "blocks/qkv", "width out", i, part, 3)
    lines += _torch_linear(f"{layer}.attention.output.dense", "blocks/proj", "width out", i)
    lines += _torch_linear(f"{layer}.intermediate.dense", "blocks/fc1", "width mlp_dim", i)
    return lines + _torch_linear(f"{layer}.output.dense", "blocks/fc2", "mlp_dim width", i)


def huggingface_vit(depth: int) -> list[Line]:
    """`ViTForImageClassification`."""
    projection = "vit.embeddings.patch_embeddings.projection"
    lines = [
        Line("vit.embeddings.cls_token", "cls", "1 1 width"),
        Line("vit.embeddings.position_embeddings", "pos_embedding", "1 positions width"),
        Line(
            f"{projection}.weight",
            "embedding/kernel",
            "patch patch channels width -> width channels patch patch",
        ),
        Line(f"{projection}.bias", "embedding/bias", "width"),
        *_torch_norm("vit.layernorm", "norm"),
        *_torch_linear("classifier", "head", "width classes"),
    ]
    for i in range(depth):
        layer = f"vit.encoder.layer.{i}"
        lines += _torch_norm(f"{layer}.layernorm_before", "blocks/norm1", i)
        lines += _torch_norm(f"{layer}.layernorm_after", "blocks/norm2", i)
        lines += _torch_block(layer, "attention.attention", i)
    return lines


def huggingface_bert(depth: int) -> list[Line]:
    """`BertForSequenceClassification`.

    Theirs normalises at the end of each half of a block, ours at its beginning: the norm after a
    block's MLP is the first norm of the next block, and the last one our final norm.
    """
    embeddings = "bert.embeddings"
    lines = [
        Line(f"{embeddings}.word_embeddings.weight", "embedding/word", "vocab width"),
        Line(f"{embeddings}.position_embeddings.weight", "embedding/position", "positions width"),
        Line(f"{embeddings}.token_type_embeddings.weight", "embedding/type", "types width"),
        *_torch_norm(f"{embeddings}.LayerNorm", "blocks/norm1", 0),
        *_torch_norm(f"bert.encoder.layer.{depth - 1}.output.LayerNorm", "norm"),
        *_torch_linear("bert.pooler.dense", "pooler", "width out"),
        *_torch_linear("classifier", "head", "width classes"),
    ]
    for i in range(depth):
        layer = f"bert.encoder.layer.{i}"
        if i + 1 < depth:
            lines += _torch_norm(f"{layer}.output.LayerNorm", "blocks/norm1", i + 1)
        lines += _torch_norm(f"{layer}.attention.output.LayerNorm", "blocks/norm2", i)
        lines += _torch_block(layer, "attention.self", i)
    return lines


GOOGLE_VIT = Format(
    "ViT in Google's layout",
    "vit",
    google_vit,
    "encoderblock_",
    unused={r"pre_logits/": "the representation layer of pretraining"},
)
HUGGINGFACE_VIT = Format(
    "ViT in Hugging Face's layout",
    "vit",
    huggingface_vit,
    r"encoder\.layer\.",
    prefix="vit.",
    unused={
        r"(vit\.)?pooler\.": "the pooler, which classification does not use",
        r"(vit\.)?embeddings\.mask_token": "the mask token of pretraining",
        r"decoder\.": "the decoder of pretraining",
    },
)
HUGGINGFACE_BERT = Format(
    "BERT in Hugging Face's layout",
    "bert",
    huggingface_bert,
    r"encoder\.layer\.",
    prefix="bert.",
    renamed=((".gamma", ".weight"), (".beta", ".bias")),
    unused={
        r"cls\.": "the heads of pretraining",
        r"qa_outputs\.": "the head of another task",
        r"(bert\.)?embeddings\.(position_ids|token_type_ids)": "buffers without parameters",
    },
)
FORMATS = (GOOGLE_VIT, HUGGINGFACE_VIT, HUGGINGFACE_BERT)
