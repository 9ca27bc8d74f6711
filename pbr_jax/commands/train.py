"""Fine-tunes a model as a configuration says.

    pbr train                                                        the digits, on any machine
    pbr train --config configs/digits.py --config.method=full --workdir runs/full

The same command again resumes where the run was.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from pbr_jax.configs.common import Config
from pbr_jax.files import user_path
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.memory.budget import explain_out_of_memory, settle
from pbr_jax.memory.use import MemoryUse, memory_use
from pbr_jax.report.page import write_report
from pbr_jax.runs import metrics, run
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.console import Console
from pbr_jax.runs.history import PruningHistory
from pbr_jax.runs.signals import StopSignals
from pbr_jax.settings import flags
from pbr_jax.settings import load as settings
from pbr_jax.settings.flags import Arguments
from pbr_jax.settings.unused import unused
from pbr_jax.settings.variants import fully_fine_tuned
from pbr_jax.training import from_config
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    parser.add_argument(
        "--workdir",
        type=user_path,
        metavar="DIR",
        help="where the run is kept, default runs/NAME-METHOD; the run that is there is resumed",
    )


def main(args: argparse.Namespace) -> int:
    """Trains or resumes; returns 0, or the exit code of the signal that stopped the run."""
    began = time.monotonic()
    arguments: Arguments = args.arguments
    config = arguments.config
    workdir: Path = args.workdir or flags.default_workdir(config)
    checkpoints = Checkpointer(workdir / "checkpoints", config.keep_checkpoints, print)
    # A run that goes on keeps its settings but for those that may change.
    saved = run.saved_settings(workdir) if checkpoints.steps() else None
    config, notes = settle(config, saved)
    notes += settings.check_resume(saved, config, workdir) if saved is not None else []
    notes += unused(config)
    next_command = flags.next_command(arguments._replace(config=config), args.workdir)

    # Faults of the data and of their preparation are told at once.
    dataset, _ = settings.at_once(lambda: load_data(config), lambda: make_inputs(config))
    notes += dataset.notes
    if config.data.max_test is not None:
        notes.append(f"evaluation on the first {len(dataset.test)} test examples only")
    parts = from_config.build(config)
    # Memory is on the screen before anything is compiled.
    use, full_use = memory_use(config), memory_use(fully_fine_tuned(config))
    full = None if use == full_use else full_use
    with explain_out_of_memory(config), StopSignals() as stop, checkpoints:
        console = Console(config.steps)
        console.header(headline(config, parts), config.method, use, full)
        if run.is_complete(config, workdir, checkpoints):
            console.message(f"this run is complete; delete {workdir} to start it afresh")
            summary = json.loads((workdir / run.SUMMARY).read_text())
            console.finish(summary, workdir, next_command, full)
            return 0
        started = run.start(config, workdir, parts, dataset, checkpoints)
        for note in notes + started.notes:
            console.message(note)
        compiled = compiled_memory(started.train_step)
        console.compiled(compiled)
        history = PruningHistory(workdir, started.resumed)
        writer = metrics.MetricsWriter(workdir, started.resumed)
        with console, writer:
            outcome = train(started.run, (writer, console, history), lambda: stop.requested)
    # A signal leaves a checkpoint and no summary, so that the run counts as unfinished.
    if outcome.stopped:
        assert stop.received is not None
        console.message(
            f"{stop.received.name}: saved checkpoint {outcome.step}; the same command resumes"
        )
        return stop.exit_code

    summary = summarize(config, workdir, use, full_use, compiled.peak_bytes)
    summary["seconds"] = time.monotonic() - began
    metrics.write_summary(workdir, summary)
    write_report(workdir)
    console.finish(summary, workdir, next_command, full)
    return 0


def headline(config: Config, parts: from_config.Parts) -> str:
    """The run in one line."""
    params = from_config.state_shapes(config, parts).params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{config.name} · {config.steps} steps of {config.batch_size} examples ·"
        f" {count / 1e6:.2f} M parameters · {jax.devices()[0].device_kind}"
    )


def summarize(
    config: Config, workdir: Path, use: MemoryUse, full: MemoryUse, compiled_peak_bytes: int
) -> dict[str, Any]:
    """The content of `summary.json`; accuracy and speed are of the whole run, resumed or not."""
    lines = metrics.read_metrics(workdir)
    seconds = statistics.median(r["seconds_per_step"] for r in lines if r["split"] == "train")
    accuracies = [r["accuracy"] for r in lines if r["split"] == "test"]
    return {
        "method": config.method,
        "accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "steps": config.steps,
        "seconds_per_step": seconds,
        "examples_per_second": config.batch_size / seconds,
        "activation_bytes": use.activations,
        "compiled_peak_bytes": compiled_peak_bytes,
        "memory": use._asdict(),
        "full_memory": full._asdict(),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
    }
