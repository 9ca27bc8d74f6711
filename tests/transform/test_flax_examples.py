"""Flax' own examples, Gemma (NNX) and lm1b (Linen), as its source archive has them.

Skipped unless FLAX_EXAMPLES is that folder, `flax-.../examples`.
"""

import contextlib
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from measures import exact_jit
from rewritten import check_linen, check_nnx

FOLDER = os.environ.get("FLAX_EXAMPLES", "")
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not FOLDER, reason="FLAX_EXAMPLES names no folder"),
]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 50, (2, 7)))


@contextlib.contextmanager
def modules_of(name):
    """Modules of an example, which import one another by short names."""
    folder, known = str(pathlib.Path(FOLDER, name)), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        sys.path.remove(folder)
        for own in set(sys.modules) - known:
            if str(getattr(sys.modules[own], "__file__", "")).startswith(folder):
                del sys.modules[own]


def test_gemma():
    """Grouped queries, a sliding window, soft caps, norms behind; the table is tied."""
    with modules_of("gemma"):
        import transformer
        from transformer_cfg import AttentionType, TransformerConfig

        sizes = {"embed_dim": 64, "hidden_dim": 128, "num_heads": 4, "head_dim": 16}
        config = TransformerConfig(
            num_layers=2,
            num_embed=50,
            num_kv_heads=2,
            final_logit_softcap=30.0,
            attn_logits_soft_cap=50.0,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            attention_types=(AttentionType.GLOBAL, AttentionType.LOCAL_SLIDING),
            sliding_window_size=4,
            **sizes,
        )
        model = transformer.Transformer(config, rngs=nnx.Rngs(0))
        positions = jnp.tile(jnp.arange(7)[None], (2, 1))
        mask = transformer.make_causal_attn_mask(jnp.ones((2, 7), bool))
        pruned = check_nnx(model, TOKENS, positions, None, mask, nnx.Rngs(1))[0]
    assert (len(pruned.sites), len(pruned.groups)) == (12, 8)
    assert "also read by index" in pruned.unpruned["embedder/embedding"]


def test_lm1b():
    with modules_of("lm1b"):
        import models

        config = models.TransformerConfig(
            50, 50, emb_dim=64, num_heads=4, num_layers=2, qkv_dim=64, mlp_dim=128, max_len=16
        )
        rngs = {"dropout": jax.random.key(1)}
        pruned = check_linen(models.TransformerLM(config), TOKENS, rngs=rngs, jit=exact_jit)
    assert (len(pruned.sites), len(pruned.groups)) == (13, 9)
