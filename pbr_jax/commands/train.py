"""Fine-tunes a model as a configuration says.

    pbr train                                                        the digits, on any machine
    pbr train --config configs/digits.py --config.method=full --workdir runs/full

The same command again resumes where the run was.
"""

import argparse
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pbr_jax.configs.common import Config
from pbr_jax.files import user_path
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.hosts import ALONE, AgreedStop, Job, joined
from pbr_jax.memory.budget import explain_out_of_memory, settle
from pbr_jax.memory.room import check_room
from pbr_jax.memory.use import MemoryUse, memory_use
from pbr_jax.reports.page import write_report
from pbr_jax.runs import held, history, metrics, run
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.claim import Claim, look
from pbr_jax.runs.console import Console
from pbr_jax.runs.events import Events
from pbr_jax.runs.extras import Extras
from pbr_jax.runs.ownership import Guest, Ownership
from pbr_jax.runs.signals import StopSignals
from pbr_jax.runs.start import Started, start
from pbr_jax.settings import flags
from pbr_jax.settings import saved as settings
from pbr_jax.settings.flags import Arguments
from pbr_jax.settings.load import at_once
from pbr_jax.settings.resolve import chunk_notes, rate_notes
from pbr_jax.settings.unused import unused
from pbr_jax.settings.variants import fully_fine_tuned
from pbr_jax.training import from_config
from pbr_jax.training.inputs import input_notes, load_data, make_inputs, settled
from pbr_jax.training.loop import Observer, Run, train
from pbr_jax.training.mesh import settled_devices
from pbr_jax.training.task import better


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    parser.add_argument(
        "--workdir",
        type=user_path,
        metavar="DIR",
        help="where the run is kept, default runs/NAME-METHOD; the run that is there is resumed",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="begin a run where the folder holds something else, and say what it replaces; try one"
        " that seems to need more memory than there is",
    )


def main(args: argparse.Namespace) -> int:
    """Trains or resumes; returns 0, or the exit code of the signal that stopped the run."""
    workdir = args.workdir or flags.default_workdir(args.arguments.config)
    # The work directory is this process's own, or its job's, from before it is looked at.
    with joined(workdir / run.CHECKPOINTS) as job:
        with Ownership(workdir) if job.first else Guest(workdir) as owner:
            owner.check_shared(job.shared(owner.mark))
            return fine_tune(args, owner, job)


def fine_tune(args: argparse.Namespace, owner: Ownership | Guest, job: Job = ALONE) -> int:
    """Trains or resumes in the folder of `owner`, as `main`."""
    began = time.monotonic()
    arguments: Arguments = args.arguments
    workdir = owner.folder
    config, devices = settled_devices(arguments.config)
    # Of a job the first process speaks and writes.
    screen = sys.stdout if job.first else open(os.devnull, "w")  # noqa: SIM115  # to the end
    console = Console(config.steps, file=screen)
    say = console.message
    checkpoints = Checkpointer(workdir / run.CHECKPOINTS, config.keep_checkpoints, say, job)
    # A run that goes on keeps its settings but for those that may change.
    claim = Claim.of_first(job, lambda: look(workdir, checkpoints.steps(), args.force))
    config, chosen = settle(config, claim.saved)
    notes = owner.notes + claim.notes + devices + chosen
    if claim.saved is not None:
        notes += settings.check_resume(claim.saved, config, workdir)
    config, more = settled(config, claim.saved)
    notes += more + unused(config)
    next_command = flags.next_command(arguments, config.method, args.workdir)

    # A run that goes on reads its own tokenizer and keeps its classes.
    own, classes = config, None
    if claim.saved is not None:
        notes += held.check_tokenizer(config, workdir)
        own = held.with_own_tokenizer(config, workdir)
        classes = run.read_classes(workdir, config.model.num_classes)
    # Faults of memory, of the data and of their preparation are told at once.
    tight, dataset, inputs = at_once(
        lambda: check_room(config, force=args.force),
        lambda: load_data(own, classes),
        lambda: make_inputs(own),
    )
    notes += chunk_notes(config) + rate_notes(config) + tight
    notes += dataset.notes + input_notes(inputs, dataset.train)
    parts = from_config.build(config)
    # Memory is on the screen before anything is compiled.
    use, full_use = memory_use(config), memory_use(fully_fine_tuned(config))
    full = None if use == full_use else full_use
    extras = Extras(say)
    with explain_out_of_memory(config), StopSignals(say) as stop, checkpoints:
        console.header(headline(config, parts), config.method, use, full)
        goes_on = claim.saved is not None
        ended = goes_on and job.first and run.finished(config, workdir, checkpoints, say)
        if summary := job.shared(ended or None):
            say(f"this run is complete; delete {workdir} to start it afresh")
            console.finish(summary, workdir, next_command, full)
            return 0
        begin = stop.during("the compilation", start)
        started: Started = begin(config, owner, claim, parts, dataset, checkpoints)
        for note in notes + started.notes:
            say(note)
        compiled = compiled_memory(started.train_step)
        console.compiled(compiled)
        going = started.run._replace(
            evaluate=stop.during("the evaluation and the next step", started.run.evaluate),
            save=stop.during("the checkpoint", job.patiently(started.run.save)),
            wait=stop.during("the checkpoint", job.patiently(started.run.wait)),
        )

        def received() -> signal.Signals | None:
            if not console.has_reader:
                stop.request(signal.SIGPIPE)
            return stop.received

        writers = _writers(extras, workdir, started.resumed, say) if job.first else []
        job.expect_steps(config.mesh.timeout)
        with console, extras:
            stopping = AgreedStop(job, received, stop.request)
            outcome = train(going, (owner, *writers, console), stopping)
        job.expect_steps(None)
        owner.check()
        # A run that was at its end and had only lost its summary.
        test = outcome.test
        if not (test or outcome.stopped):
            test = started.run.evaluate(outcome.state.variables)
    # A signal leaves a checkpoint and no summary, so that the run counts as unfinished.
    if outcome.stopped:
        assert stop.received is not None
        if lost := extras.report():
            say(lost)
        saved_step = f"saved checkpoint {outcome.step}; the same command resumes"
        console.last_words(f"{stop.received.name}: {saved_step}")
        return stop.exit_code
    if not job.first:
        return 0

    lines: list[dict[str, Any]] = []
    with extras.attempt(metrics.FILE):
        lines = metrics.read_metrics(workdir)
    measured = (use, full_use, compiled.peak_bytes)
    summary = summarize(config, lines, test, started.run, *measured)
    # How long the processes before this one took is not known.
    summary["seconds"] = time.monotonic() - began if started.resumed is None else None
    with extras.attempt(metrics.SUMMARY):
        metrics.write_summary(workdir, summary)
    with extras.attempt("report.html"):
        write_report(workdir)
    console.finish(summary, workdir, next_command, full)
    if lost := extras.report():
        say(lost)
    return 0


