"""Whether any JAX function fits a card that need not be there, and what fills its memory."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from pbr_jax.gpu import alive
from pbr_jax.gpu.cards import Card, find_card
from pbr_jax.gpu.compile import MemoryReport, compile_for, memory


class StepMemory(NamedTuple):
    """Memory of one call of a function on one card, as the compiler planned it."""

    card: Card
    report: MemoryReport
    arrays: tuple[alive.Alive, ...]  # in memory at the fullest moment, the largest first

    def fits(self, reserve_bytes: int = 0) -> bool:
        """Whether the card has room for the call, and `reserve_bytes` to spare."""
        return self.report.peak_bytes + reserve_bytes <= self.card.memory_bytes


def fit(
    step: Callable[..., Any],
    *args: Any,
    card: Card | str = "rtx4090",
    donate_argnums: int | Sequence[int] = (),
) -> StepMemory:
    """Compiles `step(*args)` for `card` and reads what it needs; nothing runs.

        found = pbr_jax.gpu.fit(train_step, state, batch, card="rtx4090")
        print(found.report.peak_bytes, found.fits(), *found.arrays[:10], sep="\\n")

    Args:
      step: A function of arrays, or one that `jax.jit` returned, with its donation.
      *args: Pytrees of arrays, numbers or `jax.ShapeDtypeStruct`: only shapes and dtypes are read.
      card: A name in `CARDS`, or a `Card`.
      donate_argnums: As in `jax.jit`; empty for a jitted function.

    Raises:
      ValueError: An unknown card, an argument that is no array, or donation of a jitted function.
      GpuCompilerMissing: The extra `gpu-compiler` is missing.
    """
    where = find_card(card) if isinstance(card, str) else card
    specs = tuple(_spec(f"args[{i}]", arg) for i, arg in enumerate(args))
    with tempfile.TemporaryDirectory(prefix="pbr_jax_") as folder:
        options = alive.dump_options(Path(folder))
        compiled = compile_for(
            step, specs, where, donate_argnums=donate_argnums, compiler_options=options
        )
        return StepMemory(where, memory(compiled), alive.largest(Path(folder)))


def _spec(name: str, arg: Any) -> Any:
    """Shapes and dtypes of a pytree, which may hold plain numbers."""

    def leaf(path: Any, value: Any) -> jax.ShapeDtypeStruct:
        try:
            if not hasattr(value, "shape"):
                value = jax.eval_shape(lambda: jax.numpy.asarray(value))
            return jax.ShapeDtypeStruct(value.shape, value.dtype)
        except (TypeError, AttributeError):
            place = f"{name}{jax.tree_util.keystr(path)}"
            kind = type(value).__name__
            raise ValueError(
                f"{place}: is a {kind}, and must be an array, a number or a "
                "jax.ShapeDtypeStruct; bind anything else with functools.partial"
            ) from None

    return jax.tree_util.tree_map_with_path(leaf, arg)
