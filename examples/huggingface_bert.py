"""A Flax model of Hugging Face's Transformers, whose code nobody here can edit, pruned as it is.

    pip install "transformers==4.57.6"
    python examples/huggingface_bert.py

Version 4.57 is the last with Flax models. A small BERT begins at random weights, since nothing is
downloaded; `FlaxBertForSequenceClassification.from_pretrained` gives one that is trained. The task
needs attention: is one of three words anywhere in a sentence?
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import BertConfig, FlaxBertForSequenceClassification

import pbr_jax

LENGTH, BATCH, VOCABULARY = 16, 64, 64
CONFIG = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    max_position_embeddings=LENGTH,
    num_labels=2,
)


def sentences(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Words `[B, N]` and labels `[B]`."""
    words = generator.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    return words, np.any(words < 3, axis=1).astype(np.int32)


def main() -> None:
    """Prunes, trains and tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep", type=float, default=0.1, help="fraction of the columns")
    args = parser.parse_args()

    model = FlaxBertForSequenceClassification(CONFIG, seed=0, input_shape=(1, LENGTH))

    # A model of Transformers is called with its parameters: a function of them, that is.
    def logits_of(params, words):
        return model(words, params=params, train=False).logits

    def loss_fn(params, words, labels):
        logits = logits_of(params, words)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    generator = np.random.default_rng(0)
    words, _ = sentences(generator)
    pruned = pbr_jax.prune(logits_of, model.params, words, keep=args.keep)
    print(pbr_jax.report(pruned, model.params, words))

    train = pbr_jax.train_step(pruned, loss_fn, optax.adamw(1e-3))
    params = jax.tree.map(jnp.asarray, model.params)
    state, step = train.init(params), jax.jit(train.step, donate_argnums=0)
    key = jax.random.key(1)
    for i in range(1, args.steps + 1):
        state, loss = step(state, jax.random.fold_in(key, i), *sentences(generator))
        if i % 50 == 0 or i == args.steps:
            print(f"step {i}/{args.steps}  loss {loss:.4f}", flush=True)

    evaluate = jax.jit(logits_of)
    right = []
    for _ in range(8):
        words, labels = sentences(generator)
        right.append(np.argmax(evaluate(state.params, words), axis=-1) == labels)
    print(f"accuracy {np.mean(right):.1%} on sentences that were not trained on")


if __name__ == "__main__":
    main()
