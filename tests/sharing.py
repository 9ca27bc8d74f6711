"""One step from one state on eight devices and on one; run by tests/training/test_mesh.py.

Prints a line of JSON: {case: [relative errors of the loss, of the update and of what policies
learn, same selections, fraction of the state's bytes on a device]}.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from fakes import SMALL, batch, bert_config, config, token_batch

from pbr_jax.configs.common import Data, Mesh, Model
from pbr_jax.training import cuts, from_config

SIZE = 16
OWN = Model(image_size=8, channels=1, num_classes=4, family="own_models:mlp")
MIXER = dataclasses.replace(SMALL, family="toy_mixer:FAMILY", heads=None)


def case(name):
    """Settings and a batch, of `family-method` with any of these behind it.

    `-dropout`, `-accumulated`, `-clipped` (AdamW, its gradient clipped), `-split` (each of two
    groups of four devices splits the parameters), `-weighted` (rows are divided by p),
    `-moments` (they split the moments alone), `-bfloat16`.
    """
    family, method, *more = name.split("-")
    make = bert_config if family == "bert" else config
    settings, data = make(method, batch_size=SIZE), batch(SIZE)
    if family == "bert":
        data = token_batch(SIZE)
    if family == "own":
        settings = dataclasses.replace(settings, model=OWN, data=Data(name="npz", path="no"))
        data = data | {"image": np.tile(data["image"], (1, 2, 2, 1))}
    if family == "mixer":  # which leaves its parameters and gradients to the trainer
        settings = dataclasses.replace(settings, model=MIXER)
    model, optimizer = settings.model, settings.optimizer
    if family != "own":
        dtype = "bfloat16" if "bfloat16" in more else "float32"
        model = dataclasses.replace(model, dropout=0.2 if "dropout" in more else 0.0, dtype=dtype)
    if "words" in more:  # more than a batch has: devices exchange the rows that it touches
        model = dataclasses.replace(model, vocab_size=400)
    if "accumulated" in more:
        optimizer = dataclasses.replace(optimizer, accumulation_steps=2)
    if "clipped" in more:
        optimizer = dataclasses.replace(optimizer, name="adamw", clip_norm=0.05, eps=1e-3)
    pruning = dataclasses.replace(settings.pruning, importance_weighting="weighted" in more)
    shards = Mesh(data=8, fsdp=4 if {"split", "moments"} & {*more} else 1)
    if "moments" in more:
        shards = dataclasses.replace(shards, split="moments")
    return dataclasses.replace(
        settings, model=model, optimizer=optimizer, pruning=pruning, mesh=shards
    ), data


def step(settings, data):
    """The state before and after a step, its metrics, the step's evaluation and outputs."""
    parts = from_config.build(settings)
    params, extra, _ = parts.model.begin(0, None)
    noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    state = from_config.new_state(settings, parts, jax.tree.map(noise, params), extra)
    place = parts.placement
    placed = place.state(state)
    places = place.places(SIZE, settings.optimizer.accumulation_steps)
    shared = {name: array[places] for name, array in data.items()}
    after, metrics = place.jit(parts.train_step)(placed, place.batch(shared))
    assert jax.tree.map(lambda a: a.sharding, after.params) == jax.tree.map(
        lambda a: a.sharding, placed.params
    )
    batch = data | {"mask": np.ones(SIZE, bool)}
    outputs = place.each(parts.model.outputs)(jax.device_get(after.variables), data)
    return state, after, metrics, place.jit(parts.eval_step)(after.variables, batch), outputs


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def held(state):
    """The fraction of a state's bytes that the first device has."""
    leaves = [a for a in jax.tree.leaves((state.params, state.opt_state)) if a.size]
    own = sum(a.addressable_shards[0].data.nbytes for a in leaves)
    return own / sum(a.nbytes for a in leaves)


def policies_of(state):
    """Those of columns, and JointSPAR's of tensors."""
    spar = [own for named in state.tensors.values() for own in named.values()]
    return [*state.columns.values(), *spar]


def error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def compare(name):
    settings, data = case(name)
    before, one, *figures, outputs = step(dataclasses.replace(settings, mesh=Mesh(data=1)), data)
    _, many, *shared, others = step(settings, data)
    assert error(flat(others), flat(outputs)) < 2e-2  # of states that differ, bfloat16 too
    first, second = (flat(state.params) - flat(before.params) for state in (one, many))
    (metrics, tested), (seen, shared_test) = figures, shared
    losses = [
        [float(m.loss), float(t["loss"])] for m, t in ((seen, shared_test), (metrics, tested))
    ]
    loss = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    norm = abs(float(seen.grad_norm) - float(metrics.grad_norm)) / float(metrics.grad_norm)
    update = max(error(second, first), norm)
    policies = [policies_of(state.pruning) for state in (one, many, before)]
    if not policies[0]:
        return [loss, update, 0.0, True, held(many)]
    learned, taught, start = (flat([own.probs for own in found]) for found in policies)
    same = all(map(np.array_equal, *([own.counts for own in found] for found in policies[:2])))
    moved = error(taught - start, learned - start) if np.any(learned != start) else 0.0
    return [loss, update, moved, same, held(many)]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    cuts.SPLIT_FROM = 256  # bytes: of the small models here, all kernels
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for Optax's Adam
    print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
