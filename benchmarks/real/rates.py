"""Rate and keep on a real task: finds every row's own learning rate, and what it reaches with it.

    python benchmarks/real/rates.py --task documents --optimizers adamw
    python benchmarks/real/rates.py --task documents --table

A row is a method, a keep and an optimizer. Its rate is searched on a grid of factors of 2, by the
loss on the validation part; then it is run with more seeds at its own rate and at that of `full`,
and figures of the test part are reported. A run is a line of `--out`; one that is there is not
repeated. One process at a time may write a file.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import split
import tables
from search import Line, Row, Trial, full, trials

from pbr_jax import __version__, data
from pbr_jax.configs.common import Config
from pbr_jax.settings import load as configuration
from pbr_jax.training import from_config
from pbr_jax.training.begin import begin
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import Diverged, Observer, make_evaluate, train
from pbr_jax.training.step import StepMetrics

CONFIG = str(Path(__file__).with_name("config.py"))
RESULTS = Path("benchmarks/results")
KEEPS = (1.0, 0.4, 0.1, 0.05, 0.02, 0.01)
_EVALUATED = 64  # examples of a batch in evaluation


class _Losses(Observer):
    """Training losses of all steps, and seconds of a step between two lines."""

    def __init__(self) -> None:
        self.losses: list[jax.Array] = []
        self.seconds: list[float] = []

    def stepped(self, step: int, metrics: StepMetrics) -> None:
        self.losses.append(metrics.loss)

    def logged(self, line: dict[str, float]) -> None:
        self.seconds.append(line["seconds_per_step"])


def settings(trial: Trial) -> list[str]:
    """Of a run, on top of the configuration of its task."""
    row = trial.row
    keep = [] if row.keep is None else [f"pruning.keep={row.keep}"]
    named = [f"method={row.method}", f"optimizer.name={row.optimizer}"]
    return [
        *named,
        f"optimizer.learning_rate={trial.rate}",
        f"seed={trial.seed}",
        *keep,
        *row.extra,
    ]


def run(task: str, trial: Trial, more: Sequence[str] = ()) -> Line:
    """Trains, and evaluates the end on validation and test; `more` are settings of all runs."""
    config = configuration.load(f"{CONFIG}:{task}", [*more, *settings(trial)])
    parts, dataset = from_config.build(config), load_data(config)
    ready, _ = begin(config, parts, dataset)
    evaluate = jax.jit(parts.eval_step)
    how = (make_inputs(config), _EVALUATED, config.data.workers)
    records = {"val": dataset.test, "test": load_data(_tested(config)).test}
    evaluations = {
        name: make_evaluate(evaluate, functools.partial(data.eval_batches, part, *how))
        for name, part in records.items()
    }
    observer, began = _Losses(), time.monotonic()
    line: Line = {"task": task, **trial.row._asdict(), "rate": trial.rate, "seed": trial.seed}
    line |= {"steps": config.steps, "batch": config.batch_size}
    try:
        unseen = ready._replace(evaluate=lambda params: {"accuracy": 0.0})  # once, at the end
        final = train(unseen, (observer,)).state
    except Diverged as error:
        return line | {"diverged": str(error).splitlines()[0]}
    trained = time.monotonic() - began
    line |= {name: one(final.params) for name, one in evaluations.items()}
    late = [float(loss) for loss in observer.losses[-50:]]
    line["train_loss"] = statistics.fmean(late)
    line["seconds_per_step"] = statistics.median(observer.seconds)
    line["seconds"] = {"training": trained, "evaluation": time.monotonic() - began - trained}
    return line


def _tested(config: Config) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, test_split="test"))


def read(out: Path) -> list[Line]:
    """The lines so far; the last may be cut short by an interruption, and is then left out."""
    lines = []
    for text in out.read_text().splitlines() if out.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def sources(task: str) -> dict[str, Any]:
    """What a line is of, beside its settings: versions, data and weights."""
    config = configuration.load(f"{CONFIG}:{task}")
    assert config.data.path is not None and config.model.weights is not None
    weights = Path(config.model.weights)
    digests = {
        "data": split.digest_of(Path(config.data.path)),
        "weights": split.digest_of(weights if weights.is_dir() else weights.parent),
    }
    return {"versions": {"jax": jax.__version__, "pbr_jax": __version__}, **digests}


def study(task: str, rows: Sequence[Row], seeds: int, out: Path, more: Sequence[str] = ()) -> None:
    """Runs what the file lacks.

    Raises:
      SystemExit: the file has lines of other data or weights.
    """
    origin = sources(task)
    for line in read(out):
        for what in ("data", "weights"):
            if line[what] != origin[what]:
                raise SystemExit(f"{out}: has runs of other {what}; name another file by --out")
    while (trial := next(trials(read(out), rows, seeds), None)) is not None:
        line = run(task, trial, more) | origin
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = line.get("diverged") or f"val {line['val']}, test {line['test']}"
        print(f"{trial.row}, rate {trial.rate:g}, seed {trial.seed}: {shown}", flush=True)


def rows_of(methods: Sequence[str], keeps: Sequence[float], optimizers: Sequence[str]) -> list[Row]:
    """The rows of a study; `full` is in it whatever is named, since others begin at its rate."""
    pruned = [method for method in methods if method != "full"]
    return [full(o) for o in optimizers] + [
        Row(m, o, k) for o in optimizers for m in pruned for k in keeps
    ]


def main() -> None:
    """Runs, or prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="documents", choices=("documents", "clipart"))
    parser.add_argument("--methods", default="full,prebackrazor,lean")
    parser.add_argument("--keeps", default=",".join(map(str, KEEPS)))
    parser.add_argument("--optimizers", default="adamw,sgd")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of all runs")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/rates_TASK.jsonl")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    args = parser.parse_args()
    out = args.out or RESULTS / f"rates_{args.task}.jsonl"
    if args.table:
        print(tables.report(read(out)))
        return
    keeps = [float(keep) for keep in args.keeps.split(",")]
    rows = rows_of(args.methods.split(","), keeps, args.optimizers.split(","))
    study(args.task, rows, args.seeds, out, args.set)


if __name__ == "__main__":
    main()
