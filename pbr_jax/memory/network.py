"""Time of what devices exchange in a step, by arithmetic: never a measurement.

A step is the floor of its compute (`cost.step_seconds`) and a ring all-reduce of its gradients:
each of P partners sends and receives 2 (P - 1) / P of the bytes. The partners are the hosts, each
with one link that its cards share and to which what they exchange with each other is nothing; or,
on one host, its cards, each with a link of its own.

How much of the exchange hides behind the compute is not known, so two figures are given: nothing,
and what 60 % of the compute takes, about the backward pass. The floor is less than any card needs,
which makes the exchange look dear, so every ratio is also given with twice the floor (`cautious`).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pbr_jax.configs.common import Config, Rule
from pbr_jax.gpu import Card
from pbr_jax.memory import cost
from pbr_jax.memory.use import memory_use, packed_bytes
from pbr_jax.settings.resolve import on_one_device
from pbr_jax.settings.variants import with_method

_BEHIND = 0.6  # of the compute, behind which an exchange can hide
_BITS = {"mbit": 1e6 / 8, "gbit": 1e9 / 8, "tbit": 1e12 / 8}  # in any case, with or without /s
_BYTES = {"MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12}


def link_rate(text: str) -> float | None:
    """`100Gbit` or `450GB/s` in bytes per second; None for no rate, or not 1Mbit to 1000Tbit.

    `100Gb` is none: it is read as bits by some and as bytes by others.
    """
    # Units of bytes are read as they are written: Mb and mB are nobody's megabytes.
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+(?:/s)?)", text.strip(), re.ASCII)
    if match is None:
        return None
    unit = _BYTES.get(match[2]) or _BITS.get(match[2].lower().removesuffix("/s"))
    rate = float(match[1]) * (unit or 0.0)
    return rate if _BITS["mbit"] <= rate <= 1000 * _BITS["tbit"] else None


LINK = Rule(
    "must be a rate with its unit, Mbit, Gbit, Tbit, MB/s, GB/s or TB/s, such as 100Gbit, from"
    " 1Mbit to 1000Tbit",
    lambda text: link_rate(text) is not None,
)


class Network(NamedTuple):
    """Where the devices of a run stand, and how they are joined."""

    devices: int = 1
    hosts: int = 1  # of as many devices each
    link: str = ""  # a `LINK`, of a host or, on one host, of a card; "" if it is not known

    @property
    def partners(self) -> str:
        """Who is joined by the link."""
        return f"{self.hosts} hosts" if self.hosts > 1 else f"the {self.devices} devices"

    def exchange_seconds(self, num_bytes: float) -> float:
        """Time of a ring all-reduce of so many bytes."""
        rate = link_rate(self.link)
        assert rate is not None
        partners = self.hosts if self.hosts > 1 else self.devices
        return 2 * (partners - 1) / partners * num_bytes / rate


class StepTime(NamedTuple):
    """Seconds of a step by arithmetic."""

    compute: float  # floor of it
    exchange: float

    @property
    def exposed(self) -> float:
        """Of the step, if nothing of the exchange is hidden."""
        return self.compute + self.exchange

    @property
    def hidden(self) -> float:
        """Of the step, if the exchange hides behind 60 % of the compute."""
        return self.compute + max(0.0, self.exchange - _BEHIND * self.compute)

    @property
    def cautious(self) -> "StepTime":
        """The step with twice the floor."""
        return self._replace(compute=2 * self.compute)


class Comparison(NamedTuple):
    """A method and full fine-tuning on the same devices."""

    step: StepTime
    full: StepTime

    def times_faster(self, cautious: bool = False) -> tuple[float, float]:
        """Full's time by the method's, with nothing hidden and with what can be."""
        full, step = (s.cautious if cautious else s for s in (self.full, self.step))
        return full.exposed / step.exposed, full.hidden / step.hidden


def compared(
    config: Config, card: Card, network: Network, wire: Mapping[str, int] | None = None
) -> Comparison:
    """The steps of `config` and of full fine-tuning; `config.batch_size` is that of all devices.

    `wire` has the bytes that methods exchange, where they were read off a program; those of others
    are the packed gradients'.
    """

    # Devices have equal parts of a batch, so that the floor is that of one with its part.
    def step(run: Config) -> StepTime:
        alone = on_one_device(run)
        compute = cost.step_seconds(alone, card, memory_use(alone))
        exchanged = (wire or {}).get(run.method) or packed_bytes(alone)
        return StepTime(compute, network.exchange_seconds(exchanged))

    return Comparison(step(config), step(with_method(config, "full")))


def to_json(found: Comparison) -> dict[str, Any]:
    """Seconds of a step and how many times faster than full it is, as JSON values."""
    step = found.step
    return {
        "compute": step.compute,
        "exchange": step.exchange,
        "step": [step.exposed, step.hidden],
        "times_faster_than_full": list(found.times_faster()),
        "times_faster_cautious": list(found.times_faster(cautious=True)),
    }


def pair(values: tuple[float, float]) -> str:
    """Two ratios as the tables print them."""
    return " / ".join(f"{value:.2f}" for value in values)
