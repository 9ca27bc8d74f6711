"""Who could know which rows of a weight gradient are large: along a dense run of any configuration.

    python benchmarks/accuracy/energy.py --config benchmarks/real/config.py:documents --steps 100
    python benchmarks/accuracy/energy.py --config benchmarks/accuracy/config.py

The run is full fine-tuning, so that no chooser decides what the others see. In every step it
records, for every column d of every site, the squared norm of its row of the gradient (its energy)
and that of its column of the input x, of the batch and of the first example. `choosers.py` then
asks what share of the energy the K columns of each chooser hold. Families whose blocks are those of
`pbr_jax.ops.half_blocks` can be recorded.
"""

import argparse
import contextlib
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import choosers
import energy_tables
import jax
import jax.numpy as jnp
import numpy as np

from pbr_jax import __version__
from pbr_jax.configs.common import Config
from pbr_jax.families import KERNEL
from pbr_jax.files import write_json
from pbr_jax.ops import half_blocks, linear
from pbr_jax.plans import SITES, budget_for
from pbr_jax.settings import load as configuration
from pbr_jax.settings.resolve import architecture
from pbr_jax.training import from_config
from pbr_jax.training.begin import train_batches
from pbr_jax.training.inputs import load_data
from pbr_jax.training.sites import layers

PARTS = (energy_tables.table, energy_tables.depths, energy_tables.spread)
BEHIND_NORM = {"qkv": "norm1", "fc1": "norm2"}  # sites whose input a LayerNorm makes
Record = dict[str, dict[str, np.ndarray]]
"""`{site: {"energy", "norms", "sample", "affine": [steps, L, D]}}`."""


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """Blocks traced within it have, in place of a kernel's gradient, what is recorded of it.

    That is `[D, F]` like the gradient: energies, squared norms of x and those of the first example
    in its first three columns, and zeros.
    """

    def recorded(params: Any, saved: jax.Array, dy: jax.Array, settings: Any) -> Any:
        exact = linear.parameter_gradients(params, saved, dy, settings)
        square = jnp.square(saved.astype(jnp.float32))
        columns = [
            jnp.sum(jnp.square(exact[KERNEL].astype(jnp.float32)), axis=-1),
            jnp.sum(square, axis=tuple(range(square.ndim - 1))),
            jnp.sum(square[0], axis=tuple(range(square.ndim - 2))),
        ]
        told = jnp.zeros_like(exact[KERNEL])
        return exact | {KERNEL: told.at[:, :3].set(jnp.stack(columns, axis=-1).astype(told.dtype))}

    half_blocks.linear = types.SimpleNamespace(  # type: ignore[assignment]
        **vars(linear) | {"parameter_gradients": recorded}
    )
    try:
        yield
    finally:
        half_blocks.linear = linear  # type: ignore[assignment]


def record(config: Config) -> Record:
    """A run of `config`, which is full fine-tuning, and what its steps had in every column."""
    parts = from_config.build(config)
    sizes = architecture(config)
    step = jax.jit(parts.train_step, donate_argnums=0)
    drop = jax.random.key(config.seed)

    @jax.jit
    def look(state: Any, batch: Any) -> dict[str, dict[str, jax.Array]]:
        _, selection = parts.model.select(drop, state.pruning, state.step)
        inputs = ({}, state.extra, selection, batch, drop)
        told = jax.grad(lambda p: parts.model.loss(p, *inputs)[0])(state.params)
        found = {}
        for site, layer in layers(told, sizes).items():
            kinds = jnp.moveaxis(layer[KERNEL][..., :3], -1, 0).astype(jnp.float32)
            found[site] = dict(zip(("energy", "norms", "sample"), kinds, strict=True))
            found[site]["affine"] = _affine(state.params, site, kinds[1])
        return found

    dataset = load_data(config)
    params, extra, _ = parts.model.begin(config.seed, dataset.class_names)
    state = from_config.new_state(config, parts, params, extra)
    batches = train_batches(config, dataset)
    seen = []
    for _ in range(config.steps):
        batch = next(batches)
        with _recorded():  # traced at the first step
            seen.append(jax.device_get(look(state, batch)))
        state, _ = step(state, batch)
    return jax.tree.map(lambda *steps: np.stack(steps), *seen)


def trace_of(config: Config, file: Path | None) -> Record:
    """The record in a file; where there is none, of a run of `config`, and then in the file."""
    if file is not None and file.is_file():
        trace: Record = {}
        for name, array in np.load(file).items():
            site, kind = name.split("/")
            trace.setdefault(site, {})[kind] = array
        return trace
    trace = record(config)
    if file is not None:
        named = {f"{site}/{kind}": a for site, told in trace.items() for kind, a in told.items()}
        np.savez(file, **named)
    return trace


def _affine(params: Any, site: str, like: jax.Array) -> jax.Array:
    """`gamma^2 + beta^2` of the LayerNorm before a site, `[L, D]`; zeros where there is none."""
    norm = params.get("blocks", {}).get(BEHIND_NORM.get(site, ""))
    if norm is None:
        return jnp.zeros_like(like)
    return jnp.square(norm["scale"]) + jnp.square(norm["bias"])


def study(trace: Record, keep: float, first: int) -> dict[str, Any]:
    """`{chooser: {site: {"share": [L], ...}}}`, means over the steps from `first` on."""
    results: dict[str, Any] = {}
    for site, told in trace.items():
        budget = budget_for(keep, told["energy"].shape[-1])
        for name, found in choosers.compare(told, budget, first).items():
            results.setdefault(name, {})[site] = found
    return results


def main() -> None:
    """Records, compares, prints, and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="benchmarks/accuracy/config.py", help="FILE:VARIANT")
    parser.add_argument("--steps", type=int, help="of the run, instead of those of the file")
    parser.add_argument("--keeps", default="0.1,0.05,0.02")
    parser.add_argument("--first", type=int, default=30, help="the first step that counts")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE on top")
    parser.add_argument("--trace", type=Path, help="file of the record; read where it is there")
    parser.add_argument("--out", type=Path, help="file of results")
    args = parser.parse_args()
    steps = [f"steps={args.steps}"] if args.steps else []
    config = configuration.load(args.config, ["method=full", *steps, *args.set])
    trace = trace_of(config, args.trace)
    sites = [site for site in SITES if site in trace]
    first, found = min(args.first, config.steps - 1), {}
    for keep in args.keeps.split(","):
        results = found[keep] = study(trace, float(keep), first)
        print(f"### keep {keep}", *(part(results, sites) for part in PARTS), sep="\n\n")
    if args.out:
        versions = {"jax": jax.__version__, "pbr_jax": __version__}
        known = {"config": args.config, "steps": config.steps, "first": first}
        shown = jax.tree.map(functools.partial(np.round, decimals=5), found)
        lists = jax.tree.map(lambda a: np.asarray(a).tolist(), shown)
        write_json(args.out, known | {"versions": versions, "keeps": lists})


if __name__ == "__main__":
    main()
