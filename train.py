"""Fine-tunes a model as a configuration says.

    python train.py                                                  the digits run, on any machine
    python train.py --config configs/digits.py --config.method=full --workdir runs/full

The same command again resumes where the run was. `--help` lists every setting.
"""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

from pbr_jax import data
from pbr_jax.configs.common import Config, Plan, Pruning
from pbr_jax.gpu import memory as compiled_memory
from pbr_jax.gpu import use_cpu_without_gpu
from pbr_jax.memory.budget import OutOfMemory, explain_out_of_memory, settle
from pbr_jax.memory.use import MemoryUse
from pbr_jax.report.page import write_report
from pbr_jax.runs import metrics
from pbr_jax.runs.checkpoints import Checkpointer, CheckpointError
from pbr_jax.runs.console import Console
from pbr_jax.runs.history import PruningHistory
from pbr_jax.runs.run import save_class_names
from pbr_jax.runs.signals import StopSignals
from pbr_jax.settings import load as configuration
from pbr_jax.settings.flags import Arguments, next_command, run_cli
from pbr_jax.training import from_config
from pbr_jax.training.inputs import load_data, make_inputs
from pbr_jax.training.loop import Diverged, Intervals, make_evaluate, train


def main(args: Arguments) -> int:
    """Trains or resumes; returns 0, or the exit code of the signal that stopped the run."""
    use_cpu_without_gpu()
    config, workdir, began = args.config, args.workdir, time.monotonic()
    checkpoints = Checkpointer(workdir / "checkpoints", config.keep_checkpoints, print)
    saved = saved_settings(workdir) if checkpoints.steps() else None
    config, notes = settle(config, saved)
    args = args._replace(config=config)
    notes += configuration.check_resume(saved, config, workdir) if saved is not None else []

    dataset, inputs, workers = load_data(config), make_inputs(config), config.data.workers
    batches = data.TrainBatches(dataset.train, inputs, config.batch_size, config.seed, workers)
    notes += dataset.notes
    if config.data.max_test is not None:
        notes.append(f"evaluation on the first {len(dataset.test)} test examples only")
    parts = from_config.build(config)
    shapes = from_config.state_shapes(config, parts)
    use = from_config.memory_use(config)
    full_use = from_config.memory_use(fully_fine_tuned(config))
    full = None if use == full_use else full_use

    with explain_out_of_memory(config), StopSignals() as stop, checkpoints:
        restored = checkpoints.restore(shapes)
        console = Console(config.steps, start=0 if restored is None else restored.step)
        console.header(headline(config, shapes.params), config.method, use, full)
        if restored is None:
            params, remarks = from_config.init_params(config, parts.model)
            state, start, best = from_config.new_state(config, parts, params), 0, -1.0
            notes += remarks
        else:
            state, start, best = restored.state, restored.step, restored.data_state["best"]
            batches.restore(restored.data_state["batches"])
            notes.append(f"resumed from checkpoint {start}")
        checkpoints.check_space(checkpoints.bytes_needed(shapes))
        if start == config.steps and (workdir / "summary.json").is_file():
            console.message(f"this run is complete; delete {workdir} to start it afresh")
            summary = json.loads((workdir / "summary.json").read_text())
            console.finish(summary, workdir, next_command(args), full)
            return 0
        workdir.mkdir(parents=True, exist_ok=True)
        metrics.write_json(workdir / "config.json", configuration.to_dict(config))
        save_class_names(workdir, dataset.class_names)
        for note in notes:
            console.message(note)

        train_step = jax.jit(parts.train_step, donate_argnums=0)
        compiled = train_step.lower(shapes, from_config.batch_specs(config)).compile()
        console.compiled(compiled_memory(compiled))
        history = PruningHistory(workdir, None if restored is None else start)
        writer = metrics.MetricsWriter(workdir, None if restored is None else start)
        with console, writer:
            outcome = train(
                state,
                start,
                config.steps,
                train_step=compiled,
                evaluate=make_evaluate(
                    jax.jit(parts.eval_step),
                    lambda: data.eval_batches(dataset.test, inputs, config.batch_size, workers),
                ),
                batches=batches,
                schedule=parts.schedule,
                batch_size=config.batch_size,
                best=best,
                every=Intervals(config.log_every, config.eval_every, config.checkpoint_every),
                checkpoints=checkpoints,
                history=history,
                writer=writer,
                console=console,
                stop=stop,
            )
    if outcome.stopped:
        assert stop.received is not None
        console.message(
            f"{stop.received.name}: saved checkpoint {outcome.step}; the same command resumes"
        )
        return stop.exit_code

    summary = summarize(config, workdir, use, full_use, compiled_memory(compiled).peak_bytes)
    summary["seconds"] = time.monotonic() - began
    metrics.write_summary(workdir, summary)
    write_report(workdir)
    console.finish(summary, workdir, next_command(args), full)
    return 0


def saved_settings(workdir: Path) -> dict[str, Any]:
    """The settings with which the run in `workdir` was started."""
    saved = workdir / "config.json"
    if not saved.is_file():
        raise ValueError(
            f"{workdir} has checkpoints but no config.json, so they may be of another run;"
            " take another --workdir"
        )
    return json.loads(saved.read_text())


def fully_fine_tuned(config: Config) -> Config:
    """The same run by full fine-tuning, to compare with."""
    return dataclasses.replace(config, method="full", pruning=Pruning(), plan=Plan())


def headline(config: Config, params: Any) -> str:
    """What is about to run, in one line."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0].device_kind
    return " · ".join(
        (
            config.name,
            f"{config.steps} steps of {config.batch_size} examples",
            f"{count / 1e6:.2f} M parameters",
            device,
        )
    )


def summarize(
    config: Config, workdir: Path, use: MemoryUse, full: MemoryUse, compiled_peak_bytes: int
) -> dict[str, Any]:
    """The content of `summary.json`; accuracy and speed are of the whole run, resumed or not."""
    lines = metrics.read_metrics(workdir)
    seconds = statistics.median(r["seconds_per_step"] for r in lines if r["split"] == "train")
    return {
        "method": config.method,
        "accuracy": [r["accuracy"] for r in lines if r["split"] == "test"][-1],
        "best_accuracy": max(r["accuracy"] for r in lines if r["split"] == "test"),
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


ERRORS = (ValueError, OSError, CheckpointError, Diverged, OutOfMemory)

if __name__ == "__main__":
    sys.exit(run_cli(main, errors=ERRORS))
