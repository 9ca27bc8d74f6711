"""Calling a user's module: what it reads of a batch, its flags, and its logits."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Reads = str | Sequence[str] | Mapping[str, str]

# Arguments that say whether a module is trained, and their value if it is.
_FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False}


class OwnModel(NamedTuple):
    """Pure functions; parameters and what else moves are nested dicts, keys are text.

    Attributes:
      module: as made.
      shapes: `specs -> (params, extra)` as shapes and dtypes, `specs` those of a batch.
      begin: `(seed, specs) -> (params, extra, notes)`, pretrained if the module is.
      apply: `(params, extra, batch, key, train) -> (outputs, extra)`. The key is consumed.
    """

    module: Any
    shapes: Callable[..., tuple[PyTree, PyTree]]
    begin: Callable[..., tuple[PyTree, PyTree, list[str]]]
    apply: Callable[..., tuple[Any, PyTree]]


class Caller:
    """Calls modules of one class.

    Args:
      cls: whose `__call__` says which flags it takes.
      reads: names in a batch; a mapping says by which arguments.
    """

    def __init__(self, cls: type, reads: Reads) -> None:
        parameters = inspect.signature(cls.__call__).parameters
        self._flags = {name: value for name, value in _FLAGS.items() if name in parameters}
        self._named = reads if isinstance(reads, Mapping) else {}
        given = [reads] if isinstance(reads, str) else [*reads]
        self._placed = [] if self._named else given

    def __call__(self, function: Callable[..., Any], batch: Any, train: bool) -> Any:
        """Outputs of `function`, the module or its `apply` or `init`.

        Raises:
          ValueError: the batch lacks what the module reads.
        """
        wanted = [*self._placed, *self._named.values()]
        if missing := [name for name in wanted if name not in batch]:
            raise ValueError(
                f"the model reads {', '.join(missing)} of a batch, which has"
                f" {', '.join(sorted(batch))}"
            )
        named = {argument: batch[name] for argument, name in self._named.items()}
        flags = {name: value == train for name, value in self._flags.items()}
        return function(*(batch[name] for name in self._placed), **named, **flags)


def logits_of(out: Any) -> jax.Array:
    """Float32 logits of a module's output.

    Raises:
      ValueError: it has none.
    """
    out = getattr(out, "logits", out)
    if not isinstance(out, jax.Array) or out.ndim < 1:
        raise ValueError(
            f"the model's output is a {type(out).__name__}: must be logits [B, classes], or an"
            " object that has them as `logits`"
        )
    return out.astype(jnp.float32)
