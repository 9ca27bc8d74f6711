"""Runs methods on the same data, seeds and steps, and prints what each costs and reaches.

    pbr compare                                      every method on the digits, one seed
    pbr compare --methods full,remat,lean --seeds 5 --config.steps=600

Memory is the plan of the compiler for this device or, on a GPU, the peak that a process of its own
measured; time is taken in turn with full fine-tuning, ratios within each round. The same command
goes on where an interrupted one was. Table, CSV, JSON and plots are in the folder --out.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import rich.box
import rich.console
import rich.live
import rich.progress
import rich.table

from pbr_jax import __version__, data
from pbr_jax.compare import trials
from pbr_jax.compare.steps import memory_in_own_process, time_against
from pbr_jax.compare.table import HEADER, Comparison, Result, cells, csv_text
from pbr_jax.configs.common import SEED, Config, within
from pbr_jax.data.listing import digest, listing
from pbr_jax.files import user_path, write_text
from pbr_jax.gpu import gpu_is_present
from pbr_jax.measure.text import markdown
from pbr_jax.memory.room import check_room, offload_fault
from pbr_jax.memory.use import offloaded_bytes
from pbr_jax.methods import METHODS, with_variants
from pbr_jax.runs.ownership import Ownership
from pbr_jax.runs.progress import Terminal, make_bar
from pbr_jax.settings import flags
from pbr_jax.settings import saved as configuration
from pbr_jax.settings.load import ConfigError, at_once
from pbr_jax.settings.ties import tie_faults
from pbr_jax.settings.variants import for_family, split_methods, with_method
from pbr_jax.training.begin import train_batches
from pbr_jax.training.inputs import input_notes, load_data, make_inputs, settled
from pbr_jax.training.mesh import settled_devices

_WIDE = 104  # characters that the whole table takes
_PAPERS = [name for name in METHODS if name.startswith("prebackrazor")]
_DEFAULT = with_variants(
    {"remat": ["/chunks1"], **dict.fromkeys(_PAPERS, ("/js70", "/js50", "/js30"))}
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    names = "names, joined by commas; default: all of the model"
    parser.add_argument("--methods", help=names)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method, default 1")
    parser.add_argument("--out", type=user_path, help="folder; default runs/compare-NAME")
    shown = "print JSON, and progress on standard error"
    parser.add_argument("--json", action="store_true", help=shown)


def main(args: argparse.Namespace) -> int:
    config = args.arguments.config
    usual = [m for m in for_family(config, _DEFAULT) if not offload_fault(with_method(config, m))]
    methods, faults = split_methods(args.methods or ",".join(usual))
    faults += (wrong := flags.number_faults("--seeds", within(1, 1000), args.seeds))
    if not wrong and not SEED.holds(config.seed + args.seeds - 1):
        faults.append(
            f"--seeds {args.seeds}: the last is {config.seed + args.seeds - 1}; set a smaller"
            f" --config.seed: a seed must be {SEED.phrase}"
        )
    if faults:
        raise ValueError("\n".join(faults))
    out = args.out or Path("runs") / f"compare-{config.name}"
    with Ownership(out, "--out") as owner:
        for note in owner.notes:
            print(note, file=sys.stderr)
        return compare(args, methods, out)


def compare(args: argparse.Namespace, methods: Sequence[str], out: Path) -> int:
    """Compares methods in the folder `out`."""
    config, notes = settled_devices(args.arguments.config)
    config, more = settled(config)
    notes += more
    runs = {method: with_method(config, method, keep_plan=True) for method in ("full", *methods)}
    # What the run may be, another method may not: its parts of the batch, for one.
    faults = [f"--methods {m}: {fault}" for m, run in runs.items() for fault in tie_faults(run, ())]
    if faults:
        raise ConfigError(faults, "the command line")
    # Before this process touches the GPU, whose memory it would take.
    peaks = {m: memory_in_own_process(runs[m])["running"] for m in methods if gpu_is_present()}
    dataset, inputs = at_once(lambda: load_data(config), lambda: make_inputs(config))
    comparison = Comparison(out / "comparison.json", _setting(config, dataset))
    missing = [run for method, run in runs.items() if not comparison.has_cost(method)]
    tight = at_once(*(functools.partial(check_room, run) for run in missing))
    notes += [*dataset.notes, *input_notes(inputs, dataset.train), *itertools.chain(*tight)]
    for note in notes:
        print(note, file=sys.stderr)
    for method, peak in peaks.items():
        if peak is not None:
            comparison.record_cost(method, measured_peak_bytes=peak)

    @functools.cache  # a method is compiled once, and only if something of it is missing
    def prepared(method: str) -> trials.Prepared:
        return trials.prepare(runs[method])

    # What the file has already is not measured again.
    with _display(comparison, methods, args.json) as progress:
        costs = progress.add_task("time and memory", total=len(runs))
        for method in runs:
            if not comparison.has_cost(method):
                _record_cost(comparison, prepared("full"), prepared(method), dataset)
            progress.advance(costs)
        # Seed by seed, so that an interrupted comparison has whole seeds to pair.
        seeds = range(config.seed, config.seed + args.seeds)
        pairs = [(method, seed) for seed in seeds for method in methods]
        training = progress.add_task("training", total=len(pairs) * config.steps)
        for i, (method, seed) in enumerate(pairs):
            if not comparison.has_trial(method, seed):
                progress.update(training, description=f"{method}, seed {seed}")
                folder = out / "checkpoints" / f"{method.replace('/', '-')}-{seed}"

                def on_step(step: int, done: int = i * config.steps) -> None:
                    progress.update(training, completed=done + step)

                trial = trials.run_trial(prepared(method), seed, dataset, folder, on_step)
                comparison.record_trial(method, seed, trial)
            progress.update(training, completed=(i + 1) * config.steps)
    with contextlib.suppress(OSError):  # somebody else has something there
        (out / "checkpoints").rmdir()
    results = comparison.results(methods)
    _write(comparison, results, out)
    if args.json:
        print(json.dumps({**comparison.content["setting"], "rows": [r._asdict() for r in results]}))
    else:
        print(f"{_how_measured(comparison)}\nTable, CSV, JSON and plots: {out}")
    return 0


def _setting(config: Config, dataset: data.Dataset) -> dict[str, Any]:
    """All that makes two results comparable."""
    tree = configuration.to_dict(config)
    lists = {"train": listing(dataset.train), "test": listing(dataset.test)}
    seen = {"classes": list(dataset.class_names), "examples": digest(lists)}
    for name in ("method", "name", "seed", "log_every", "checkpoint_every", "keep_checkpoints"):
        del tree[name]
    versions = {"jax": jax.__version__, "pbr_jax": __version__}
    device = jax.local_devices()[0].device_kind
    where = {"versions": versions, "device": device, "cores": os.cpu_count()}
    return {"config": tree, "data": seen, **where}


def _record_cost(
    comparison: Comparison, full: trials.Prepared, one: trials.Prepared, dataset: data.Dataset
) -> None:
    # All methods step on the first batch of the data.
    batch = next(train_batches(one.config, dataset, one.parts.placement))
    seconds, to_full = time_against(full, one, batch)
    comparison.record_cost(
        one.config.method,
        activation_bytes=one.use.activations,
        host_bytes=offloaded_bytes(one.config),
        compiled_peak_bytes=one.peak_bytes,
        seconds_per_step=seconds.median,
        time_to_full=1.0 if one is full else to_full.median,
        time_to_full_quartiles=(to_full.low, to_full.high),
    )


def _how_measured(comparison: Comparison) -> str:
    setting, measured = comparison.content["setting"], "measured_peak_bytes"
    live = any(measured in cost for cost in comparison.content["costs"].values())
    return (
        f"Device: {setting['device']}, jax {setting['versions']['jax']}. Peak memory: "
        + ("measured, each in a process of its own" if live else "the compiler's plan of the step")
        + ". Time: steps in turn with full fine-tuning, medians; ratios within rounds.\n"
        "Accuracy: at the last step, mean ± standard deviation over seeds; gap: paired by seed,"
        " ± half of the 95 % interval."
    )


@contextlib.contextmanager
def _display(
    comparison: Comparison, methods: Sequence[str], as_json: bool
) -> Iterator[rich.progress.Progress]:
    """The table, which fills as results come in, above a progress bar."""
    console = Terminal(file=sys.stderr if as_json else sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    progress = make_bar(console)

    def table() -> rich.table.Table:
        return _table(comparison.results(methods), narrow=console.width < _WIDE)

    # Into a file or a pipe goes the finished table alone.
    if not console.is_terminal:
        yield progress  # not started: it prints nothing
        console.print(table())
        return
    with rich.live.Live(
        console=console, get_renderable=lambda: rich.console.Group(table(), progress)
    ):
        yield progress
        for task in progress.task_ids:
            progress.remove_task(task)


def _table(results: Sequence[Result], narrow: bool) -> rich.table.Table:
    # A narrow terminal has no room for what the files have, too.
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    hidden = ("saved", "gap to full") if narrow else ()
    shown = [i for i, title in enumerate(HEADER) if title not in hidden]
    for i in shown:
        table.add_column(HEADER[i], justify="right" if i else "left", no_wrap=True)
    for result in results:
        row = cells(result)
        table.add_row(*(row[i] for i in shown))
    return table


def _write(comparison: Comparison, results: Sequence[Result], out: Path) -> None:
    from pbr_jax.compare import figures

    table = markdown([HEADER, *map(cells, results)])
    write_text(out / "comparison.md", f"{table}\n\n{_how_measured(comparison)}\n")
    write_text(out / "comparison.csv", csv_text(results))
    figures.frontier(results, out / "frontier.png")
    methods = [result.method for result in results]
    figures.curves(comparison.content["trials"], methods, out / "curves.png")
