"""One run of the study of rate and keep: trains a row at a rate, and evaluates its end.

The rate is an argument of the compiled step, so that a row is compiled once for all its rates and
seeds. The forward pass of all methods is that of `full`, so that evaluation is compiled once.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rows import Line, Row, Trial

from pbr_jax import data
from pbr_jax.configs.common import Config
from pbr_jax.data.records import Batch, ChosenRecords
from pbr_jax.families import KERNEL
from pbr_jax.settings import load as configuration
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import Diverged, Figures, Observer, make_evaluate, train
from pbr_jax.training.step import StepMetrics, TrainStep, make_train_step

CONFIG = str(Path(__file__).with_name("config.py"))
_EVALUATED = 64  # examples of a batch in evaluation
_TOKENS = 4


class _Losses(Observer):
    """Training losses of all steps, and seconds of a step between two lines."""

    def __init__(self) -> None:
        self.losses: list[jax.Array] = []
        self.seconds: list[float] = []

    def stepped(self, step: int, metrics: StepMetrics) -> None:
        self.losses.append(metrics.loss)

    def logged(self, line: dict[str, float]) -> None:
        self.seconds.append(line["seconds_per_step"])


def run(task: str, trial: Trial, more: Sequence[str] = ()) -> Line:
    """Trains, and evaluates the end on validation and test; `more` are settings of all runs."""
    config = configuration.load(f"{CONFIG}:{task}", [*more, *trial.settings()])
    began = time.monotonic()
    step, evaluations = _step(task, trial.row, tuple(more)), _evaluations(task, tuple(more))
    rate = jnp.float32(trial.rate)
    parts = from_config.build(config)
    ready, _ = begin(
        config, parts, _data(task, "val"), train_step=lambda state, batch: step(state, batch, rate)
    )
    observer, prepared = _Losses(), time.monotonic()
    line: Line = {"task": task, **trial.row._asdict(), "rate": trial.rate, "seed": trial.seed}
    line |= {"steps": config.steps, "batch": config.batch_size}
    try:
        unseen = ready._replace(
            evaluate=lambda variables: {parts.task.best: 0.0}
        )  # once, at the end
        final = train(unseen, (observer,)).state
    except Diverged as error:
        return line | {"diverged": str(error).splitlines()[0]}
    trained = time.monotonic()
    line |= {name: evaluate(final.variables) for name, evaluate in evaluations.items()}
    line["train_loss"] = statistics.fmean(float(loss) for loss in observer.losses[-50:])
    line["seconds_per_step"] = statistics.median(observer.seconds)
    spent = {
        "preparation": prepared - began,
        "training": trained - prepared,
        "evaluation": time.monotonic() - trained,
    }
    return line | {"seconds": {name: round(seconds, 1) for name, seconds in spent.items()}}


@functools.lru_cache(maxsize=4)
def _step(task: str, row: Row, more: tuple[str, ...]) -> Callable[..., Any]:
    """The compiled step of a row, `(state, batch, rate) -> (state, metrics)`."""
    config = configuration.load(f"{CONFIG}:{task}", [*more, *row.settings()])

    def step(state: Any, batch: Any, rate: jax.Array) -> Any:
        return step_at(config, rate, row.kernels, row.rest)(state, batch)

    return jax.jit(step, donate_argnums=0)


def step_at(
    config: Config, rate: Any, kernels: float | None = None, rest: float | None = None
) -> TrainStep:
    """The step of a configuration at another rate; see `Row` for `kernels` and `rest`."""
    all_but_kernels = rate if rest is None else rest
    optimizer = dataclasses.replace(config.optimizer, learning_rate=all_but_kernels)
    parts = from_config.build(dataclasses.replace(config, optimizer=optimizer))
    if kernels is None and rest is None:
        return parts.train_step
    of_kernels = (1.0 if kernels is None else kernels) * (rate / all_but_kernels)

    def factor(path: Any, _: Any) -> Any:
        names = [entry.key for entry in path]
        return of_kernels if "blocks" in names and names[-1] == KERNEL else 1.0

    return make_train_step(
        *(parts.model, parts.mover),
        rates=functools.partial(jax.tree_util.tree_map_with_path, factor),
    )


@functools.cache
def _data(task: str, part: str) -> data.Dataset:
    return load_data(configuration.load(f"{CONFIG}:{task}", [f"data.test_split={part}"]))


@functools.cache
def _evaluations(task: str, more: tuple[str, ...]) -> dict[str, Callable[[Any], Figures]]:
    config = configuration.load(f"{CONFIG}:{task}", [*more, "method=full"])
    evaluate = jax.jit(from_config.build(config).eval_step)
    found = {}
    for part in ("val", "test"):
        records = by_length(_data(task, part).test, make_inputs(config))
        how = (records, make_inputs(config), _EVALUATED, config.data.workers)
        batches = [without_padding(batch) for batch in data.eval_batches(*how)]
        found[part] = make_evaluate(evaluate, batches.__iter__)
    return found


def by_length(records: Any, prepare: Any) -> Any:
    """Texts in the order of their lengths; images as they are."""
    if "lengths" not in prepare([records[0]], None):
        return records
    lengths = prepare([records[row] for row in range(len(records))], None)["lengths"]
    return ChosenRecords(records, lengths.argsort(kind="stable"))


def without_padding(batch: Batch) -> Batch:
    """A batch of texts without columns that are padding of all, in steps of `_TOKENS`."""
    if "lengths" not in batch:
        return batch
    longest = -(-int(batch["lengths"].max()) // _TOKENS) * _TOKENS
    cut = {name: batch[name][:, :longest] for name in ("tokens", "token_types")}
    return {**batch, **cut}
