"""Residual plans: what each site of a transformer block keeps for its backward pass."""

import dataclasses
from typing import Literal

LinearKind = Literal["dense", "columns", "magnitude", "elements"]
LayerNormKind = Literal["dense", "elements"]
AttentionKind = Literal["flash", "qkv", "channels", "elements"]
GeluKind = Literal["dense"]

SITES = ("qkv", "proj", "fc1", "fc2")
"""The activations of a block that feed linear layers: `qkv` and `fc1` read a LayerNorm's output."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Fraction of columns kept at each site, each in (0, 1]; the paper's pruning ratio is 1 - keep."""

    qkv: float = 1.0
    proj: float = 1.0
    fc1: float = 1.0
    fc2: float = 1.0

    @property
    def largest(self) -> float:
        return max(self.qkv, self.proj, self.fc1, self.fc2)


@dataclasses.dataclass(frozen=True)
class ResidualPlan:
    """What a block keeps.

    Attributes:
      linear: input of the four linear layers.
      layer_norm: residual of both LayerNorms.
      attention: residual of attention.
      gelu: residual of GELU.
      recompute: keep only the block's input and run its forward pass again (rematerialisation).
      batch_chunks: parts of the batch that a block processes one after the other, forward and backward.
      keep: fraction kept at each site by the linear residuals "magnitude" and "elements"; the largest of them
        is also that of BackRazor's LayerNorm and attention. Selected columns arrive from outside and bring
        their own number.
      attention_keep: fraction of channels kept by "channels", the sparse attention of PreBackRazor++.
    """

    linear: LinearKind = "dense"
    layer_norm: LayerNormKind = "dense"
    attention: AttentionKind = "flash"
    gelu: GeluKind = "dense"
    recompute: bool = False
    batch_chunks: int = 1
    keep: Keep = Keep()
    attention_keep: float = 0.2
