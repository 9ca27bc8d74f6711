"""Rules that tie settings together. Every check returns its faults as text."""

import math
from collections.abc import Callable, Iterable

from pbr_jax.configs.common import SHAPE, Config
from pbr_jax.families import FAMILIES, find
from pbr_jax.families.record import near_multiples
from pbr_jax.plans import Keep, budget_for
from pbr_jax.settings.resolve import architecture, resolve_method
from pbr_jax.settings.rules import nearest


def tie_faults(config: Config, faulty: Iterable[str]) -> list[str]:
    """Faults between settings. A rule that reads a key of `faulty` is skipped."""
    bad = set(faulty)
    found: list[str] = []
    for keys, check in _TIES:
        if any(f"{one}.".startswith(f"{key}.") for one in bad for key in keys):
            continue
        faults = check(config)
        # What builds on the method or the shape has nothing to stand on where these are faulty.
        bad |= set(keys) if faults and check in (_method, _shape) else set()
        found += faults
    return found


def _method(config: Config) -> list[str]:
    try:
        resolve_method(config)
    except ValueError as error:
        return str(error).splitlines()
    return []


def _keep(config: Config) -> list[str]:
    keep = config.pruning.keep
    sites = architecture(config).sites
    wrong = [] if not isinstance(keep, Keep) else [site for site in keep.sites if site not in sites]
    found = []
    for site in wrong:
        close = nearest(site, sites)
        hint = f"the nearest is {close}; " if close else ""
        found.append(
            f"pruning.keep.{site}: no such site; {hint}a {config.model.family} has"
            f" {', '.join(sites)}"
        )
    return found


def _accumulation(config: Config) -> list[str]:
    batch, parts = config.batch_size, config.optimizer.accumulation_steps
    if batch % parts == 0:
        return []
    return [
        f"batch_size = {batch}: not divisible by optimizer.accumulation_steps = {parts}; "
        f"the nearest that is: {near_multiples(batch, parts)}"
    ]


def _chunks(config: Config) -> list[str]:
    batch, parts = config.batch_size, config.optimizer.accumulation_steps
    chunks = resolve_method(config).plan.batch_chunks
    if batch % parts or batch // parts % chunks == 0:
        return []
    whose = "" if config.plan.batch_chunks else f" of method {config.method}"
    return [
        f"plan.batch_chunks = {chunks}{whose}: does not divide the {batch // parts} examples that"
        " are run at a time; the nearest batch_size that works:"
        f" {near_multiples(batch, parts * chunks)}; or set plan.batch_chunks=1"
    ]


def _shape(config: Config) -> list[str]:
    model, needed = config.model, find(config.model.family).shape
    given = [name for name in needed if getattr(model, name) is not None]
    if model.size is None and len(given) < len(needed):
        missing = ", ".join(f"model.{name}" for name in needed if name not in given)
        return [f"{missing}: must be set unless model.size names a model (Ti, S, B or L)"]
    if model.size is not None and given:
        listed = ", ".join(f"model.{name} = {getattr(model, name)}" for name in given)
        return [
            f"model.size = {model.size}: fixes the shape, but {listed} is set too; "
            f"set either to none"
        ]
    return []


def _heads(config: Config) -> list[str]:
    width, heads = config.model.width, config.model.heads
    if width is None or heads is None or width % heads == 0:
        return []
    return [
        f"model.width = {width}: not divisible by model.heads = {heads}; "
        f"the nearest that is: {near_multiples(width, heads)}"
    ]


def _family(config: Config) -> list[str]:
    return find(config.model.family).faults(config.model)


def _augment(config: Config) -> list[str]:
    data = config.data
    if data.augment in (None, "off", *data.source.augments):
        return []
    if data.source.kind == "text":
        return [f"data.augment = {data.augment}: changes images, but {data.name} is text; set off"]
    return [
        f"data.augment = {data.augment}: is for small images in arrays, but {data.name} has files; "
        "set crop"
    ]


def _reads(config: Config) -> list[str]:
    family, kind = find(config.model.family), config.data.source.kind
    if family.reads == kind:
        return []
    others = [other.name for other in FAMILIES.values() if other.reads == kind]
    return [
        f"model.family = {config.model.family}: reads {family.reads}s, and data set"
        f" {config.data.name} has {kind}s; set model.family={' or '.join(others)} or another"
        " data.name"
    ]


def _classes(config: Config) -> list[str]:
    there = config.data.source.num_classes
    if there in (None, config.model.num_classes):
        return []
    return [
        f"model.num_classes = {config.model.num_classes}: data set {config.data.name} has {there}"
        f" classes; set model.num_classes={there}"
    ]


def _tokenizer(config: Config) -> list[str]:
    data = config.data
    if data.source.kind != "text" or data.tokenizer is not None:
        return []
    return [
        f"data.tokenizer = none: {data.name} is text; set it to the vocab.txt or tokenizer.json"
        " that comes with the model's weights"
    ]


def _warmup(config: Config) -> list[str]:
    warmup, steps = config.optimizer.warmup_steps, config.steps
    if warmup < steps:
        return []
    return [
        f"optimizer.warmup_steps = {warmup}: must be below steps = {steps}; "
        f"a tenth of them is {steps // 10}"
    ]


def _budgets(config: Config) -> list[str]:
    """Arms must tile the columns, and min_prob for all of them must fit in the budget K."""
    method, sites = resolve_method(config), architecture(config).sites
    if method.policy is None:
        return []
    group, min_prob = config.pruning.group_size, config.pruning.min_prob
    widths = sorted({site.columns for site in sites.values()})
    shared = math.gcd(*widths)
    if shared % group:
        return [
            f"pruning.group_size = {group}: must divide the columns of every site,"
            f" {' and '.join(map(str, widths))}; the nearest that does:"
            f" {_nearest_divisor(shared, group)}"
        ]
    if min_prob is None:
        return []
    # One line, for the site with the least room: what fits there fits everywhere.
    room = []
    for name, site in sites.items():
        budget = budget_for(method.plan.keep_at(name), site.columns, group)
        room.append((budget / site.columns, name, site.columns, budget))
    share, name, columns, budget = min(room)
    if min_prob <= share:
        return []
    return [
        f"pruning.min_prob = {min_prob}: times the {columns} columns of site {name} is "
        f"{min_prob * columns:g}, above its budget of {budget} columns; "
        f"at most {math.floor(share * 1000) / 1000:g} fits"
    ]


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [factor for factor in range(1, number + 1) if number % factor == 0]
    return min(divisors, key=lambda factor: abs(factor - wanted))


_METHOD = ("method", "pruning", "plan")
_SHAPE = ("model.family", "model.size", *(f"model.{name}" for name in SHAPE))
_BATCH = ("batch_size", "optimizer.accumulation_steps")
# The keys that a rule reads, and the rule; one that needs the method comes after `_method`.
_TIES: tuple[tuple[tuple[str, ...], Callable[[Config], list[str]]], ...] = (
    (_METHOD, _method),
    (_BATCH, _accumulation),
    ((*_BATCH, *_METHOD), _chunks),
    (_SHAPE, _shape),
    (("model.width", "model.heads"), _heads),
    (("model",), _family),
    (("data.name", "data.augment"), _augment),
    (("model.family", "data.name"), _reads),
    (("data.name", "model.num_classes"), _classes),
    (("data.name", "data.tokenizer"), _tokenizer),
    (("optimizer.warmup_steps", "steps"), _warmup),
    ((*_SHAPE, "pruning.keep"), _keep),
    ((*_SHAPE, *_METHOD), _budgets),
)
