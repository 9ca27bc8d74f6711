"""A decoder in stock Flax Linen with `nn.scan` and `nn.remat`, pruned as it stands, on real text.

    python examples/linen_decoder.py

It learns the bytes of the language reference that comes with Python. Rematerialised blocks keep
their inputs only, so pruning and remat give time and memory at once: the report of the compiler for
a card that need not be there is printed if the extra `gpu-compiler` is installed.
"""

import argparse
import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import pbr_jax
from pbr_jax.gpu import GpuCompilerMissing

WIDTH, DEPTH, HEADS, HIDDEN, LENGTH = 128, 4, 4, 384, 64
BATCH, VOCABULARY = 16, 256


class Block(nn.Module):
    """Causal attention and SwiGLU; `(x, None) -> (x, None)`, as `nn.scan` has it."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        h = nn.RMSNorm()(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]), dtype=bool)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=False)(h, mask=mask)
        h = nn.RMSNorm()(x)
        gate, up = (nn.Dense(HIDDEN, use_bias=False, name=name)(h) for name in ("gate", "up"))
        return x + nn.Dense(WIDTH, use_bias=False, name="down")(nn.silu(gate) * up), None


class Decoder(nn.Module):
    """int32 `[B, N]` -> logits `[B, N, 256]`."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        position = self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(VOCABULARY, WIDTH)(tokens) + position[: tokens.shape[1]]
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=DEPTH,
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(VOCABULARY, name="head")(nn.RMSNorm()(x))


def main() -> None:
    """Prunes, trains and tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep", type=float, default=0.1, help="fraction of the columns")
    args = parser.parse_args()

    text = "\n".join(pydoc_data.topics.topics.values()).encode()
    corpus = np.frombuffer(text, np.uint8).astype(np.int32)
    held_out = len(corpus) // 10  # at the end, so that no window is in both

    def windows(generator: np.random.Generator, low: int, high: int) -> np.ndarray:
        starts = generator.integers(low, high - LENGTH - 1, BATCH)
        return np.stack([corpus[i : i + LENGTH + 1] for i in starts])

    model = Decoder()
    tokens = jnp.zeros((BATCH, LENGTH), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]

    def loss_fn(params, window):
        logits = model.apply({"params": params}, window[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

    pruned = pbr_jax.prune(model, tokens, keep=args.keep)
    try:
        print(pbr_jax.report(pruned, tokens, card="rtx4090"))
    except GpuCompilerMissing:
        print(pbr_jax.report(pruned, tokens))

    train = pbr_jax.train_step(pruned, loss_fn, optax.adamw(2e-3))
    state, step = train.init(params), jax.jit(train.step, donate_argnums=0)
    generator, key = np.random.default_rng(0), jax.random.key(1)
    for i in range(1, args.steps + 1):
        window = windows(generator, 0, len(corpus) - held_out)
        state, loss = step(state, jax.random.fold_in(key, i), window)
        if i % 50 == 0 or i == args.steps:
            print(f"step {i}/{args.steps}  loss {loss:.4f}", flush=True)

    evaluate = jax.jit(loss_fn)
    test = [windows(generator, len(corpus) - held_out, len(corpus)) for _ in range(8)]
    loss = np.mean([evaluate(state.params, window) for window in test])
    print(f"test loss {loss:.3f} nats a byte; {np.log(VOCABULARY):.3f} is guessing")


if __name__ == "__main__":
    main()
