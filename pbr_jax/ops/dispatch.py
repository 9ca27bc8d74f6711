"""Which implementation of an op runs: XLA's own code, or a kernel written for the device.

`implementation=None` takes the first choice for the device, as far as shapes and dtypes allow, and
XLA otherwise. A named one is used or refused: it raises with the reason, and never falls back. The
decision falls when a function is traced, for the card that `pbr_jax.gpu.compile_for` compiles for,
or else for JAX's default device.
"""

import contextlib
import contextvars
import importlib.util
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

from pbr_jax.gpu.cards import CARDS
from pbr_jax.gpu.compile import compiling_for
from pbr_jax.plans import IMPLEMENTATIONS, Implementation

_TRITON_NEEDS = (8, 0)
_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


class Target(NamedTuple):
    """The device that a function is traced for.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      name: as its maker calls it.
      capability: CUDA compute capability, None where it is unknown or there is none.
      num_devices: over which the arrays may be spread.
    """

    platform: str
    name: str
    capability: tuple[int, int] | None = None
    num_devices: int = 1


class Offer(NamedTuple):
    """A kernel that an op could call.

    Attributes:
      refusal: why it cannot take these arrays ("head = 96: must be a power of two"), or None.
      preferred: whether it goes before XLA where the user names no implementation.
    """

    refusal: str | None = None
    preferred: bool = True


def choose(
    op: str,
    implementation: Implementation | None,
    offers: Mapping[Implementation, Offer],
) -> Implementation:
    """The implementation that `op` shall run.

    Args:
      op: as it is called in an error.
      implementation: what the user asked for.
      offers: kernels of the op for these shapes and dtypes, best first.

    Raises:
      ValueError: `implementation` names one that does not exist, that the op does not have, that
        the device cannot run or that refuses the arrays.
    """
    where = target()
    if implementation is None:
        for name, offer in offers.items():
            if offer.preferred and not (offer.refusal or _unavailable(name, where)):
                return name
        return "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation = {implementation!r}: must be one of {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "xla":
        return "xla"
    if implementation not in offers:
        raise ValueError(
            f"implementation = {implementation!r}: {op} has {', '.join(['xla', *offers])};"
            " name one of these, or none to let the device decide"
        )
    reason = offers[implementation].refusal or _unavailable(implementation, where, interpreting())
    if reason:
        raise ValueError(
            f"implementation = {implementation!r} of {op}: {reason}; name xla, or none to let the"
            " device decide"
        )
    return implementation


def target() -> Target:
    """The device that the caller is traced for."""
    card = compiling_for()
    if card is not None:
        return Target("gpu", card.description, card.capability)
    mesh = jax.sharding.get_abstract_mesh()
    described = mesh.abstract_device
    if described is not None:
        known = (
            card.capability for card in CARDS.values() if card.description == described.device_kind
        )
        return Target(described.platform, described.device_kind, next(known, None), mesh.size)
    default = jax.config.values["jax_default_device"]
    device = jax.devices(default)[0] if default is None or isinstance(default, str) else default
    capability = getattr(device, "compute_capability", None)
    return Target(
        device.platform,
        device.device_kind,
        _parse_capability(capability) if device.platform == "gpu" else None,
        1 if mesh.empty else mesh.size,
    )


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
