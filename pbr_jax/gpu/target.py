"""Cards beside the table: of a size only, described in a file, or present in this machine."""

import dataclasses
import math
import re
from typing import Any

import jax

from pbr_jax.gpu.cards import CARDS, PROTO_FIELDS, Card


def sized_card(name: str, memory_bytes: int) -> Card:
    """A card of which only the memory is known, as the named card nearest in memory.

    Only cards with bfloat16 units are taken as a model, since nearly all cards in use have them.
    Its name is `name`; its description says which card it is compiled for.
    """
    models = [card for card in CARDS.values() if card.has_bfloat16]
    nearest = min(models, key=lambda card: abs(math.log(card.memory_bytes / memory_bytes)))
    return dataclasses.replace(nearest, name=name, memory_bytes=memory_bytes)


def parse_target_config(text: str, name: str) -> Card:
    """The card that `target_config` or XLA describes as the text of a `GpuTargetConfigProto`.

    Raises:
      ValueError: it is no such text, or lacks fields; all that are missing are named.
    """
    # Of the nested text only numbers by name are read; the capability alone has fields of its own.
    numbers = dict(re.findall(r"(\w+)\s*:\s*([\d.eE+-]+)", text))
    capability = re.search(r"cuda_compute_capability\s*:?\s*\{([^}]*)\}", text)
    major, minor = (
        re.search(rf"\b{part}\s*:\s*(\d+)", capability[1]) if capability else None
        for part in ("major", "minor")
    )
    # All faults of the text at once: fields that lack, then numbers that are none.
    missing = [field for field in PROTO_FIELDS.values() if field not in numbers]
    missing += [] if major else ["cuda_compute_capability"]
    if missing:
        raise ValueError(
            f"{name}: no description of a card: it lacks {', '.join(missing)}; it must be XLA's "
            "GpuTargetConfigProto as text, as pbr_jax.gpu.target_config(pbr_jax.gpu.CARDS['h200']) "
            "returns it"
        )
    assert major is not None
    described = re.search(r"device_description_str\s*:\s*\"([^\"]*)\"", text)
    values: dict[str, Any] = {}
    try:
        for field, key in PROTO_FIELDS.items():
            values[field] = (float if field == "clock_ghz" else int)(numbers[key])
    except ValueError as error:
        raise ValueError(f"{name}: a count in it is not a whole number: {error}") from None
    if wrong := [PROTO_FIELDS[field] for field, value in values.items() if value <= 0]:
        raise ValueError(f"{name}: {', '.join(wrong)} must be above 0")
    return Card(
        name=name,
        description=described[1] if described else name,
        capability=(int(major[1]), int(minor[1]) if minor else 0),
        **values,
    )


def present_card() -> Card | None:
    """The GPU that JAX would train on here, by its own properties; None where there is none.

    Raises:
      ValueError: it is no NVIDIA GPU, or JAX does not describe it.
    """
    device = jax.local_devices()[0]
    if device.platform != "gpu":
        return None
    from jaxlib import xla_client

    try:
        topology = xla_client.get_topology_for_devices([device])
        text = str(topology.target_config)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{device.device_kind}: JAX does not describe this GPU ({error}); name the card, give "
            "its memory, or its description in a file"
        ) from error
    return parse_target_config(text, device.device_kind)
