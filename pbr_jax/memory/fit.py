"""Memory of a train step on a card by every method, and the largest batch that fits.

The figures are those of the real train step, compiled for the card by XLA's GPU compiler
(`compiled`), or, where that is not installed, of a formula (`estimated`). Both are a function
`Config -> MemoryReport`, so that everything else is the same for both.
"""

import contextlib
import dataclasses
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.configs.common import Config
from pbr_jax.gpu import Card, MemoryReport, card_devices, compile_for, memory
from pbr_jax.memory import cost
from pbr_jax.memory.largest_batch import largest_batch
from pbr_jax.memory.use import (
    MemoryUse,
    exchanged_gradients,
    memory_use,
    offloaded_bytes,
    packed_bytes,
    tree_bytes,
)
from pbr_jax.settings.resolve import batch_divisor, named_method, on_one_device
from pbr_jax.settings.variants import candidates, joint_spar_suffix, with_method
from pbr_jax.training import from_config
from pbr_jax.training.cuts import Cuts, is_cut, split_of

PyTree = Any
Measure = Callable[[Config], MemoryReport]


class Target(NamedTuple):
    """The room for a step, and how its need is found out."""

    card: Card  # whose memory has to hold the peak and the reserve
    reserve_bytes: int  # left free for the driver, libraries and fragments
    measure: Measure  # from `compiled(card)`, the same with a cache, or `estimated`

    @property
    def room(self) -> int:
        """Bytes that a peak may have."""
        return self.card.memory_bytes - self.reserve_bytes


class MethodFit(NamedTuple):
    """Result for one method, a row of the table; what could not be found out is None."""

    config: Config  # the run by this method
    use: MemoryUse | None = None  # as read off the program
    need: MemoryReport | None = None  # memory of one step, arguments included
    fits: bool | None = None  # whether the peak is within the room
    largest_batch: int | None = None  # that fits, by the same measure; 0 if none does
    bytes_per_example: float | None = None  # by which the peak grows with the batch
    time: float | None = None  # of a step, as a fraction of full fine-tuning's
    measured: bool = False  # a benchmark measured the time; else it is arithmetic
    fault: str = ""  # one line that says why something is not known

    @property
    def method(self) -> str:
        return self.config.method

    @property
    def indivisible(self) -> bool:
        """True if the batch does not go into the parts that were asked for."""
        return self.config.batch_size % batch_divisor(self.config) != 0


@contextlib.contextmanager
def compiled(card: Card, hosts: int = 1) -> Iterator[Measure]:
    """Yields what compiles the train step for `card`; it may be called on several threads.

    The devices of `mesh.data` stand in so many hosts.

    Without a device XLA's limit is 0.95 x 0.80 of the memory that it is told of; beyond the limit
    it rematerialises, slowly and uselessly here, since what is kept is kept on purpose. So it is
    told of more, for its limit to be the card's real memory.

    Many kernels of a step are those of the same method at another batch, or of other methods. XLA
    keeps them in a file and compiles what is new; one for each thread, since it does not lock it.
    """
    larger = dataclasses.replace(card, memory_bytes=round(card.memory_bytes / (0.95 * 0.80)))
    with tempfile.TemporaryDirectory(prefix="pbr-fit-", ignore_cleanup_errors=True) as folder:

        def measure(config: Config) -> MemoryReport:
            count = config.mesh.data or 1
            parts = from_config.build(
                config, card_devices(larger, count, hosts) if count > 1 else None
            )
            args = (from_config.state_shapes(config, parts), from_config.batch_specs(config))
            kernels = str(Path(folder, str(threading.get_ident())))
            options = {"xla_gpu_kernel_cache_file": kernels}
            place = parts.placement
            step = place.jit(parts.train_step, donate_argnums=0)
            return memory(
                compile_for(step, args, larger, compiler_options=options, mesh=place.mesh)
            )

        yield measure


def estimated(config: Config) -> MemoryReport:
    """A formula for what `compiled` finds out; within 15 % of its peak for ViT-B/16, batch 128.

    Temporary memory is what the forward pass saves, the gradients, and transients: four arrays
    `[B, N, D]` of the whole batch, and, of the chunk of the batch that a block has in hand, 3.5
    arrays `[B, N, F]` of the MLP (six where the largest elements are searched for), with what
    a plan that recomputes makes again. The factors are read off compiled steps. Transients of a
    module of one's own are not known, so that its estimate is low.
    """
    devices, shards, config = config.mesh.data or 1, config.mesh.fsdp, on_one_device(config)
    parts, use = from_config.build(config), memory_use(config)
    shapes = from_config.state_shapes(config, parts)
    split = split_of(shapes.params, shards)
    whole = _bytes_of(split, shapes.params) if config.mesh.split == "moments" else 0
    state = tree_bytes(shapes) - round((_bytes_of(split, shapes) - whole) * (1 - 1 / shards))
    transients = 0.0
    if parts.family.describe is not None and not parts.family.traced:
        plan, sizes = parts.method.plan, parts.family.describe(config.model)
        micro = config.batch_size // config.optimizer.accumulation_steps
        token = micro * sizes.tokens * jnp.dtype(config.model.dtype).itemsize
        in_hand = plan.kind("linear").in_hand * sizes.hidden
        in_hand += cost.recomputed_channels(plan, sizes)
        transients = token * (4 * sizes.width + in_hand / plan.batch_chunks)
    copies = 1 if config.optimizer.accumulation_steps == 1 else 2  # sum, and a part of it
    return MemoryReport(
        argument_bytes=state + tree_bytes(from_config.batch_specs(config)),
        output_bytes=state,
        temp_bytes=copies * use.gradients + use.activations + round(transients),
        alias_bytes=state,
        host_bytes=offloaded_bytes(config),
        wire_bytes=_wire(config, {} if whole else split, shapes.params) if devices > 1 else 0,
    )


