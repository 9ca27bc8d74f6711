"""One step from one state on eight devices and on one; run by tests/training/test_mesh.py.

Prints a line of JSON: {case: [relative error of the loss, of the update, same selections]}.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from fakes import batch, bert_config, config, token_batch

from pbr_jax.configs.common import Data, Mesh, Model
from pbr_jax.training import from_config

SIZE = 16
OWN = Model(image_size=8, channels=1, num_classes=4, family="own_models:mlp")


def case(name):
    """Settings and a batch: `family-method`, with `-dropout` and `-accumulated` behind it."""
    family, method, *more = name.split("-")
    make = bert_config if family == "bert" else config
    settings, data = make(method, batch_size=SIZE), batch(SIZE)
    if family == "bert":
        data = token_batch(SIZE)
    if family == "own":
        settings = dataclasses.replace(settings, model=OWN, data=Data(name="npz", path="no"))
        data = data | {"image": np.tile(data["image"], (1, 2, 2, 1))}
    model, optimizer = settings.model, settings.optimizer
    if family != "own":
        model = dataclasses.replace(model, dropout=0.2 if "dropout" in more else 0.0)
    if "accumulated" in more:
        optimizer = dataclasses.replace(optimizer, accumulation_steps=2)
    return dataclasses.replace(settings, model=model, optimizer=optimizer), data


def step(settings, data, devices):
    """The state before and after a step, and its metrics."""
    settings = dataclasses.replace(settings, mesh=Mesh(data=devices))
    parts = from_config.build(settings)
    params, extra, _ = parts.model.begin(0, None)
    noise = lambda a: a + 0.02 * jax.random.normal(jax.random.key(a.size), a.shape)  # noqa: E731
    state = from_config.new_state(settings, parts, jax.tree.map(noise, params), extra)
    place = parts.placement
    places = place.places(SIZE, settings.optimizer.accumulation_steps)
    batch = {name: array[places] for name, array in data.items()}
    return state, *place.jit(parts.train_step)(place.state(state), place.batch(batch))


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def compare(name):
    settings, data = case(name)
    before, one, metrics = step(settings, data, 1)
    _, many, shared = step(settings, data, 8)
    first, second = (flat(state.params) - flat(before.params) for state in (one, many))
    loss = abs(float(shared.loss) - float(metrics.loss)) / abs(float(metrics.loss))
    update = float(np.linalg.norm(second - first) / np.linalg.norm(first))
    counts = [[site.counts for site in s.pruning.columns.values()] for s in (one, many)]
    same = all(map(np.array_equal, *counts)) if counts[0] else True
    return [loss, update, bool(same)]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # for Optax's Adam
    print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
