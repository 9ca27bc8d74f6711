"""How much of the gradient the chosen columns hold, by policy, along a run of the study.

    python benchmarks/accuracy/energy_policies.py

At every 20th step the whole gradient of the coming batch is computed beside the pruned one. Energy
is the sum of the squared norms of its rows; captured is the share in the rows that the policy
chose, and best the share of the K largest rows, which no policy can know beforehand.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arms import ARMS
from study import CONFIG, versions

from pbr_jax.compare.trials import prepare
from pbr_jax.families import KERNEL
from pbr_jax.files import write_json
from pbr_jax.plans import SITES
from pbr_jax.settings import load as configuration
from pbr_jax.settings.resolve import architecture
from pbr_jax.training import from_config
from pbr_jax.training.begin import train_batches
from pbr_jax.training.inputs import load_data
from pbr_jax.training.sites import layers

OUT = Path("benchmarks/results/accuracy_energy.json")
POLICIES = {"uniform": "uniform", "bandit": "0.1", "importance": "importance"}
EVERY = 20


def trace(arm: str, seed: int) -> list[dict[str, Any]]:
    """Captured and best share of every site, mean over blocks, along one run."""
    config = configuration.load(CONFIG, (*ARMS[arm].settings, f"seed={seed}"))
    one, full = prepare(config), from_config.build(configuration.load(CONFIG, ["method=full"]))
    model, sizes = one.parts.model, architecture(config)
    key = jax.random.key(0)  # of dropout, which is off
    _, everything = full.model.select(key, full.model.policies(), jnp.asarray(0))

    @jax.jit
    def shares(state, batch):
        select_key, _ = jax.random.split(jax.random.fold_in(state.key, state.step))  # as the step
        _, selection = model.select(select_key, state.pruning, state.step)
        inputs = ({}, (), everything, batch, key)
        grads = jax.grad(lambda p: full.model.loss(p, *inputs)[0])(state.params)
        kernels = layers(grads, sizes)
        found = {}
        for site in sizes.sites:
            energy = jnp.sum(jnp.square(kernels[site][KERNEL]), axis=-1)
            columns = selection.columns[site]
            captured = jnp.take_along_axis(energy, columns, axis=-1).sum(-1)
            best = jax.lax.top_k(energy, columns.shape[-1])[0].sum(-1)
            whole = energy.sum(-1)
            found[site] = {"captured": captured / whole, "best": best / whole}
        return jax.tree.map(jnp.mean, found)

    params, _, _ = model.begin(config.seed)
    state = from_config.new_state(config, one.parts, params)
    batches, records = train_batches(config, load_data(config)), []
    for step in range(config.steps):
        batch = next(batches)
        if step and step % EVERY == 0:  # the new head is zero at step 0, and all gradients below
            sites = jax.tree.map(float, shares(state, batch))
            records.append({"step": step, "sites": sites})
        state, _ = one.step(state, batch)
    return records


def main() -> None:
    """Prints means over the second half of the run, and writes all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    results = {name: trace(arm, args.seed) for name, arm in POLICIES.items()}
    command = f"python benchmarks/accuracy/energy_policies.py --seed {args.seed}"
    write_json(args.out, {"command": command, "versions": versions(), "policies": results})
    for name, records in results.items():
        for site in SITES:
            late = [r["sites"][site] for r in records[len(records) // 2 :]]
            means = {kind: np.mean([r[kind] for r in late]) for kind in ("captured", "best")}
            print(f"{name} {site}: {means['captured']:.1%} of {means['best']:.1%}")


if __name__ == "__main__":
    main()
