"""Batches for training and evaluation: the order of the examples, and threads that prepare them.

A batch is a pure function of (seed, index), and each of its examples of (seed, index, place in the
batch). So a position is one number, and neither the number of workers nor the number of processes
that share a batch changes an example.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from pbr_jax.data.records import Batch, Prepare, Records

# The first entry after the seed keeps the two kinds of random numbers apart.
_ORDER, _AUGMENT = 0, 1


class TrainBatches:
    """Infinite iterator over shuffled training batches.

    Every epoch is a fresh permutation, drawn without replacement. The last, incomplete batch of an
    epoch is dropped, so that all batches have one shape; the examples dropped differ per epoch.

    Args:
      records: the examples.
      prepare: makes arrays of them; gets generators of its own, one for each example.
      batch_size: at most the number of records.
      seed: with the batch's index it decides order and augmentation.
      workers: threads that prepare batches ahead of time; 0 prepares each when it is asked for.
      places: in a batch, of the examples that are prepared, in their order; None is all of them.

    Raises:
      ValueError: `batch_size` is not in 1..len(records), or `seed` or `workers` is negative.
    """

    def __init__(
        self,
        records: Records,
        prepare: Prepare,
        batch_size: int,
        seed: int,
        workers: int = 0,
        places: Sequence[int] | None = None,
    ) -> None:
        if not 1 <= batch_size <= len(records):
            raise ValueError(
                f"batch_size = {batch_size}: must be between 1 and the number of training "
                f"examples, {len(records)}"
            )
        if seed < 0 or workers < 0:
            raise ValueError(f"seed = {seed}, workers = {workers}: must not be negative")
        self._records, self._prepare = records, prepare
        self._batch_size, self._seed, self._workers = batch_size, seed, workers
        self._places = range(batch_size) if places is None else [*map(int, places)]
        self._index = 0
        self._order: tuple[int, np.ndarray] | None = None  # epoch and its permutation
        self._batches: Iterator[Batch] | None = None  # from `_index` on

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass over the examples."""
        return len(self._records) // self._batch_size

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = _ahead(self.batch, self._index, None, self._workers)
        batch = next(self._batches)
        self._index += 1
        return batch

    def batch(self, index: int) -> Batch:
        """The batch of that index since the start of training, at `places`."""
        # An epoch has one permutation, and its batches are slices of it.
        epoch, position = divmod(index, self.batches_per_epoch)
        rows = self._permutation(epoch)[position * self._batch_size :]
        records = [self._records[int(rows[place])] for place in self._places]
        generators = [self._generator(_AUGMENT, index, place) for place in self._places]
        return self._prepare(records, generators)

    def state(self) -> dict[str, Any]:
        """The position, and what it depends on; JSON-able."""
        return {
            "batch_index": self._index,
            "seed": self._seed,
            "batch_size": self._batch_size,
            "num_examples": len(self._records),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues at a position that `state` gave, so that the next batch is bit-equal.

        Raises:
          ValueError: this loader has other data, batch size or seed than the one that gave `state`.
        """
        for name, here in self.state().items():
            if name != "batch_index" and state[name] != here:
                raise ValueError(
                    f"data {name} = {here}: the checkpoint was saved with {state[name]}; "
                    "use that, or another work directory"
                )
        self._index, self._batches = state["batch_index"], None

    def _permutation(self, epoch: int) -> np.ndarray:
        known = self._order  # read once: another thread may be at another epoch
        if known is None or known[0] != epoch:
            known = epoch, self._generator(_ORDER, epoch).permutation(len(self._records))
            self._order = known
        return known[1]

    def _generator(self, kind: int, *index: int) -> np.random.Generator:
        sequence = np.random.SeedSequence((self._seed, kind, *index))
        return np.random.Generator(np.random.Philox(sequence))


def eval_batches(
    records: Records,
    prepare: Prepare,
    batch_size: int,
    workers: int = 0,
    places: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields every example exactly once, in order, in batches of one shape.

    The last batch is filled up with copies of its last example. `mask: Bool[B]` is true for
    examples and false for filling. `places` are as in `TrainBatches`.

    Raises:
      ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: must be at least 1")

    def batch(index: int) -> Batch:
        rows = index * batch_size + own
        there = rows < len(records)
        given = rows[there].tolist() or [len(records) - 1]  # nothing but filling has a shape, too
        arrays = prepare([records[row] for row in given], None)
        if missing := len(rows) - len(given):
            # Copies keep the shape of a batch, so that the step is compiled once.
            for name, array in arrays.items():
                arrays[name] = np.pad(array, [(0, missing), *[(0, 0)] * (array.ndim - 1)], "edge")
        return arrays | {"mask": there}

    own = np.arange(batch_size) if places is None else np.asarray(places)

    return _ahead(batch, 0, -(-len(records) // batch_size), workers)


@contextlib.contextmanager
def dropped_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that an error or an interrupt does not wait for: what is queued is dropped."""
    threads = ThreadPoolExecutor()
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _ahead(
    batch: Callable[[int], Batch], start: int, stop: int | None, workers: int
) -> Iterator[Batch]:
    """Yields `batch(start), batch(start + 1), ...` in this order, prepared by threads if any.

    Threads, since Pillow, NumPy and the tokenizer let others run while they compute. Processes
    would copy every batch through shared memory, and a signal to the process group would end them.
    """
    indices = range(start, sys.maxsize if stop is None else stop)
    if workers == 0:
        return map(batch, indices)
    import grain  # slow to import, and arrays in memory need none of it

    dataset = grain.MapDataset.range(indices.start, indices.stop).map(batch)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 2)
    return iter(dataset.to_iter_dataset(options))