def _writers(
    extras: Extras, workdir: Path, resumed: int | None, say: Callable[[str], None]
) -> list[Observer]:
    """What writes the files beside the checkpoints; without any of them the run goes on."""
    writers = [
        extras.observe(metrics.FILE, lambda: metrics.MetricsWriter(workdir, resumed, say)),
        extras.observe("TensorBoard's events", lambda: Events(workdir, resumed)),
        extras.observe(history.FILE, lambda: history.PruningHistory(workdir, resumed, say)),
    ]
    extras.at_end("metrics.csv", lambda: metrics.write_csv(workdir))
    return writers


def headline(config: Config, parts: from_config.Parts) -> str:
    """The run in one line."""
    params = from_config.state_shapes(config, parts).params
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    kind, number = jax.devices()[0].device_kind, config.mesh.data or 1
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"{config.name} · {config.steps} steps of {config.batch_size} examples ·"
        f" {count / 1e6:.2f} M parameters · {f'{number} x ' if number > 1 else ''}{kind}{processes}"
    )


def summarize(
    config: Config,
    lines: Sequence[Mapping[str, Any]],
    test: Mapping[str, float],
    run: Run,
    use: MemoryUse,
    full: MemoryUse,
    compiled_peak_bytes: int,
) -> dict[str, Any]:
    """The content of `summary.json`; its best and its speed are of the whole run, resumed or not.

    Args:
      lines: those of `metrics.jsonl`, as far as they are there.
      test: the evaluation after the last step.
      run: as it began in this process.
    """
    name = run.criterion
    known = [r[name] for r in lines if r["split"] == "test" and r.get(name) is not None]
    if run.best is not None:
        known.append(run.best)
    best = test[name]
    for value in known:
        best = value if better(name, value, best) else best
    paces = [r["seconds_per_step"] for r in lines if r.get("seconds_per_step")]
    seconds = statistics.median(paces) if paces else None
    return {
        "method": config.method,
        **{one: value if math.isfinite(value) else None for one, value in test.items()},
        f"best_{name}": best,
        "steps": config.steps,
        "seconds_per_step": seconds,
        "examples_per_second": None if seconds is None else config.batch_size / seconds,
        "activation_bytes": use.activations,
        "compiled_peak_bytes": compiled_peak_bytes,
        "memory": use._asdict(),
        "full_memory": full._asdict(),
        "device": jax.devices()[0].device_kind,
        "versions": {"jax": jax.__version__},
    }
