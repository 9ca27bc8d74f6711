"""What the study of rate and keep compares: a row is a set of settings, a trial one run of it.

A row without values of its own axes leaves them to the method: `Row("lean", "adamw")` is `lean` as
it comes. The axes of the command line are joined by `rows_of`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pbr_jax import methods
from pbr_jax.plans import SITES

Line = dict[str, Any]
NEVER = "never"
_FOR_EVER = 10**9  # steps between two draws; no run has more


class Row(NamedTuple):
    """What is tuned and compared.

    Attributes:
      method, optimizer: names of the settings.
      keep: of every site; None for a method that keeps all, or its own.
      scale: factor on the method's own keep of every site, in place of `keep`.
      policy: who chooses the columns; None is the method's own.
      interval: steps between two draws, a number or "never"; None is the default.
      kernels: factor on the learning rate of the blocks' kernels alone; None is 1.
      rest: learning rate of all parameters but these kernels, which then have the trial's.
      extra: settings on top, `key=value` each.
    """

    method: str
    optimizer: str
    keep: float | None = None
    scale: float | None = None
    policy: str | None = None
    interval: str | None = None
    kernels: float | None = None
    rest: float | None = None
    extra: tuple[str, ...] = ()

    @property
    def keeps(self) -> dict[str, float]:
        """`{site: fraction of the columns}`."""
        own = methods.resolve(self.method).plan.keep
        by_site = {site: 1.0 if own[site] is None else own[site] for site in SITES}
        factor = 1.0 if self.scale is None else self.scale
        return {
            site: self.keep if self.keep is not None else factor * share
            for site, share in by_site.items()
        }

    @property
    def share(self) -> float:
        """The mean of `keeps`."""
        return sum(self.keeps.values()) / len(self.keeps)

    @property
    def name(self) -> str:
        """All but optimizer and keep, in a word or a few."""
        every = {None: [], NEVER: ["fixed columns"]}
        more = every.get(self.interval, [f"every {self.interval} steps"])
        if self.kernels is not None:
            more = [*more, f"kernels at {self.kernels:g} of the rate"]
        if self.rest is not None:
            more = [*more, f"the rest at {self.rest:g}"]
        return ", ".join([self.method, *([self.policy] if self.policy else []), *more, *self.extra])

    @property
    def base(self) -> "Row":
        """The row that this one is compared with: `full`, with the same rate of the rest."""
        return Row("full", self.optimizer, rest=self.rest)

    def settings(self) -> list[str]:
        """On top of the configuration of a task."""
        found = [f"method={self.method}", f"optimizer.name={self.optimizer}"]
        if self.keep is not None:
            found.append(f"pruning.keep={self.keep}")
        elif self.scale is not None:
            found += [f"pruning.keep.{site}={share:.6g}" for site, share in self.keeps.items()]
        if self.policy is not None:
            found.append(f"pruning.policy={self.policy}")
        if self.interval is not None:
            steps = _FOR_EVER if self.interval == NEVER else int(self.interval)
            found.append(f"pruning.interval={steps}")
        return [*found, *self.extra]


class Trial(NamedTuple):
    """One run."""

    row: Row
    rate: float
    seed: int

    def settings(self) -> list[str]:
        """On top of the configuration of a task."""
        own = [f"optimizer.learning_rate={self.rate}", f"seed={self.seed}"]
        return [*own, *self.row.settings()]


def row_of(line: Line) -> Row:
    """The row that a line is of; an axis that it lacks was not set."""
    fields = {name: line.get(name) for name in Row._fields}
    return Row(**fields | {"extra": tuple(line["extra"])})


def rows_of(
    optimizers: Sequence[str],
    methods_of: Sequence[str],
    keeps: Sequence[float] = (),
    scales: Sequence[float] = (),
    policies: Sequence[str | None] = (None,),
    intervals: Sequence[str | None] = (None,),
    kernels: Sequence[float | None] = (None,),
    rest: float | None = None,
) -> list[Row]:
    """All combinations; `full` is first whatever is named, since others begin at its rate.

    Without keeps and scales, and at a scale of 1, a method keeps its own.
    """
    amounts = [(keep, None) for keep in keeps] + [
        (None, None if scale == 1 else scale) for scale in scales
    ]
    found = [Row("full", optimizer, rest=rest) for optimizer in optimizers]
    for optimizer in optimizers:
        for method in methods_of:
            if method == "full":
                found += [Row(method, optimizer, kernels=factor, rest=rest) for factor in kernels]
                continue
            found += [
                Row(method, optimizer, keep, scale, policy, interval, factor, rest)
                for policy in policies
                for interval in intervals
                for factor in kernels
                for keep, scale in amounts or [(None, None)]
            ]
    return list(dict.fromkeys(found))
