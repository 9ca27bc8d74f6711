"""The accuracy study: trains every arm of `arms.py` with several seeds, all paired.

    python benchmarks/accuracy/glyphs.py && python benchmarks/accuracy/pretrain.py
    python benchmarks/accuracy/study.py --questions l,i

Each arm of a seed sees the same batches, augmentation and weights. Results are in the file after
each run, and runs that it holds are not repeated, so that an interrupted study goes on. Several
processes may write the file: `--part 0/2` and `--part 1/2` share the work. Pretraining gives other
weights on another machine, worth a point of accuracy: their runs need a file of their own (--out).
"""

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import config as settings
import glyphs
import jax
import optax
import token_rows
from arms import ARMS, QUESTIONS, Arm

from pbr_jax import __version__
from pbr_jax.compare.trials import Prepared, prepare, run_trial
from pbr_jax.configs.common import Pruning
from pbr_jax.families import KERNEL
from pbr_jax.files import write_json
from pbr_jax.settings import load as configuration
from pbr_jax.settings.resolve import architecture
from pbr_jax.training.inputs import load_data
from pbr_jax.training.sites import layers, with_layers

COMMAND = "python benchmarks/accuracy/study.py"
OUT = Path("benchmarks/results/accuracy_glyphs.json")
Step = Callable[[Any, Any], Any]
CONFIG = str(Path(__file__).with_name("config.py"))


def prepared(arm: Arm) -> Prepared:
    """The arm, compiled."""
    if arm.token_rows:
        with token_rows.sampled(*arm.token_rows):
            return prepare(configuration.load(CONFIG, arm.settings))
    one = prepare(configuration.load(CONFIG, arm.settings))
    if arm.decayed_moments:
        return one._replace(step=_decayed(one))
    if arm.dense_every:
        full = prepare(dataclasses.replace(one.config, method="full", pruning=Pruning()))
        return one._replace(step=_mixed(one, lambda i: None if i % arm.dense_every else full))
    if arm.phases:
        begins = [round(one.config.steps * begin) for begin, _ in arm.phases]
        later = [prepare(configuration.load(CONFIG, (*arm.settings, *s))) for _, s in arm.phases]

        def phase(step: int) -> Prepared | None:
            reached = [p for begin, p in zip(begins, later, strict=True) if step >= begin]
            return reached[-1] if reached else None

        return one._replace(step=_mixed(one, phase))
    return one


def _mixed(one: Prepared, other: Callable[[int], Prepared | None]) -> Step:
    """Steps of `one`, and of `other(step)` where there is one; its policies start anew."""

    def step(state: Any, batch: Any) -> Any:
        instead = other(int(state.step))
        if instead is None:
            return one.step(state, batch)
        theirs = state._replace(pruning=instead.parts.model.policies())
        trained, metrics = instead.step(theirs, batch)
        return trained._replace(pruning=state.pruning), metrics

    return step


def _decayed(one: Prepared) -> Step:
    """Steps of `one`, after which the momentum of rows that were not selected decays too."""
    momentum, model = one.config.optimizer.momentum, one.parts.model
    sizes = architecture(one.config)

    @jax.jit
    def chosen(state: Any) -> Any:
        key, _ = jax.random.split(jax.random.fold_in(state.key, state.step))  # as the step
        return model.select(key, state.pruning, state.step)[1].columns

    @functools.partial(jax.jit, donate_argnums=0)
    def decay(opt_state: Any, columns: Any) -> Any:
        trace = optax.tree.get(opt_state, "trace")
        found = layers(trace, sizes)
        decayed = {
            site: {KERNEL: _decay_others(found[site][KERNEL], rows, momentum)}
            for site, rows in columns.items()
        }
        return optax.tree.set(opt_state, trace=with_layers(trace, sizes, decayed))

    def step(state: Any, batch: Any) -> Any:
        columns = chosen(state)
        trained, metrics = one.step(state, batch)
        return trained._replace(opt_state=decay(trained.opt_state, columns)), metrics

    return step


def _decay_others(moments: jax.Array, rows: jax.Array, factor: float) -> jax.Array:
    """`[L, D, F]` times `factor`, but for `rows`, `[L, K]`."""
    return jax.vmap(lambda m, r: (factor * m).at[r].set(m[r]))(moments, rows)


def study(seeds: dict[str, int], out: Path) -> None:
    """Runs what the file lacks of so many seeds of each arm."""
    dataset, digest = None, glyphs.digest_of(Path(settings.FOLDER) / "glyphs.npz")
    weights = glyphs.digest_of(Path(settings.WEIGHTS))
    _check_weights(read(out), weights, out)
    for name, count in seeds.items():
        missing = [seed for seed in range(count) if not _has(out, name, seed)]
        if not missing:
            continue
        one = prepared(ARMS[name])
        dataset = dataset or load_data(one.config)
        for seed in missing:
            folder = Path(settings.FOLDER) / f"run-{name.replace('/', '-')}-{seed}"
            trial = run_trial(one, seed, dataset, folder)
            with _locked(out) as content:
                _check_weights(content, weights, out)
                content |= {"command": COMMAND, "versions": versions()}
                content |= {"images": digest, "weights": weights}
                runs = content.setdefault("runs", {}).setdefault(name, {})
                runs[str(seed)] = [point._asdict() for point in trial.curve]
            print(f"{name}, seed {seed}: {trial.accuracy:.2%}", flush=True)


def _check_weights(content: dict[str, Any], weights: str, out: Path) -> None:
    if content.get("weights", weights) != weights:
        raise SystemExit(
            f"--out {out}: holds runs of weights {content['weights']}, and these are {weights}; "
            "gaps between them mean nothing, so name another file"
        )


def versions() -> dict[str, str]:
    """Of what decides the results."""
    return {"jax": jax.__version__, "pbr_jax": __version__}


def read(out: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(out.read_text()) if out.is_file() else {}


def _has(out: Path, name: str, seed: int) -> bool:
    return str(seed) in read(out).get("runs", {}).get(name, {})


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[dict[str, Any]]:
    """The content, written when the context ends; one process at a time."""
    with open(Path(settings.FOLDER) / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read(out)
        yield content
        write_json(out, content)


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", default=",".join(QUESTIONS), help="letters, in this order")
    parser.add_argument("--seeds", type=int, help="instead of those of each question")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th arm, from the i-th")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    wanted: dict[str, int] = {}
    for question in (QUESTIONS[letter] for letter in args.questions.split(",")):
        for arm in question.arms:
            wanted[arm] = max(wanted.get(arm, 0), args.seeds or question.seeds)
    study(dict(list(wanted.items())[part::parts]), args.out)


if __name__ == "__main__":
    main()
