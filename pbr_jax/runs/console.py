"""The console of a run: memory first, then progress, evaluations and the outcome.

On a terminal progress is a live bar; into a file or a pipe it is a line now and then. Everything is
printed through one `Console`, so that a message never tears the bar. Nobody need read it: a full
disk or a terminal that is gone costs the text, and a pipe without a reader is told to the run.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import jax
import rich.console
import rich.progress
import rich.table
from rich.text import Text

from pbr_jax.gpu import MemoryReport
from pbr_jax.measure.memory import memory_limit, peak_in_use
from pbr_jax.measure.text import (
    format_bytes,
    format_clock,
    format_ratio,
    format_seconds,
    three_digits,
)
from pbr_jax.memory.use import MemoryUse
from pbr_jax.runs.progress import make_bar
from pbr_jax.training.loop import Observer
from pbr_jax.training.state import TrainState
from pbr_jax.training.step import StepMetrics


def memory_in_use() -> str:
    """The largest memory use so far: of the accelerator, or of this process where there is none."""
    peak = peak_in_use()
    if peak is not None:
        return f"GPU {format_bytes(peak)}"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return f"RAM {format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}"


class _Outlet:
    """A stream for `rich` whose faults cost the text, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.has_reader = True  # False once a pipe has lost its other end

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            if self.has_reader:
                action()
        except BrokenPipeError:
            self.has_reader = False
        except (OSError, ValueError):  # a full disk, a terminal that is gone, a closed file
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Console(Observer):
    """Prints one run. Use as a context manager around the loop: leaving it ends the bar.

    Do not call it from inside a signal handler: let the handler set a flag and the loop call
    `message`. Ordinary prints inside the context appear above the bar.
    """

    def __init__(
        self,
        steps: int,  # of the whole run
        *,
        file: TextIO | None = None,  # standard output by default
        live: bool | None = None,  # whether to draw a bar; None: if `file` is a terminal
        memory: Callable[[], str] = memory_in_use,  # asked now and then
        clock: Callable[[], float] = time.monotonic,
        pause: float = 10.0,  # seconds between two lines of progress where there is no bar
    ):
        file = sys.stdout if file is None else file
        self._outlet = _Outlet(file)
        outlet: Any = self._outlet  # what `rich` asks of a stream
        self._out = rich.console.Console(file=outlet, highlight=False, force_terminal=live)
        self._live = file.isatty() and not self._out.is_dumb_terminal if live is None else live
        self._steps = steps
        self._memory, self._clock, self._pause = memory, clock, pause
        self._last_line = -float("inf")
        self._bar: rich.progress.Progress | None = None
        self._task = rich.progress.TaskID(0)

    def __enter__(self) -> Self:
        if self._live:
            fixed = rich.table.Column(no_wrap=True)
            note = rich.progress.TextColumn(
                "{task.fields[note]}", markup=False, table_column=fixed.copy()
            )
            self._bar = make_bar(self._out, _Pace(table_column=fixed), note)
            self._task = self._bar.add_task("", total=self._steps, note="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def has_reader(self) -> bool:
        """False once the pipe that it prints into has lost its other end."""
        return self._outlet.has_reader

    def message(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style), soft_wrap=True)

    def last_words(self, text: str) -> None:
        """Prints how a run ended; on standard error where standard output has no reader."""
        self.message(text)
        if not self.has_reader:
            with contextlib.suppress(OSError, ValueError):
                print(text, file=sys.stderr, flush=True)

    def header(
        self, title: str, method: str, memory: MemoryUse, full: MemoryUse | None = None
    ) -> None:
        """Prints a title, what a step of this method needs, and what one of `full` would need."""

        def row(name: str, cells: Iterable[str], style: str = "") -> None:
            line = f"{name:<20}" + "".join(f"{cell:>12}" for cell in cells)
            self.message(line.rstrip(), style)

        own = (*memory, memory.total)
        self.message(title, "bold")
        row("memory", [*MemoryUse._fields, "total"], "dim")
        row(method, map(format_bytes, own), "green")
        if full is not None:
            others = (*full, full.total)
            row("full fine-tuning", map(format_bytes, others))
            row("", map(format_ratio, own, others), "green")

    def compiled(self, need: MemoryReport) -> None:
        """Prints what the compiler plans for a step, before the first one."""
        device, limit = jax.local_devices()[0].device_kind, memory_limit()
        self.message(
            f"{'compiled step':<20}temp {format_bytes(need.temp_bytes)}, peak "
            f"{format_bytes(need.peak_bytes)} with state and batch, on {device}"
            + (f", where JAX has {format_bytes(limit)}" if limit else "")
            + (f"; {format_bytes(need.host_bytes)} on its host" if need.host_bytes else "")
        )

    def began(self, step: int, state: TrainState) -> None:
        """Sets the bar to where a resumed run goes on, which does not count for its pace."""
        if self._bar is not None:
            self._bar.reset(self._task, completed=step)

    def stepped(self, step: int, metrics: StepMetrics) -> None:
        """Moves the bar. Cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def logged(self, metrics: dict[str, float]) -> None:
        """Shows the metrics of a step: `step`, `loss`, `accuracy` and `seconds_per_step`."""
        step = int(metrics["step"])
        figures = " ".join(_figures(metrics))
        # A bar takes every line, a file only some, and the last.
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=f"{figures} {self._memory()}")
            return
        now = self._clock()
        if now - self._last_line < self._pause and step < self._steps:
            return
        self._last_line = now
        seconds = metrics["seconds_per_step"]
        left = format_clock((self._steps - step) * seconds)
        speed = f"{three_digits(1 / seconds)} it/s ETA {left}"
        self.message(f"{self._place(step)}  {speed}  {figures}  {self._memory()}")

    def evaluated(
        self, step: int, state: TrainState, test: dict[str, float], improved: bool
    ) -> None:
        """Prints an evaluation: `loss` and `accuracy` on the test split after `step` steps."""
        figures = "".join(f"  test {text}" for text in _figures(test))
        best, style = ("  best so far", "green") if improved else ("", "")
        self.message(f"{self._place(step)}{figures}{best}", style)

    def _place(self, step: int) -> str:
        return f"step {step:>{len(str(self._steps))}}/{self._steps}"

    def finish(
        self,
        summary: Mapping[str, Any],
        workdir: Path | str,
        next_command: tuple[str, str],
        full: MemoryUse | None = None,
    ) -> None:
        """Prints the outcome, where it is, and what to try next: a command and what it shows.

        `summary` is as in `summary.json`, with `seconds`, the duration of the run, if known. Its
        activations are compared with those of `full` fine-tuning.
        """
        took = f" in {format_seconds(summary['seconds'])}" if summary.get("seconds") else ""
        pace = summary["seconds_per_step"]
        paced = "" if pace is None else f", {format_seconds(pace)} per step"
        lines = [("done", f"{summary['method']}, {summary['steps']} steps{took}{paced}")]
        if summary.get("perplexity") is not None:
            shown = f"perplexity {three_digits(summary['perplexity'])}"
            lines.append(("test", f"{shown}, accuracy {summary['accuracy']:.1%}"))
        elif summary["accuracy"] is not None:
            lines.append(("accuracy", f"{summary['accuracy']:.1%} on the test split"))
        # Memory is what this package is for: it is compared.
        activations = summary["activation_bytes"]
        text = f"activations {format_bytes(activations)}"
        if full is not None and (ratio := format_ratio(activations, full.activations)):
            text += f", {ratio} than the {format_bytes(full.activations)} of full fine-tuning"
        if summary["compiled_peak_bytes"] is not None:
            text += f"\n{'':10}compiled peak {format_bytes(summary['compiled_peak_bytes'])}"
        command, shows = next_command
        lines += [("memory", text), ("report", str(Path(workdir) / "report.html"))]
        lines.append(("next", f"{command}\n{'':10}{shows}"))
        self.message("")
        for name, line in lines:
            self._out.print(Text.assemble((f"{name:<9} ", "bold"), line), soft_wrap=True)


_RATES = ("step", "loss", "grad_norm", "learning_rate", "seconds_per_step", "examples_per_second")


def _figures(metrics: Mapping[str, float]) -> list[str]:
    """The loss, and what a task counts beside it: shares, but for the perplexity."""
    others = {name: value for name, value in metrics.items() if name not in _RATES}
    texts = (
        f"{name} {three_digits(value) if name == 'perplexity' else f'{value:.1%}'}"
        for name, value in others.items()
    )
    return [f"loss {metrics['loss']:.4f}", *texts]


class _Pace(rich.progress.ProgressColumn):
    """`23.1 it/s ETA 0:41`, from the steps of the last half minute."""

    def render(self, task: rich.progress.Task) -> Text:
        if task.finished:
            return Text(f"in {format_seconds(task.finished_time or 0)}", style="dim")
        if not task.speed or task.time_remaining is None:
            return Text("compiling" if task.speed is None else "", style="dim")
        left = format_clock(task.time_remaining)
        return Text(f"{three_digits(task.speed)} it/s ETA {left}", style="cyan")
