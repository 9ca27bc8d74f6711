"""Whether a run goes into the memory that is there, said before anything of it is allocated."""

import jax

from pbr_jax.configs.common import Config
from pbr_jax.gpu import present_card, sized_card
from pbr_jax.measure.memory import Room, host_room, memory_limit
from pbr_jax.measure.text import format_bytes
from pbr_jax.memory import fit
from pbr_jax.ops.offload import refusal
from pbr_jax.settings.resolve import resolve_method


def check_room(config: Config, room: Room | None = None, *, force: bool | None = None) -> list[str]:
    """A line if a step needs more memory than is free now; `room` is that of the device at hand.

    The need is that of a formula, so that nothing is compiled. `force` is the flag by which a user
    tries it all the same; None where the command has none.

    Raises:
      ValueError: it needs more than there is in all; says the largest batch that would do. Or it
        offloads, and the device has no such memory.
    """
    if fault := offload_fault(config):
        raise ValueError(fault)
    room = room or _find_room()
    need = fit.estimated(config).peak_bytes
    if room is None or need <= room.free:
        return []
    needs = f"a step by {config.method} needs about {format_bytes(need)} by a formula"
    if need <= room.total or force:
        return [f"{needs}, and {room.of} has {format_bytes(room.free)} free now: it may be ended"]
    card = sized_card(room.of, room.total)
    found = fit.fit_method(config, fit.Target(card, 0, fit.estimated))
    advice = (
        f"set batch_size={found.largest_batch} or less, or take a method that needs less"
        if found.largest_batch
        else "no batch would fit; take a smaller model"
    )
    advice += "" if force is None else "; --force tries it all the same"
    raise ValueError(
        f"batch_size = {config.batch_size}: {needs}, and {room.of} has {format_bytes(room.total)};"
        f" {advice}\n`pbr fit --gpu {room.total // 10**6}MB` with the same settings says what every"
        " method needs."
    )


def offload_fault(config: Config) -> str | None:
    """Why the devices at hand cannot run a plan that offloads, and what to set instead."""
    if not resolve_method(config).plan.offload:
        return None
    why = refusal(jax.local_devices()[0])
    if why is None:
        return None
    if config.plan.offload:
        return f"plan.offload = true: {why}; set plan.offload=none"
    base, _, suffixes = config.method.partition("+offload")
    return f"method = {config.method}: {why}; set method={base}{suffixes}"


def _find_room() -> Room | None:
    """Memory of the device at hand, None where it is not known."""
    device, limit = jax.local_devices()[0], memory_limit()
    if device.platform == "cpu":
        return host_room()
    if limit is None:
        return None
    # JAX takes a part of a card, which the environment can make larger.
    card = present_card()
    total = limit if card is None else max(limit, card.memory_bytes)
    return Room(total, limit, f"the {device.device_kind}")
