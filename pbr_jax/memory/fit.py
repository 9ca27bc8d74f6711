"""What a train step needs on a card, by every method, and the largest batch that fits.

The figures are of the real train step, compiled for the card by XLA's GPU compiler (`compiled`),
or, where that is not installed, of a formula (`estimated`). Both are a function `Config ->
MemoryReport`, so that everything else is the same for both.
"""

import dataclasses
import functools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from pbr_jax import methods
from pbr_jax.configs.common import Config, Plan
from pbr_jax.gpu import Card, MemoryReport, compile_for, memory
from pbr_jax.memory import cost
from pbr_jax.memory.use import MemoryUse, tree_bytes
from pbr_jax.plans import Keep
from pbr_jax.training import from_config

Measure = Callable[[Config], MemoryReport]

memory_use = functools.lru_cache(256)(from_config.memory_use)  # tracing takes a second

LARGEST_BATCH = 2**16  # nothing above it is tried
_MARGIN = 0.01  # of the room, left by a largest batch that is interpolated
_NEAR = 0.05  # of the room: from a peak that is measured so near, the secant leads to the answer
_MOST_TRIALS = 6


class Row(NamedTuple):
    """A line of the table; None is what could not be found out, and `fault` says why.

    Attributes:
      method: name, with its suffixes.
      config: the run by this method.
      use: bytes by purpose, as read off the program.
      need: of one step, arguments included.
      fits: whether the peak is within the room.
      largest_batch: that fits, tried as this one was; 0 if none does.
      time: of a step, as a fraction of full fine-tuning.
      measured: whether a benchmark measured the time; else it is arithmetic.
      fault: one line.
    """

    method: str
    config: Config
    use: MemoryUse | None = None
    need: MemoryReport | None = None
    fits: bool | None = None
    largest_batch: int | None = None
    time: float | None = None
    measured: bool = False
    fault: str = ""

    @property
    def indivisible(self) -> bool:
        """Whether the batch does not go into the parts that this method runs one by one."""
        return self.config.batch_size % batch_granule(self.config) != 0


def method_names(config: Config) -> list[str]:
    """Every method and plan, and `config.method` first where it is another; without JointSPAR.

    JointSPAR saves time and no memory, so that it stays the run's own choice.
    """
    own = config.method.removesuffix(joint_spar_suffix(config.method))
    return [*methods.METHODS] if own in methods.METHODS else [own, *methods.METHODS]


def joint_spar_suffix(method: str) -> str:
    """`/js50` or the like at the end of a method's name, or nothing."""
    return method[method.find("/js") :] if "/js" in method else ""


def with_method(config: Config, method: str) -> Config:
    """The same run by `method`, with those of its settings that mean something there.

    Settings of `plan` stay where the method is the same but for its suffixes.
    """
    if method == config.method:
        return config
    same = method.partition("/")[0] == config.method.partition("/")[0]
    pruning, preset = config.pruning, methods.resolve(method).plan
    if not same:
        pruning = dataclasses.replace(
            pruning,
            keep=pruning.keep if preset.keep != Keep(1.0) else None,
            policy=pruning.policy if preset.kind("linear").selects else None,
        )
    plan = config.plan if same else Plan()
    return dataclasses.replace(config, method=method, pruning=pruning, plan=plan)


def compiled(card: Card) -> Measure:
    """Compiles the train step for `card`.

    Without a device XLA takes 95 % of 80 % of the memory that it is told of for its own, and beyond
    that tries to rematerialise: for long, and here in vain, since what is kept is kept on purpose.
    So it is told of more, for all of the card's memory to be within its limit.

    Many kernels of a step are those of the same method at another batch, or of other methods. XLA
    keeps them in a file and compiles what is new; one for each thread, since it does not lock it.
    """
    folder = tempfile.mkdtemp(prefix="pbr-fit-")
    card = dataclasses.replace(card, memory_bytes=round(card.memory_bytes / (0.95 * 0.80)))

    def measure(config: Config) -> MemoryReport:
        parts = from_config.build(config)
        args = (from_config.state_shapes(config, parts), from_config.batch_specs(config))
        kernels = str(Path(folder, str(threading.get_ident())))
        options = {"xla_gpu_kernel_cache_file": kernels}
        return memory(
            compile_for(parts.train_step, args, card, donate_argnums=0, compiler_options=options)
        )

    weakref.finalize(measure, shutil.rmtree, folder, ignore_errors=True)
    return measure