def _wire(config: Config, split: Cuts, params: PyTree) -> int:
    """Bytes on the wire: an all-reduce of packed gradients, once in a step.

    Where parameters are split, of their gradients one way, and their kernels twice, one way, in the
    dtype of the activations: for every part of a batch, and of all blocks.
    """
    if not split:
        return packed_bytes(config)
    grads = exchanged_gradients(config, packed=False)
    wide = 4 / jnp.dtype(config.model.dtype).itemsize
    part = tree_bytes(grads) - _bytes_of(split, grads) / 2 + _bytes_of(split, params) / wide
    return round(config.optimizer.accumulation_steps * part)


def _bytes_of(split: Cuts, tree: PyTree) -> int:
    """Of the parameters that devices split, in a tree like them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tree_bytes([leaf for keys, leaf in leaves if is_cut(split, keys)])


def fit_methods(
    config: Config,
    names: Sequence[str],
    target: Target,
    measured_times: Mapping[str, float],
    done: Callable[[MethodFit], None] = lambda found: None,
    *,
    largest: bool = True,
) -> list[MethodFit]:
    """Finds out how the run fits by each of the methods `names`; gives them in their order.

    Times by method in `measured_times`, as fractions of full fine-tuning's, take the place of
    arithmetic and scale the rest of it. `done` gets each result, on one of several threads. The
    largest batches, which take most of the time, are searched for if `largest`.
    """

    def find(name: str) -> MethodFit:
        found = fit_method(with_method(config, name), target, largest=largest)
        done(found)
        return found

    # One more than processors: a compilation is not parallel in all of its parts.
    pool = ThreadPoolExecutor(min(4, (os.cpu_count() or 1) + 1))
    try:
        # Pruned methods come last and take longest: begun first, they end beside the others.
        rows = list(pool.map(find, reversed(names)))[::-1]
    finally:  # an interrupt does not wait for compilations
        pool.shutdown(wait=False, cancel_futures=True)
    ratios = {row.method: row.time for row in rows if row.time is not None}
    times = cost.calibrated(ratios, measured_times)
    measured = times.keys() & measured_times.keys()
    return [r._replace(time=times.get(r.method), measured=r.method in measured) for r in rows]


def fit_method(
    config: Config, target: Target, *, largest: bool = True, slope: float | None = None
) -> MethodFit:
    """Finds out how the method of `config` fits and, if `largest`, the largest batch that does.

    The search begins with `slope`, a guess of the bytes per example, if one is known from another
    card.
    """
    found = MethodFit(config)
    try:
        if found.indivisible:
            rule = f"must be a multiple of {batch_divisor(config)}"
            found = found._replace(fault=f"batch_size = {config.batch_size}: {rule}")
        else:
            use, need = memory_use(config), target.measure(config)
            fits, time = need.peak_bytes <= target.room, time_to_full(config, target.card)
            found = found._replace(use=use, need=need, fits=fits, time=time)
        if largest:
            batch, slope = _largest_batch(found, target, slope)
            found = found._replace(largest_batch=batch, bytes_per_example=slope)
    except Exception as error:  # a compiler has many ways to fail; the other methods go on
        first = str(error).strip().partition("\n")[0]
        found = found._replace(fault=f"{type(error).__name__}: {first}")
    return found


def _largest_batch(found: MethodFit, target: Target, slope: float | None) -> tuple[int, float]:
    """The largest batch of a method and its bytes per example, from the need that is known."""
    granule = batch_granule(found.config)
    size = max(found.config.batch_size // granule, 1) * granule

    def sized(batch: int) -> Config:
        return dataclasses.replace(found.config, batch_size=batch)

    known = found.need if size == found.config.batch_size else None
    need = target.measure(sized(size)) if known is None else known
    if slope is None:  # of the temporary memory all but the gradients grows with the batch
        use = memory_use(sized(size))
        examples = tree_bytes(from_config.batch_specs(sized(size)))
        slope = (examples + max(need.temp_bytes - use.gradients, 0)) / size
    return largest_batch(
        lambda batch: target.measure(sized(batch)).peak_bytes,
        (size, need.peak_bytes),
        granule,
        target.room,
        slope,
    )


def time_to_full(config: Config, card: Card) -> float:
    """Time of a step by arithmetic, as a fraction of full fine-tuning's."""
    config = on_one_device(config)
    full = with_method(config, "full")
    own, reference = (cost.step_seconds(run, card, memory_use(run)) for run in (config, full))
    return own / reference


def batch_granule(config: Config) -> int:
    """The batches of a search are multiples of this: devices, accumulation's parts, chunks.

    Its peak is nearly affine in the batch only where the number of chunks stays.
    """
    parts = config.optimizer.accumulation_steps * (config.mesh.data or 1)
    return parts * named_method(config).plan.batch_chunks


def fastest(rows: Sequence[MethodFit]) -> MethodFit | None:
    """The one that takes least time of those that fit; one with JointSPAR if all have it."""
    fitting = [row for row in rows if row.fits]
    plain = [row for row in fitting if not joint_spar_suffix(row.method)]
    return min(plain or fitting, key=lambda row: row.time or 0.0, default=None)


def by_time(config: Config, card: Card) -> list[Config]:
    """The run by each of the `candidates` that can take its batch, fastest first by arithmetic."""
    runs = [with_method(config, name) for name in candidates(config)]
    divisible = [run for run in runs if run.batch_size % batch_divisor(run) == 0]
    return sorted(divisible, key=lambda run: time_to_full(run, card))
