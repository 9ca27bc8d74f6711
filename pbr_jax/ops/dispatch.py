"""Choice of an op's implementation: XLA's own code, or a kernel written for the device.

`implementation=None` takes the first choice for the device, as far as shapes and dtypes allow, and
XLA otherwise. A named one is used or refused: it raises with the reason, and never falls back. The
decision falls when a function is traced, for the card that `pbr_jax.gpu.compile_for` compiles for,
or else for the device of the mesh in scope, or JAX's default device.

A kernel is a program of one device. On a mesh it runs where every device has a program of its own,
inside `jax.shard_map`; the mesh is the one in scope, or else that of the arrays.
"""

import contextlib
import contextvars
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbr_jax.gpu.cards import CARDS, for_capability
from pbr_jax.gpu.compile import compiling_for
from pbr_jax.ops.shardings import mesh_of
from pbr_jax.plans import IMPLEMENTATIONS, Implementation

_TRITON_NEEDS = (8, 0)
_warned: set[str] = set()  # ops of this process whose kernels a mesh has turned off
_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


class Target(NamedTuple):
    """The device that a function is traced for."""

    platform: str  # "cpu", "gpu" or "tpu"
    name: str  # as its maker calls it
    capability: tuple[int, int] | None = None  # of CUDA, None where unknown or none
    num_devices: int = 1  # over which the arrays may be spread


class Kernel(NamedTuple):
    """A kernel that stands beside an op of XLA.

    Attributes:
      op: the op as errors call it.
      refusal: `refusal(*args)` is why it cannot take these arguments ("head = 96: must be a power
        of two"), or None.
      tiles: how it is cut, by the least compute capability, see `for_capability`.
      preferred: `preferred(*args)` is whether it goes before XLA where none is named.
      implementation: the name that asks for it.
    """

    op: str
    refusal: Callable[..., str | None]
    tiles: Mapping[tuple[int, int], Any] = {}
    preferred: Callable[..., bool] = lambda *args: True
    implementation: Implementation = "triton"

    def choose(self, implementation: Implementation | None, *args: Any) -> Implementation:
        """The implementation that the op shall run for `args`, of which only shapes are read.

        Where kernels are left out only because the mesh has several devices, it warns, once for
        each op.

        Raises:
          ValueError: `implementation` names one that does not exist, that the op does not have,
            that the device cannot run or that refuses `args`.
        """
        where, refusal = target(*args), self.refusal(*args)
        # Without a name the kernel has to be fit, first choice and able to run, or XLA runs.
        if implementation is None:
            if refusal or not self.preferred(*args):
                return "xla"
            if not _unavailable(self.implementation, where):
                return self.implementation
            if not _unavailable(self.implementation, where._replace(num_devices=1)):
                _warn_of_mesh(self.op, where)
            return "xla"
        # A name is taken at its word, whatever the first choice would be.
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation = {implementation!r}: must be one of {', '.join(IMPLEMENTATIONS)}"
            )
        if implementation == "xla":
            return "xla"
        if implementation != self.implementation:
            raise ValueError(
                f"implementation = {implementation!r}: {self.op} has xla, {self.implementation};"
                " name one of these, or none to let the device decide"
            )
        reason = refusal or _unavailable(implementation, where, interpreting())
        if reason:
            raise ValueError(
                f"implementation = {implementation!r} of {self.op}: {reason}; name xla, or none to"
                " let the device decide"
            )
        return implementation

    def cut(self) -> Any:
        """The entry of `tiles` for the device that the caller is traced for."""
        return for_capability(self.tiles, target().capability)


def unfit(limit: float = 2**31, **arrays: Any) -> str | None:
    """Why no kernel takes these arrays, or their shapes, by the name of each; or None.

    Args:
      limit: elements from which on a kernel could not count them.
    """
    for name, array in arrays.items():
        if array.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
            return f"{name} has dtype {array.dtype}: must be bfloat16, float16 or float32"
        if not 0 < array.size < limit:
            most = "" if limit == math.inf else f" and fewer than 2^{math.log2(limit):g}"
            return f"{name} has {array.size} elements: must be at least 1{most}"
    return None


def _warn_of_mesh(op: str, where: Target) -> None:
    if op in _warned:
        return
    _warned.add(op)
    warnings.warn(
        f"{op} runs by XLA: its kernel runs on one device, and the mesh has {where.num_devices};"
        " call it inside jax.shard_map to run the kernel on each device, or name"
        " implementation='xla' to silence this",
        stacklevel=3,
    )


def target(*args: Any) -> Target:
    """The device that the caller is traced for, whose arrays are among `args`."""
    # Around `compile_for` the default device is this machine's, not the one that is compiled for.
    card, mesh = compiling_for(), mesh_of(args)
    # Along a manual axis, as inside `shard_map`, every device runs a program of its own.
    shared = [size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes]
    num_devices = math.prod(shared)
    if card is not None:
        return Target("gpu", card.description, card.capability, num_devices)
    # A mesh may describe a device that is not there.
    described = mesh.abstract_device
    if described is not None:
        return Target(
            described.platform,
            described.device_kind,
            _capability_of(described.device_kind),
            num_devices,
        )
    default = jax.config.values["jax_default_device"]
    device = jax.devices(default)[0] if default is None or isinstance(default, str) else default
    return Target(device.platform, device.device_kind, _capability(device), num_devices)


def _capability_of(kind: str) -> tuple[int, int] | None:
    """The compute capability of cards of that name: of one that is here, or in the table."""
    if here := [device for device in jax.devices() if device.device_kind == kind]:
        return _capability(here[0])
    return next((card.capability for card in CARDS.values() if card.description == kind), None)


def _capability(device: Any) -> tuple[int, int] | None:
    """Of a device that is here."""
    text = getattr(device, "compute_capability", None)
    return _parse_capability(text) if device.platform == "gpu" else None


def _parse_capability(text: str | None) -> tuple[int, int] | None:
    """`"8.9"` as `(8, 9)`; None for what is not CUDA's."""
    major, _, minor = (text or "").partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _unavailable(name: Implementation, where: Target, interpreted: bool = False) -> str | None:
    """Why no kernel of this kind runs on the target, or None."""
    if interpreted and name == "triton":
        return None
    if where.platform != "gpu":
        return f"needs a GPU, and this is {where.name}"
    if where.capability is None:
        return f"{where.name} has no known CUDA compute capability"
    if where.capability < _TRITON_NEEDS:
        major, minor = where.capability
        return f"needs compute capability 8.0, and {where.name} has {major}.{minor}"
    if where.num_devices > 1:
        return f"runs on one device, and the mesh has {where.num_devices}"
    if name == "jax_triton" and importlib.util.find_spec("jax_triton") is None:
        return "jax-triton is not installed; install the extra with: pip install 'pbr_jax[cuda]'"
    return None


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """For tests: "triton" may be named on any device, and its kernels run in Pallas' interpreter.

    Slow, and more lenient than the compiler. What is traced inside stays interpreted.
    """
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def interpreting() -> bool:
    """Whether kernels called here run in the interpreter: the `interpret` of `pallas_call`."""
    return _interpreted.get()
