"""What settings mean together: the method with its overrides, and the columns that it keeps."""

import dataclasses
import importlib.util
from collections.abc import Iterable

from pbr_jax import methods
from pbr_jax.configs.common import Config
from pbr_jax.families import Architecture, Family, find
from pbr_jax.methods import Method
from pbr_jax.plans import budget_for

METHODS_OWN = ("interval", "group_size", "state")
"""Settings of `pruning` for which a method has values of its own, as fields of those names."""


def named_method(config: Config) -> Method:
    """The method named in `config` with its overrides, whatever the batch.

    Raises:
      ValueError: overrides do not go with the method; a line for each.
    """
    names = ("keep", "policy", "joint_spar", "attention_keep", *METHODS_OWN)
    pruning = {name: getattr(config.pruning, name) for name in names}
    method = methods.resolve(config.method, **pruning, **vars(config.plan))
    if _chunks_are_given(config) or not _is_traced(config):
        return method
    # In how many parts a module runs a batch is its own affair.
    return dataclasses.replace(method, plan=dataclasses.replace(method.plan, batch_chunks=1))


def resolve_method(config: Config) -> Method:
    """The method named in `config` with its overrides, as it runs the batch.

    A method's own chunks give way to a batch that they do not divide: the most that do, of no more
    than its own, take their place. Chunks that were asked for stay.

    Raises:
      ValueError: overrides do not go with the method; a line for each.
    """
    method, micro = named_method(config), examples_at_a_time(config)
    own = method.plan.batch_chunks
    if _chunks_are_given(config) or micro is None or micro % own == 0:
        return method
    chunks = max(number for number in range(1, own) if micro % number == 0)
    return dataclasses.replace(method, plan=dataclasses.replace(method.plan, batch_chunks=chunks))


def family_faults(config: Config) -> list[str]:
    """A line for everything of the method that the family has no use for."""
    name, p = config.model.family, config.pruning
    family, method = find(name), named_method(config)
    faults = []
    if method.name.partition("/")[0] not in family.methods:
        listed, other = ", ".join(family.methods), _instead(method, family)
        why = f"; {_OWN_OFFLOAD}" if method.plan.offload and family.describe is None else ""
        why += f"; {_HALF_BLOCKS}" if method.adapters else ""
        faults.append(
            f"method = {method.name}: {name} can be trained by {listed}; set method={other}{why}"
        )
    elif method.name not in installed([method.name]):
        faults.append(LORA_MISSING)
    if not family.traced:
        if config.plan.save_attention:
            faults.append(
                f"plan.save_attention = true: is for decoders, and {name} makes whole blocks again;"
                " leave it out"
            )
        return faults
    # What a module without half-blocks keeps, and in which parts it runs, is its own affair.
    given = {f"plan.{key}": value for key, value in vars(config.plan).items() if value is not None}
    of_it = ["implementation"]
    if family.describe is not None:  # a module of ours, which reads these
        of_it += ["attention", "save_attention"]
    for key in of_it:
        given.pop(f"plan.{key}", None)
    if "/" in method.name:
        given["method"] = method.name
    elif method.joint_spar is not None:
        given["pruning.joint_spar"] = method.joint_spar
    if config.optimizer.rate_for_keep and family.describe is None:
        given["optimizer.rate_for_keep"] = config.optimizer.rate_for_keep
    if p.sampler != "systematic":
        given["pruning.sampler"] = p.sampler
    return faults + [
        f"{key} = {value}: is for the blocks of the families here, and {name} is a module of your"
        " own; leave it out"
        for key, value in given.items()
    ]


LORA_MISSING = "method = lora: needs the package qwix; install it with: pip install 'pbr_jax[lora]'"
_OWN_OFFLOAD = (
    "a module of your own offloads by itself: inside a block name its input,"
    " x = jax.ad_checkpoint.checkpoint_name(x, 'block'), and rematerialise the block with"
    " nn.remat(Block, policy=pbr_jax.ops.offload.policy('block'))"
)
_HALF_BLOCKS = (
    "its blocks have a backward pass of their own, in which qwix finds no layer to add A and B to"
)


