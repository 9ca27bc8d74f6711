"""Flax models of Hugging Face's Transformers, which this repository cannot edit: all are reached.

Skipped without `transformers==4.57.6`, the last with Flax models, which needs JAX 0.10.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import check_against_dense, loss_of, numbers

from pbr_jax import prune

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 16}


@pytest.fixture(autouse=True)
def promotion():
    """Their code mixes types and ranks, which this suite forbids its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def transformers():
    package = pytest.importorskip("transformers")
    if not hasattr(package, "FlaxViTModel"):
        pytest.skip("transformers has no Flax models from version 5 on")
    return package


def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 7)))


# Class, configuration, input, parameters that are pruned, and groups of them.
MODELS = {
    "vit": (
        "FlaxViTForImageClassification",
        ("ViTConfig", {**SIZES, "image_size": 16, "patch_size": 4}),
        lambda: numbers(0, 2, 3, 16, 16),
        (12, 8),
    ),
    "bert": (
        "FlaxBertForSequenceClassification",
        ("BertConfig", {**SIZES, "vocab_size": 50}),
        tokens,
        (13, 9),
    ),
    "bert-mlm": (
        "FlaxBertForMaskedLM",
        ("BertConfig", {**SIZES, "vocab_size": 50}),
        tokens,
        (13, 9),
    ),
    "gpt2": (
        "FlaxGPT2LMHeadModel",
        ("GPT2Config", {**GPT2_SIZES, "vocab_size": 50}),
        tokens,
        (8, 8),
    ),
    "llama": (
        "FlaxLlamaForCausalLM",
        ("LlamaConfig", {**SIZES, "num_key_value_heads": 2, "vocab_size": 50}),
        tokens,
        (14, 8),
    ),
}
# What cannot be pruned, and why.
DENSE = {
    "vit": ("vit/embeddings/patch_embeddings/projection/kernel", "a convolution"),
    "bert": ("bert/embeddings/word_embeddings/embedding", "read by index"),
    "bert-mlm": ("bert/embeddings/word_embeddings/embedding", "also read by index"),
    "gpt2": ("transformer/wte/embedding", "also read by index"),
    "llama": ("lm_head/kernel", "named by exclude"),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_dense_autodiff(transformers, name):
    cls, (config, settings), make, counts = MODELS[name]
    model = getattr(transformers, cls)(getattr(transformers, config)(**settings), seed=0)

    def function(params, x):
        return model(x, params=params, train=True, dropout_rng=jax.random.key(0)).logits

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        pruned = prune(function, model.params, make(), keep=0.25)
        assert (len(pruned.sites), len(pruned.groups)) == counts
        path, why = DENSE[name]
        assert why in pruned.unpruned[path]
        check_against_dense(pruned, loss_of(function), model.params, make(), tolerance=5e-6)
