"""Residual plans: what each site of a transformer block keeps for its backward pass."""

import dataclasses
import math
from typing import Literal, get_args

LinearKind = Literal["dense", "columns", "magnitude", "elements"]
LayerNormKind = Literal["dense", "int8", "elements"]
AttentionKind = Literal["flash", "qkv", "recompute", "channels", "elements"]
GeluKind = Literal["dense", "code2", "code3", "code4"]
Implementation = Literal["xla", "triton", "mosaic", "jax_triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
_KINDS = {
    "linear": LinearKind,
    "layer_norm": LayerNormKind,
    "attention": AttentionKind,
    "gelu": GeluKind,
}

SITES = ("qkv", "proj", "fc1", "fc2")
"""The activations of a block that feed linear layers: `qkv` and `fc1` read a LayerNorm's output."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """Fraction of columns kept at each site, in (0, 1]; the paper's pruning ratio is 1 - keep."""

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
      layer_norm: residual of both LayerNorms. "int8" also serves the linear layer behind it.
      attention: residual of attention; "recompute" keeps nothing and projects q, k, v again from
        the LayerNorm's residual.
      gelu: residual of GELU.
      stochastic_codes: round GELU codes at random and without bias, rather than to the nearest
        level.
      recompute: keep only the block's input and run its forward pass again (rematerialisation).
      batch_chunks: parts of the batch that a block processes one after the other, forward and
        backward.
      keep: fraction kept at each site by the linear residuals "magnitude" and "elements"; the
        largest of them is also that of BackRazor's LayerNorm and attention. Selected columns arrive
        from outside and bring their own number.
      attention_keep: fraction of channels kept by "channels", the sparse attention of
        PreBackRazor++.
      implementation: of the ops that have kernels, see `pbr_jax.ops.dispatch`; None lets the device
        decide.
    """

    linear: LinearKind = "dense"
    layer_norm: LayerNormKind = "dense"
    attention: AttentionKind = "flash"
    gelu: GeluKind = "dense"
    stochastic_codes: bool = False
    recompute: bool = False
    batch_chunks: int = 1
    keep: Keep = Keep()
    attention_keep: float = 0.2
    implementation: Implementation | None = None

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if value not in get_args(kinds):
                raise ValueError(f"{name} = {value!r}: must be one of {', '.join(get_args(kinds))}")
        if self.implementation not in (None, *IMPLEMENTATIONS):
            raise ValueError(
                f"implementation = {self.implementation!r}: must be one of"
                f" {', '.join(IMPLEMENTATIONS)}, or None"
            )
        if self.batch_chunks < 1:
            raise ValueError(f"batch_chunks = {self.batch_chunks}: must be at least 1")


def budget_for(keep: float, num_columns: int, group_size: int = 1) -> int:
    """Columns to keep, K: `keep * D` rounded up to whole groups and a multiple of 8, at most D.

    A multiple of 8 keeps the packed matrix products aligned for tensor cores.

    Raises:
      ValueError: `keep` is outside (0, 1], or `group_size` does not divide `num_columns`.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(
            f"keep = {keep}: must be in (0, 1]; 0.1 keeps 10 % of the columns, the paper's '90 %'"
        )
    if group_size < 1 or num_columns % group_size:
        raise ValueError(
            f"group_size = {group_size}: must divide the number of columns, {num_columns}; 1 always"
            " does"
        )
    multiple = math.lcm(8, group_size)
    # The slack keeps 0.07 * 800 = 56.00000000000001 from being rounded up to 64.
    return min(num_columns, multiple * math.ceil(keep * num_columns / multiple - 1e-9))