def installed(names: Iterable[str]) -> list[str]:
    """Those of these methods whose packages are there."""
    lacking = importlib.util.find_spec("qwix") is None
    return [name for name in names if not (lacking and methods.resolve(name).adapters)]


def _instead(method: Method, family: Family) -> str:
    """The method of the family that is most like one that it does not have."""
    plain = method.name.partition("/")[0].removesuffix("+offload")
    others = [other for other in family.methods if "+" not in other]
    return plain if plain in others else others[-1]


def examples_at_a_time(config: Config) -> int | None:
    """Examples of a batch that a device runs at a time; None where the parts do not divide it."""
    parts = config.optimizer.accumulation_steps * (config.mesh.data or 1)
    micro, rest = divmod(config.batch_size, parts)
    return None if rest else micro


def batch_divisor(config: Config) -> int:
    """What must divide the batch: devices, accumulation's parts, chunks that were asked for."""
    chunks = named_method(config).plan.batch_chunks if _chunks_are_given(config) else 1
    return config.optimizer.accumulation_steps * (config.mesh.data or 1) * chunks


def on_one_device(config: Config) -> Config:
    """What one device of a run does, as a run of its own: to ask for memory and time."""
    devices = config.mesh.data or 1
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=1)
    return dataclasses.replace(config, batch_size=config.batch_size // devices, mesh=mesh)


def chunk_notes(config: Config) -> list[str]:
    """A line if the batch runs in another number of chunks than the method's own."""
    own, used = (f(config).plan.batch_chunks for f in (named_method, resolve_method))
    if own == used:
        return []
    parts = f"{used} parts" if used > 1 else "1 part"
    return [
        f"method {config.method} runs {examples_at_a_time(config)} examples in {parts} in place of"
        f" {own}, which do not divide them"
    ]


def _is_traced(config: Config) -> bool:
    try:
        return find(config.model.family).traced
    except ValueError:  # a fault that another rule tells
        return False


def _chunks_are_given(config: Config) -> bool:
    return config.plan.batch_chunks is not None or "/chunks" in config.method


def architecture(config: Config) -> Architecture:
    """Sizes of the configured model, of a family that knows them (`Family.describe`).

    Raises:
      ValueError: they are incomplete.
    """
    describe = find(config.model.family).describe
    assert describe is not None
    return describe(config.model)


def column_budgets(config: Config, method: Method, sizes: Architecture) -> dict[str, int]:
    """K of each site where a policy chooses columns; not of those that keep all of them."""
    if not method.plan.kind("linear").selects:
        return {}
    # K of every site; where it is D, nothing is left to choose.
    budgets = {
        name: budget_for(method.plan.keep_at(name), site.columns, method.group_size)
        for name, site in sizes.sites.items()
    }
    return {name: k for name, k in budgets.items() if k < sizes.sites[name].columns}


def mean_kept(config: Config) -> float:
    """K / D, the mean over sites; those that keep all columns are included."""
    sizes = architecture(config)
    budgets = column_budgets(config, resolve_method(config), sizes)
    shares = [budgets.get(name, site.columns) / site.columns for name, site in sizes.sites.items()]
    return sum(shares) / len(shares)


def rate_factor(config: Config) -> float:
    """What `optimizer.rate_for_keep` multiplies the learning rate by.

    A row of a pruned kernel moves in K of D steps, and bears a higher rate.
    """
    power = config.optimizer.rate_for_keep
    return mean_kept(config) ** -power if power else 1.0


def rate_notes(config: Config) -> list[str]:
    """A line if the learning rate is another than the one that was set."""
    factor, o = rate_factor(config), config.optimizer
    if factor == 1.0:
        return []
    kept = mean_kept(config)
    return [
        f"learning rate {o.learning_rate * factor:.3g}: {o.learning_rate:g} of the settings times "
        f"{kept:.3g}^-{o.rate_for_keep:g}, since {kept:.1%} of the columns are kept in the mean "
        "(optimizer.rate_for_keep)"
    ]
