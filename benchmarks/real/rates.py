"""Rate and keep on a real task: finds every row's own learning rate, and what it reaches with it.

    python benchmarks/real/rates.py --optimizers adamw --keeps 0.1,0.02
    python benchmarks/real/rates.py --methods lean --scales 1,0.5,0.2
    python benchmarks/real/rates.py --keeps 0.02 --policies uniform,importance --intervals 20,never
    python benchmarks/real/rates.py --methods full --kernels 0
    python benchmarks/real/rates.py --keeps 0.1,0.02 --rest 1.6e-3
    python benchmarks/real/rates.py --keeps 0.1 --policies bandit,uniform --at 8e-4
    python benchmarks/real/rates.py --table
    python benchmarks/real/rates.py --table --part test_of_3000

A row is a method, an optimizer and what is set on top: keep, policy, interval, and which rate the
blocks' kernels and all other parameters have. Its rate is searched on a grid of factors of 2, by
the loss on the validation part at seed 0; then it is run with more seeds at its own rate and at
that of `full`, and figures of the test part are reported. `--at` runs rows at one rate without a
search. A run is a line of `--out`; one that is there is not repeated. One process at a time may
write a file.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import split
import tables
from config import VARIANTS
from once import CONFIG, run
from rows import Line, Row, rows_of
from search import trials

from pbr_jax import __version__
from pbr_jax.settings import load as configuration

RESULTS = Path("benchmarks/results")


def read(out: Path) -> list[Line]:
    """The lines so far; the last may be cut short by an interruption, and is then left out."""
    lines = []
    for text in out.read_text().splitlines() if out.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def of_part(lines: Sequence[Line], part: str) -> Sequence[Line]:
    """Lines whose figures `test` are those of `part`, which may be an earlier test part."""
    if part == "test":
        return lines
    return [{**line, "test": line[part]} for line in lines if part in line]


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


def study(
    task: str,
    rows: Sequence[Row],
    seeds: int,
    out: Path,
    more: Sequence[str] = (),
    shared: int | None = None,
    given: float | None = None,
) -> None:
    """Runs what the file lacks; see `trials` for `seeds`, `shared` and `given`.

    Raises:
      SystemExit: the file has lines of other data or weights.
    """
    origin = sources(task)
    for line in (line for line in read(out) if "test" in line):
        for what in ("data", "weights"):
            if line[what] != origin[what]:
                raise SystemExit(f"{out}: has runs of other {what}; name another file by --out")
    while (trial := next(trials(read(out), rows, seeds, shared, given), None)) is not None:
        line = run(task, trial, more) | origin
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = line.get("diverged") or f"val {line['val']}, test {line['test']}"
        name = f"{trial.row.name}, {trial.row.optimizer}, keep {trial.row.share:.3g}"
        print(f"{name}, rate {trial.rate:g}, seed {trial.seed}: {shown}", flush=True)


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[float]:
    return [float(word) for word in _names(text)]


def main() -> None:
    """Runs, or prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="swapped", choices=VARIANTS)
    parser.add_argument("--methods", default="prebackrazor", help="beside full")
    parser.add_argument("--optimizers", default="adamw")
    parser.add_argument("--keeps", default="", help="of every site; none = the method's own")
    parser.add_argument("--scales", default="", help="factors on the method's own keeps")
    parser.add_argument("--policies", default="", help="none = the method's own")
    parser.add_argument("--intervals", default="", help="steps between two draws, or never")
    parser.add_argument("--kernels", default="", help="factors on the rate of the blocks' kernels")
    parser.add_argument("--rest", type=float, help="rate of all but the blocks' kernels")
    parser.add_argument("--seeds", type=int, default=3, help="at a row's own rate")
    parser.add_argument("--shared", type=int, help="seeds at the rate of full; default: --seeds")
    parser.add_argument("--at", type=float, help="the rate of these rows, without a search")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of all runs")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/rates_TASK.jsonl")
    parser.add_argument("--table", action="store_true", help="print the tables and run nothing")
    parser.add_argument("--part", default="test", help="of the tables: of which test part")
    args = parser.parse_args()
    out = args.out or RESULTS / f"rates_{args.task}.jsonl"
    if args.table:
        print(tables.report(of_part(read(out), args.part)))
        return
    rows = rows_of(
        _names(args.optimizers),
        _names(args.methods),
        _numbers(args.keeps),
        _numbers(args.scales),
        _names(args.policies) or [None],
        _names(args.intervals) or [None],
        _numbers(args.kernels) or [None],
        args.rest,
    )
    study(args.task, rows, args.seeds, out, args.set, args.shared, args.at)


if __name__ == "__main__":
    main()
