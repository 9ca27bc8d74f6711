"""Residual plans: what each site of a transformer block keeps for its backward pass.

Without jax: settings and the command line read the names and their meaning here, and `kind` imports
the code behind a name when it is first used.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from pbr_jax.names import nearest

SITES = ("qkv", "proj", "fc1", "fc2")
"""The activations of a block that feed linear layers: `qkv` and `fc1` read a LayerNorm's output."""


class Kind(NamedTuple):
    """A kind of residual, by name in `KINDS`."""

    help: str  # what it keeps, a phrase for `--help`
    where: str  # "module:Class" of the stateless object that saves and restores it


_OPS = "pbr_jax.ops"
KINDS: dict[str, dict[str, Kind]] = {
    "linear": {
        "dense": Kind("all columns", f"{_OPS}.linear_kinds:Dense"),
        "columns": Kind("chosen columns", f"{_OPS}.linear_kinds:Columns"),
        "magnitude": Kind("columns of largest norm", f"{_OPS}.linear_kinds:Magnitude"),
        "elements": Kind("largest elements", f"{_OPS}.linear_kinds:Elements"),
    },
    "layer_norm": {
        "dense": Kind("all of it", f"{_OPS}.layer_norm_kinds:Dense"),
        "int8": Kind("all of it in 8 bits", f"{_OPS}.layer_norm_kinds:Int8"),
        "elements": Kind("largest elements", f"{_OPS}.layer_norm_kinds:Elements"),
    },
    "attention": {
        "flash": Kind("q, k, v and the output", f"{_OPS}.attention_kinds:Flash"),
        "qkv": Kind("q, k and v", f"{_OPS}.attention_kinds:Qkv"),
        "recompute": Kind("nothing", f"{_OPS}.attention_kinds:Recompute"),
        "channels": Kind("some channels of q, k and v", f"{_OPS}.attention_sparse:Channels"),
        "elements": Kind("largest elements", f"{_OPS}.attention_sparse:Elements"),
    },
    "gelu": {
        "dense": Kind("its input", f"{_OPS}.gelu_kinds:Dense"),
        "code2": Kind("its derivative in 2 bits", f"{_OPS}.gelu_kinds:Code2"),
        "code3": Kind("in 3 bits", f"{_OPS}.gelu_kinds:Code3"),
        "code4": Kind("in 4 bits", f"{_OPS}.gelu_kinds:Code4"),
    },
}
"""Every kind of residual of every op: a new one is a class beside its op and a line here."""

IMPLEMENTATIONS: dict[str, str] = {
    "xla": "plain JAX",
    "triton": "kernels in Pallas' Triton dialect",
    "jax_triton": "a kernel in Triton itself, of the largest elements",
}
"""Implementations by name, with their meaning; `pbr_jax.ops.dispatch` chooses one."""
Implementation = str
"""A name in `IMPLEMENTATIONS`."""


@functools.cache
def kind(op: str, name: str) -> Any:
    """The object that saves and restores the residual `name` of `op`; there is one of each.

    Raises:
      ValueError: `name` is not in `KINDS[op]`.
    """
    _check_name(op, name, KINDS[op])
    module, _, cls = KINDS[op][name].where.partition(":")
    return getattr(importlib.import_module(module), cls)()


def _check_name(field: str, name: Any, names: Iterable[str]) -> None:
    if name not in names:
        close = nearest(str(name), names)
        raise ValueError(
            f"{field} = {name!r}: must be one of {', '.join(names)}"
            + (f"; did you mean {close}?" if close else "")
        )


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Keep:
    """Fraction kept at each site, in (0, 1]; the paper's pruning ratio is 1 - keep.

    `Keep(0.1, fc1=0.4)` keeps 40 % at `fc1` and 10 % elsewhere. A model names its sites. A site is
    open, None, if it is neither given nor has a default to take; None for a site does not give it.
    """

    default: float | None  # of the sites that are not given
    _given: tuple[tuple[str, float], ...]

    def __init__(self, default: float | None = None, /, **sites: float | None) -> None:
        given = sorted((site, share) for site, share in sites.items() if share is not None)
        object.__setattr__(self, "default", default)
        object.__setattr__(self, "_given", tuple(given))

    def __getitem__(self, site: str) -> float | None:
        return self.sites.get(site, self.default)

    @property
    def sites(self) -> dict[str, float]:
        """The sites that were given."""
        return dict(self._given)

    def with_defaults(self, other: "Keep") -> "Keep":
        """This one, with what is open taken from `other`."""
        if self.default is not None:
            return self
        return Keep(other.default, **other.sites | self.sites)

    def __repr__(self) -> str:
        default = [] if self.default is None else [str(self.default)]
        return f"Keep({', '.join([*default, *(f'{s}={v}' for s, v in self._given)])})"


