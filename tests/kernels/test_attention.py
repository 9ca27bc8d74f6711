"""The attention kernels compile for cards that are not there, fit them, and spill nothing."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pbr_jax.gpu import CARDS
from pbr_jax.gpu.kernels import kernel_use
from pbr_jax.ops.attention import attention
from pbr_jax.ops.visibility import Visibility, dropout_seeds

pytestmark = pytest.mark.gpu_compile

FLASH = ["attention_forward", "attention_query_gradient", "attention_key_gradients"]
ROWS = ["attention_forward", "attention_query_gradient_of_rows", "attention_key_gradients"]
AGAIN = ["attention_forward", *FLASH]

BF16, F32 = jnp.bfloat16, jnp.float32
CASES = {  # residual, [B, H, N, head], heads of k and v, dtype, what is told, kernels
    "vit": ("flash", (8, 12, 197, 64), 12, BF16, "", FLASH),
    "vit, rows": ("qkv", (8, 12, 197, 64), 12, BF16, "", ROWS),
    "vit, sparse": ("channels", (8, 12, 197, 64), 12, BF16, "", ROWS),
    "bert": ("flash", (8, 12, 512, 64), 12, BF16, "lengths dropout", FLASH),
    "bert, sparse": ("channels", (8, 12, 512, 64), 12, BF16, "lengths dropout", AGAIN),
    "decoder": ("flash", (4, 32, 2048, 128), 8, BF16, "causal segments", FLASH),
    "decoder of head 256": ("flash", (4, 4, 2048, 256), 1, BF16, "causal segments window", FLASH),
}
DECODERS = {  # as the ones above
    f"decoder of head {head}, {kv} of 32, {told}": (
        *("flash", (4, 32, 2048, head), kv, BF16, f"causal segments {told}", FLASH),
    )
    for head in (64, 80, 96, 128, 256)
    for kv in (8, 32)
    for told in ("", "window", "window lengths dropout")
}
REST = {
    **DECODERS,
    "decoder that attends again": ("qkv", (2, 9, 2048, 64), 3, BF16, "causal segments", AGAIN),
    "grouped rows": ("qkv", (2, 8, 416, 64), 2, BF16, "all", ROWS),
    "grouped rows of head 128": ("qkv", (2, 8, 256, 128), 2, BF16, "all", ROWS),
    "grouped float32": ("flash", (2, 8, 512, 128), 2, F32, "all", FLASH),
    "float32 of head 256": ("flash", (2, 4, 512, 256), 4, F32, "all", FLASH),
    "grouped float32 of head 256": ("flash", (2, 4, 512, 256), 1, F32, "all", FLASH),
    "float32 of head 128": ("flash", (2, 2, 512, 128), 2, F32, "all", FLASH),
    "one token of head 40": ("flash", (2, 2, 1, 40), 2, BF16, "causal", FLASH),
    "rows of head 32": ("qkv", (2, 2, 197, 32), 2, BF16, "all", ROWS),
    "rows of head 128": ("qkv", (2, 2, 197, 128), 2, jnp.float16, "all", ROWS),
    "rows of float32": ("qkv", (2, 2, 197, 64), 2, F32, "all", ROWS),
    "rows of float32, head 32": ("qkv", (2, 2, 197, 32), 2, F32, "all", ROWS),
    "longest rows": ("qkv", (2, 2, 416, 64), 2, BF16, "all", ROWS),
    "longest rows of head 32": ("qkv", (2, 2, 416, 32), 2, BF16, "all", ROWS),
    "longer than rows": ("qkv", (2, 2, 417, 64), 2, BF16, "lengths", AGAIN),
    "everything": ("flash", (2, 2, 512, 64), 2, BF16, "all", FLASH),
    "head 128": ("flash", (2, 2, 512, 128), 2, BF16, "all", FLASH),
    "float32": ("flash", (2, 2, 512, 64), 2, F32, "all", FLASH),
}


@pytest.mark.parametrize("card", ["h200", "rtx4090"])
@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in REST)]
)
def test_fit_the_card_without_a_spill(case, card):
    residual, shape, kv_heads, dtype, told, names = (CASES | REST)[case]
    told = "lengths segments causal window dropout" if told == "all" else told

    def both_passes(do, q, k, v, lengths, segments, window, keys):
        op = functools.partial(
            attention,
            visibility=Visibility(
                lengths=lengths if "lengths" in told else None,
                segment_ids=segments if "segments" in told else None,
                seeds=dropout_seeds(keys) if "dropout" in told else None,
            ),
            causal="causal" in told,
            window=window if "window" in told else None,
            dropout=0.1 if "dropout" in told else 0.0,
            kind=residual,
        )
        y, pullback = jax.vjp(op, q, k, v)
        return y, pullback(do)

    batch, _, tokens, head = shape
    specs = [
        *[jax.ShapeDtypeStruct(shape, dtype)] * 2,
        *[jax.ShapeDtypeStruct((batch, kv_heads, tokens, head), dtype)] * 2,
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((batch, tokens), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)),
    ]
    found = kernel_use(both_passes, specs, CARDS[card])
    assert sorted(use.name.rstrip("_0123456789") for use in found) == sorted(names)
    for use in found:
        assert use.spill_bytes == 0, use
        assert use.registers <= 255, use
        assert use.shared_bytes <= CARDS[card].shared_per_block, use