def estimated(config: Config) -> MemoryReport:
    """A formula for what `compiled` finds out; within 15 % of its peak for ViT-B/16, batch 128.

    Temporary memory is what the forward pass saves, the gradients, and transients: four arrays
    `[B, N, D]` of the whole batch, and, of the chunk of the batch that a block has in hand, 3.5
    arrays `[B, N, F]` of the MLP (six where the largest elements are searched for), with what
    a plan that recomputes makes again. The factors are read off compiled steps.
    """
    parts, use = from_config.build(config), memory_use(config)
    state = tree_bytes(from_config.state_shapes(config, parts))
    plan, sizes = parts.method.plan, from_config.model_sizes(config)
    micro = config.batch_size // config.optimizer.accumulation_steps
    token = micro * from_config.num_tokens(config) * jnp.dtype(config.model.dtype).itemsize
    in_hand = plan.kind("linear").in_hand * sizes.mlp_dim
    in_hand += cost.recomputed_channels(plan, sizes.width, sizes.mlp_dim)
    transients = token * (4 * sizes.width + in_hand / plan.batch_chunks)
    copies = 1 if config.optimizer.accumulation_steps == 1 else 2  # sum, and a part of it
    return MemoryReport(
        argument_bytes=state + tree_bytes(from_config.batch_specs(config)),
        output_bytes=state,
        temp_bytes=copies * use.gradients + use.activations + round(transients),
        alias_bytes=state,
    )


