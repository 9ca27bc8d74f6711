"""Linen layers that keep a few columns of their input for the backward pass.

Drop-in for `nn.Dense`, `nn.DenseGeneral`, `nn.LayerNorm` and `nn.MultiHeadDotProductAttention`,
with the stock parameter tree: a checkpoint of one loads into the other. Forward pass and dx are
exact; of a kernel's gradient the selected rows are exact and the others zero.

Which columns: those in the collection `selection`, where `columns`, int32 `[K]`, sits beside the
`kernel` it belongs to; or else a uniform draw from the PRNG stream `selection`. Made mutable, the
collection returns the columns used and, for `pbr_jax.freeze_unselected`, the mask `selected` over
the kernel's input axes:

    logits, drawn = model.apply(
        {"params": params}, x, rngs={"selection": key}, mutable=["selection"]
    )

Under differentiation with neither, a layer raises: it never falls back to saving everything. Nor
does it draw columns that a collection cannot return: what nobody knows, no optimizer leaves alone.
Optimizers move parameters whose gradient is zero (momentum, weight decay);
`pbr_jax.freeze_unselected` stops that.
"""

from pbr_jax.layers.attention import MultiHeadDotProductAttention
from pbr_jax.layers.linear import Dense, DenseGeneral
from pbr_jax.layers.mlp import LayerNorm, MlpBlock

__all__ = ["Dense", "DenseGeneral", "LayerNorm", "MlpBlock", "MultiHeadDotProductAttention"]
