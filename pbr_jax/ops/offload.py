"""Block inputs in the memory of the host: written as a block ends, read back before it is needed.

A program names the space of a value, and XLA plans both copies beside the computing. The host's
memory has to be pinned for that; most devices call theirs `pinned_host`, and a CPU, whose own
memory it is, computes the same and saves nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

PyTree = Any
PINNED = "pinned_host"
"""JAX's name of the host's memory that a device reads and writes by itself."""


def to_host(tree: PyTree) -> PyTree:
    """The same values in the memory of the host."""
    return jax.device_put(tree, jax.memory.Space.Host)


def to_device(tree: PyTree) -> PyTree:
    """The same values in the memory of the device."""
    return jax.device_put(tree, jax.memory.Space.Device)


def empty(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Room in the memory of the host, with whatever is there.

    Zeros would be made on the device first, all of them at once.
    """
    return to_host(lax.empty(shape, dtype))


def is_on_host(aval: Any) -> bool:
    """Whether an array of that abstract value lies in the memory of the host."""
    return aval.memory_space == jax.memory.Space.Host


def policy(*names: str, saved: Sequence[str] = ()) -> Callable[..., Any]:
    """For `jax.checkpoint` or `nn.remat`: what has one of these names goes to the host.

    Of others only what is `saved` is kept. A name is given by `jax.ad_checkpoint.checkpoint_name`
    inside the function that is checkpointed, to its input; on what a scan hands on it does nothing,
    and says nothing.
    """
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=list(saved),
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst=PINNED,
    )


def refusal(device: Any) -> str | None:
    """Why nothing can be offloaded from a device of JAX; None where it can.

    Of a device that is only compiled for, nothing is known.
    """
    kinds = [memory.kind for memory in device.addressable_memories()]
    if not kinds or PINNED in kinds:
        return None
    return f"{device.device_kind} has no {PINNED} memory; it has {', '.join(kinds)}"
