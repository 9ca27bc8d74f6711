"""A vision transformer in stock Flax NNX, pruned as it stands, on handwritten digits.

    python examples/nnx_vit.py

Nothing of the model knows of pruning. Prints what is pruned, then loss and accuracy as it trains.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import pbr_jax

WIDTH, DEPTH, HEADS, PATCH, CLASSES = 128, 4, 4, 2, 10
BATCH, TEST = 64, 360


class Block(nnx.Module):
    """Attention and a hidden layer, each behind a norm and around a skip connection."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.fc1 = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class ViT(nnx.Module):
    """float32 `[B, 8, 8]` in [0, 1] -> logits `[B, 10]`."""

    def __init__(self, rngs: nnx.Rngs):
        tokens = (8 // PATCH) ** 2
        self.embedding = nnx.Linear(PATCH * PATCH, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        side = 8 // PATCH
        patches = images.reshape(-1, side, PATCH, side, PATCH).swapaxes(2, 3)
        x = self.embedding(patches.reshape(-1, side * side, PATCH * PATCH)) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def loss_fn(model: ViT, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def main() -> None:
    """Prunes, trains and tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--keep", type=float, default=0.1, help="fraction of the columns")
    args = parser.parse_args()

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    model = ViT(nnx.Rngs(0))

    # The one line: sites are found by tracing the model once.
    pruned = pbr_jax.prune(model, images[:BATCH], keep=args.keep)
    print(pbr_jax.report(pruned, images[:BATCH]))

    train = pbr_jax.train_step(pruned, loss_fn, optax.adamw(1e-3))
    state, step = train.init(model), jax.jit(train.step, donate_argnums=0)
    order, key = np.random.default_rng(0), jax.random.key(0)
    for i in range(1, args.steps + 1):
        rows = order.choice(len(labels) - TEST, BATCH, replace=False) + TEST
        state, loss = step(state, jax.random.fold_in(key, i), images[rows], labels[rows])
        if i % 50 == 0 or i == args.steps:
            print(f"step {i}/{args.steps}  loss {loss:.4f}", flush=True)

    nnx.update(model, state.params)
    right = jnp.argmax(model(images[:TEST]), axis=-1) == labels[:TEST]
    print(f"test accuracy {right.mean():.1%} on the {TEST} digits that were not trained on")


if __name__ == "__main__":
    main()
