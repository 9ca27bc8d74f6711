"""A train step of a ViT in stock Flax NNX, as it is and pruned as it stands, in turn.

    JAX_PLATFORMS=cpu python benchmarks/nnx_vit.py --out benchmarks/results/nnx_vit_cpu.json

ViT-S/16 on images of 224 pixels, float32, AdamW; `pbr_jax.prune` at keep 0.1 with the bandit, and
`pbr_jax.train_step` around it. The share is that of the pruned step within each round. Also the
seconds in which `prune` and the whole steps are traced and compiled; the 12 blocks are unrolled.
"""

import argparse
import shlex
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pbr_jax
from pbr_jax.bench import report
from pbr_jax.measure import text, timing

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 384, 12, 6, 16, 224, 100


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and around a skip connection."""

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
    """float32 `[B, 224, 224, 3]` -> logits `[B, 100]`."""

    def __init__(self, rngs: nnx.Rngs):
        size = (PATCH, PATCH)
        self.embedding = nnx.Conv(3, WIDTH, size, strides=size, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((1, (SIDE // PATCH) ** 2, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embedding(images).reshape(len(images), -1, WIDTH) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


def loss_fn(model: ViT, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def stock_step(model: ViT, tx: optax.GradientTransformation):
    """The first state, and a step of a loop without pruning."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def step(state, key, images, labels):
        params, opt_state = state

        def loss(params):
            return loss_fn(nnx.merge(graph, params, rest), images, labels)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return (params, tx.init(params)), step


def main() -> int:
    """Traces, compiles, times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", type=float, default=0.1, help="fraction of the columns")
    report.add_arguments(parser, rounds=15)
    args = parser.parse_args()
    report.check_rounds(args.rounds)
    args.command_line = shlex.join(["python", *sys.argv])

    model = ViT(nnx.Rngs(0))
    images = timing.random_like(jax.ShapeDtypeStruct((args.batch, SIDE, SIDE, 3), jnp.float32), 0)
    labels = jnp.asarray(np.arange(args.batch) % CLASSES, jnp.int32)
    seconds: dict[str, float] = {}

    def traced(name, function, *given):
        start = time.perf_counter()
        made = function(*given)
        seconds[name] = time.perf_counter() - start
        return made

    pruned = traced("prune", lambda: pbr_jax.prune(model, images, keep=args.keep))
    tx = optax.adamw(1e-4)
    train = pbr_jax.train_step(pruned, loss_fn, tx, packed=True)
    stock, dense = stock_step(model, tx)
    key, runs, losses = jax.random.key(0), {}, {}
    for name, state, step in (("stock", stock, dense), ("pruned", train.init(model), train.step)):
        jitted = jax.jit(step, donate_argnums=0)
        found = traced(f"{name}, traced", jitted.trace, state, key, images, labels)
        compiled = traced(f"{name}, compiled", found.lower().compile)
        # Both begin with copies of the same parameters, since a step takes what it is given.
        held = [jax.tree.map(jnp.copy, state), 0]

        def keep(result, held=held, name=name):
            held[0], held[1] = result[0], held[1] + 1
            losses.setdefault(name, float(result[1]))

        def arguments(held=held):
            return held[0], jax.random.fold_in(key, held[1]), images, labels

        runs[name] = timing.Run(compiled, arguments, keep, chained=True)
    times = timing.in_turn(runs, args.rounds)
    if times.refused:
        raise SystemExit(f"a step failed: {times.refused}")
    share = timing.ratio(times.seconds["pruned"], times.seconds["stock"])
    measured = {
        "batch": args.batch,
        "keep": args.keep,
        "sites": len(pruned.sites),
        "first_loss": losses,
        "seconds": times.seconds,
        "share": share._asdict(),
        "preparation_seconds": seconds,
    }
    rows = [
        {"step": name, "seconds": text.format_seconds(timing.spread(own).median)}
        for name, own in times.seconds.items()
    ]
    before = [{"before": n, "seconds": text.format_seconds(s)} for n, s in seconds.items()]
    says = f"\npruned takes {share.median:.3f} of stock, quartiles {share.low:.3f} {share.high:.3f}"
    return report.finish(args, measured, report.table(rows), says, report.table(before))


if __name__ == "__main__":
    sys.exit(main())