def find_rows(
    config: Config,
    names: Sequence[str],
    card: Card,
    reserve_bytes: int,
    measure: Measure,
    done: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """The rows of `names`, in their order; several are found at a time.

    Args:
      config: the run; each row has it by another method.
      names: methods.
      card: whose memory has to hold the peak and the reserve.
      reserve_bytes: left free for the driver, libraries and fragments.
      measure: `compiled(card)`, the same with a cache, or `estimated`.
      done: called with each row, on one of several threads.
    """

    def find(name: str) -> Row:
        row, _ = find_row(config, name, card, reserve_bytes, measure)
        done(row)
        return row

    # One more than processors: a compilation is not parallel in all of its parts.
    with ThreadPoolExecutor(min(4, (os.cpu_count() or 1) + 1)) as pool:
        # Pruned methods come last and take longest: begun first, they end beside the others.
        rows = list(pool.map(find, reversed(names)))[::-1]
    ratios = {row.method: row.time for row in rows if row.time is not None}
    times, measured = cost.calibrated(ratios, card, config)
    return [r._replace(time=times.get(r.method), measured=r.method in measured) for r in rows]


def find_row(
    config: Config,
    name: str,
    card: Card,
    reserve_bytes: int,
    measure: Measure,
    *,
    largest: bool = True,
    slope: float | None = None,
) -> tuple[Row, float | None]:
    """One row, as in `find_rows`, and its bytes per example, of which `slope` is a guess.

    `largest` says whether to look for the largest batch.
    """
    row = Row(name, with_method(config, name))
    room = card.memory_bytes - reserve_bytes
    try:
        if row.indivisible:
            multiple = batch_granule(row.config)
            fault = f"batch_size = {config.batch_size}: must be a multiple of {multiple}"
            row = row._replace(fault=fault)
        else:
            use, need = memory_use(row.config), measure(row.config)
            time = cost.step_seconds(row.config, card, use)
            row = row._replace(
                use=use,
                need=need,
                fits=need.peak_bytes <= room,
                time=time / _full_seconds(with_method(config, "full"), card),
            )
        if largest:
            batch, slope = largest_batch(row.config, row.use, row.need, measure, room, slope)
            row = row._replace(largest_batch=batch)
    except Exception as error:  # a compiler has many ways to fail; the other methods go on
        first = str(error).strip().partition("\n")[0]
        row = row._replace(fault=f"{type(error).__name__}: {first}")
    return row, slope


@functools.lru_cache(8)
def _full_seconds(full: Config, card: Card) -> float:
    return cost.step_seconds(full, card, memory_use(full))


def batch_granule(config: Config) -> int:
    """The batch must be a multiple of this: accumulation's parts times chunks of a block."""
    chunks = from_config.resolve_method(config).plan.batch_chunks
    return config.optimizer.accumulation_steps * chunks


def largest_batch(
    config: Config,
    use: MemoryUse | None,
    need: MemoryReport | None,
    measure: Measure,
    room: int,
    slope: float | None = None,
) -> tuple[int, float]:
    """`(batch, slope)`: the largest batch whose peak is within `room`, and bytes per example.

    The batch is at most `LARGEST_BATCH`, and 0 if none fits. The peak is nearly affine in the
    batch. A slope that is given or guessed leads to a second batch, the secant through the first
    and it to the next, until a peak is within 5 % of `room`: from there the secant gives the batch
    that needs 99 % of it, or the largest that was measured to fit.

    Args:
      config: the run.
      use, need: of `config`; None if its batch is no multiple of the granule.
      measure: `Config -> MemoryReport`.
      room: bytes.
      slope: bytes per example of a run alike.
    """
    granule = batch_granule(config)
    most = LARGEST_BATCH // granule * granule

    def at(batch: int) -> MemoryReport:
        return measure(dataclasses.replace(config, batch_size=batch))

    size = max(config.batch_size // granule, 1) * granule
    first = at(size) if need is None else need
    if slope is None:  # all of it but the state and the gradients
        sized = dataclasses.replace(config, batch_size=size)
        examples = tree_bytes(from_config.batch_specs(sized))
        gradients = memory_use(sized).gradients if use is None else use.gradients
        slope = (examples + max(first.temp_bytes - gradients, 0)) / size
    peaks = {size: first.peak_bytes}
    for _ in range(_MOST_TRIALS):
        nearest = min(peaks, key=lambda batch: abs(peaks[batch] - room))
        fitting = max((b for b, peak in peaks.items() if peak <= room), default=0)
        too_large = min((b for b, peak in peaks.items() if peak > room), default=most + granule)
        left = (1 - _MARGIN) * room - peaks[nearest]
        batch = int(nearest + left / max(slope, 1.0)) // granule * granule
        batch = max(min(batch, too_large - granule), fitting)
        near = len(peaks) > 1 and abs(peaks[nearest] - room) <= _NEAR * room
        if near or 0 < batch == fitting or too_large == granule:
            return batch, slope
        batch = max(batch, granule)
        peaks[batch] = at(batch).peak_bytes
        slope = (peaks[batch] - first.peak_bytes) / (batch - size)  # over all, as small steps vary
    return max((b for b, peak in peaks.items() if peak <= room), default=0), slope


def fastest(rows: Sequence[Row]) -> Row | None:
    """The row that takes least time of those that fit; one with JointSPAR if all have it."""
    fitting = [row for row in rows if row.fits]
    plain = [row for row in fitting if not joint_spar_suffix(row.method)]
    return min(plain or fitting, key=lambda row: row.time or 0.0, default=None)


def candidates(config: Config) -> list[str]:
    """What a memory budget chooses from: every method, with the JointSPAR of `config.method`."""
    return [name + joint_spar_suffix(config.method) for name in method_names(config)]


def by_time(config: Config, card: Card) -> dict[str, float]:
    """The `candidates` with their times, fastest first; without those that cannot run."""
    runs = {name: with_method(config, name) for name in candidates(config)}
    full = _full_seconds(with_method(config, "full"), card)
    ratios = {
        name: cost.step_seconds(run, card, memory_use(run)) / full
        for name, run in runs.items()
        if run.batch_size % batch_granule(run) == 0
    }
    times, _ = cost.calibrated(ratios, card, config)
    return dict(sorted(times.items(), key=lambda item: item[1]))