def _field(default: Any, comment: str, **rule: Any) -> Any:
    """A field of a plan: its comment for `--help`, and its rule, `choices` or `bounds`."""
    return dataclasses.field(default=default, metadata={"comment": comment, **rule})


def _kind_field(op: str, default: str, what: str) -> Any:
    """A field that names a kind; its comment lists what each of them keeps."""
    kinds = "; ".join(f"{name} = {kind.help}" for name, kind in KINDS[op].items())
    return _field(default, f"{what}: {kinds}", choices=tuple(KINDS[op]))


@dataclasses.dataclass(frozen=True)
class ResidualPlan:
    """Residuals of a block; the comment of a field is its line in `--help`.

    `keep` is the fraction kept by the linear residuals "magnitude" and "elements". The largest of
    its fractions is that of BackRazor's LayerNorm and attention. Selected columns arrive from
    outside and bring their own number. A site that `keep` leaves open is kept whole.

    Raises:
      ValueError: a kind or an implementation is unknown, or `batch_chunks` is out of bounds.
    """

    linear: str = _kind_field("linear", "dense", "inputs of linear layers")
    layer_norm: str = _kind_field("layer_norm", "dense", "normalised input of LayerNorm")
    attention: str = _kind_field("attention", "flash", "what attention keeps, or recomputes")
    gelu: str = _kind_field("gelu", "dense", "what GELU keeps")
    stochastic_codes: bool = _field(
        False, "round GELU codes at random and without bias, not to the nearest level"
    )
    recompute: bool = _field(False, "keep the block input only and recompute the rest")
    offload: bool = _field(
        False, "hold the block inputs that recompute keeps in the pinned memory of the host"
    )
    save_attention: bool = _field(
        False, "of a decoder that recomputes: keep what attention gives, the dearest to make again"
    )
    batch_chunks: int = _field(
        1, "run each block in so many parts of the batch: smaller transients", bounds=(1, 10**6)
    )
    keep: Keep = _field(  # noqa: RUF009 (it returns a dataclass field)
        Keep(1.0), "fraction of columns or elements kept at each site"
    )
    attention_keep: float = _field(
        0.2, "channels kept of q, k, v by the sparse attention of PreBackRazor++"
    )
    implementation: str | None = _field(
        None,
        "kernels of every op and of the update; none = the best known for the device",
        choices=("xla", "triton"),  # jax_triton is one kernel's, and no op runs by it
    )

    def __post_init__(self) -> None:
        # By name alone: the code behind a kind is imported when it is used.
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            if "choices" in rule and value is not field.default:
                _check_name(field.name, value, rule["choices"])
            least, most = rule.get("bounds", (None, None))
            if least is not None and not least <= value <= most:
                raise ValueError(
                    f"{field.name} = {value}: must be at least {least} and at most {most}"
                )
        object.__setattr__(self, "keep", self.keep.with_defaults(Keep(1.0)))

    def keep_at(self, site: str) -> float:
        """Fraction kept at `site`."""
        keep = self.keep[site]
        assert keep is not None  # a plan leaves no site open
        return keep

    def kind(self, op: str) -> Any:
        """The object behind the kind that this plan names for `op`."""
        return kind(op, getattr(self, op))


MOST_DRAWN = 2**15 - 1
"""Columns, or groups of them, that systematic sampling draws at most: it counts in int32."""

MOST_ELEMENTS = 2**31 - 1
"""Elements of an example of which the largest are kept at most, by their numbers in int32."""


def budget_for(keep: float, num_columns: int, group_size: int = 1) -> int:
    """Columns to keep, K: `keep * D` rounded up to whole groups and a multiple of 8, at most D.

    A multiple of 8 keeps the packed matrix products aligned for tensor cores.

    Raises:
      ValueError: `keep` is outside (0, 1], or `group_size` does not divide `num_columns`.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(
            f"keep = {keep}: must be in (0, 1]; 0.1 keeps 10 % of the columns, the paper's '90 %'"
        )
    if group_size < 1 or num_columns % group_size:
        raise ValueError(
            f"group_size = {group_size}: must divide the number of columns, {num_columns}; 1 always"
            " does"
        )
    multiple = math.lcm(8, group_size)
    # The slack keeps 0.07 * 800 = 56.00000000000001 from being rounded up to 64.
    groups = max(1, math.ceil(keep * num_columns / multiple - 1e-9))
    return min(num_columns, multiple * groups)
