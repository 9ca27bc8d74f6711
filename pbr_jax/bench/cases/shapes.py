"""Shapes of the models whose ops are timed: ViT-B/16 and BERT-base have the same blocks."""

from typing import NamedTuple

BLOCKS, WIDTH, HIDDEN, HEADS = 12, 768, 3072, 12
LAYERS = {
    "qkv": (WIDTH, 3 * WIDTH),
    "proj": (WIDTH, WIDTH),
    "fc1": (WIDTH, HIDDEN),
    "fc2": (HIDDEN, WIDTH),
}
"""Input columns and output features of the linear layers of a block."""


class Load(NamedTuple):
    """Input of a model: its name, samples of a batch, tokens of a sample."""

    name: str
    batch: int
    tokens: int


VIT = Load("ViT-B/16, batch 128", 128, 197)
BERTS = Load("BERT-base, 32 x 128", 32, 128), Load("BERT-base, 32 x 512", 32, 512)
