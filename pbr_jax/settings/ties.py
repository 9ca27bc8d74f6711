"""Rules that tie settings together. Every rule yields its faults as text."""

import math
from collections.abc import Callable, Iterable, Iterator

from pbr_jax.configs.common import BATCH, SHAPE, WIDTH, Config, Model, channel_numbers
from pbr_jax.families import FAMILIES, find
from pbr_jax.families.record import near_multiples
from pbr_jax.names import nearest
from pbr_jax.plans import MOST_DRAWN, MOST_ELEMENTS, Keep, budget_for
from pbr_jax.settings.resolve import (
    architecture,
    batch_divisor,
    examples_at_a_time,
    family_faults,
    named_method,
)

Faults = Iterator[str]


def tie_faults(config: Config, faulty: Iterable[str]) -> list[str]:
    """Faults between settings. A rule that reads a key of `faulty` is skipped."""
    bad = set(faulty)
    found: list[str] = []
    for keys, rule in _TIES:
        if any(f"{one}.".startswith(f"{key}.") for one in bad for key in keys):
            continue
        faults = list(rule(config))
        # What builds on the method or the shape has nothing to stand on where these are faulty.
        if faults and rule in (_method, _shape):
            bad |= set(keys)
        found += faults
    return found


def _method(config: Config) -> Faults:
    try:
        named_method(config)
    except ValueError as error:
        yield from str(error).splitlines()


def _methods(config: Config) -> Faults:
    yield from family_faults(config)


def _keep(config: Config) -> Faults:
    keep, sites = config.pruning.keep, architecture(config).sites
    for site in keep.sites if isinstance(keep, Keep) else ():
        if site not in sites:
            close = nearest(site, sites)
            yield (
                f"pruning.keep.{site}: no such site; {f'the nearest is {close}; ' if close else ''}"
                f"a {config.model.family} has {', '.join(sites)}"
            )


def _shards(config: Config) -> Faults:
    devices, shards = config.mesh.data, config.mesh.fsdp
    if devices is not None and devices % shards:
        yield (
            f"mesh.fsdp = {shards}: must divide mesh.data = {devices}, the devices that share a"
            f" batch; set mesh.fsdp={math.gcd(devices, shards)}"
        )
    if config.mesh.split != "parameters" and shards == 1:
        yield (
            f"mesh.split = {config.mesh.split!r}: splits nothing with mesh.fsdp = 1; set mesh.fsdp"
            " to the number of devices that split, or leave it out"
        )


def _accumulation(config: Config) -> Faults:
    # The optimizer splits a batch into parts, and the blocks each part into chunks.
    batch, parts = config.batch_size, config.optimizer.accumulation_steps
    if parts > batch:
        yield (
            f"optimizer.accumulation_steps = {parts}: more parts than examples, batch_size ="
            f" {batch}; set optimizer.accumulation_steps={batch} or less"
        )
    elif config.mesh.data is not None and batch % (parts * config.mesh.data):
        yield (
            f"mesh.data = {config.mesh.data}: devices must have equal parts of batch_size = {batch}"
            + (f" by optimizer.accumulation_steps = {parts}" if parts > 1 else "")
            + f"; set mesh.data={math.gcd(batch // parts, config.mesh.data)}, or batch_size="
            + near_multiples(batch, parts * config.mesh.data, BATCH).replace("and", "or")
        )
    elif examples_at_a_time(config) is None:
        yield (
            f"batch_size = {batch}: not divisible by optimizer.accumulation_steps = {parts}; "
            f"the nearest that is: {near_multiples(batch, parts, BATCH)}"
        )


def _chunks(config: Config) -> Faults:
    batch, micro, divisor = config.batch_size, examples_at_a_time(config), batch_divisor(config)
    if micro is not None and batch % divisor:
        chunks = named_method(config).plan.batch_chunks
        whose = "" if config.plan.batch_chunks else f" of method {config.method}"
        near = near_multiples(batch, divisor, BATCH) if divisor < batch else ""
        yield (
            f"plan.batch_chunks = {chunks}{whose}: does not divide the {micro} examples that are "
            f"run at a time; set plan.batch_chunks={math.gcd(micro, chunks)}"
            + (f", or another batch_size; the nearest that works: {near}" if near else "")
        )


def _shape(config: Config) -> Faults:
    # The size of a model goes by name or number by number.
    model, needed = config.model, find(config.model.family).shape
    given = [name for name in needed if getattr(model, name) is not None]
    if model.size is None and len(given) < len(needed):
        missing = ", ".join(f"model.{name}" for name in needed if name not in given)
        yield (
            f"{missing}: must be set unless model.size names a model (Ti, S, B or L); set "
            + (_usual(model, needed) if given else "model.size=B")
        )
    if model.size is not None and given:
        listed = ", ".join(f"model.{name} = {getattr(model, name)}" for name in given)
        unset = " and ".join(f"model.{name}=none" for name in given)
        # Without the size all of the shape must be there.
        other = "model.size=none or " if len(given) == len(needed) else ""
        yield (
            f"model.size = {model.size}: fixes the shape, but {listed} is set too; set {other}"
            f"{unset}"
        )


def _usual(model: Model, needed: Iterable[str]) -> str:
    """What completes a shape in the usual proportions: heads of 64 channels, an MLP four wide."""
    width = model.width or 64 * (model.heads or 12)
    usual = (width, 12, math.gcd(width, 12), 4 * width)
    shape = {name: value for name, value in zip(SHAPE, usual, strict=True) if name in needed}
    lacking = [f"model.{n}={v}" for n, v in shape.items() if getattr(model, n) is None]
    return " and ".join(lacking)


def _heads(config: Config) -> Faults:
    width, heads = config.model.width, config.model.heads
    apart = config.model.decoder.head_dim is not None  # heads have a width of their own
    if apart and "decoder" in find(config.model.family).settings:
        return
    if width is not None and heads is not None and width % heads:
        yield (
            f"model.width = {width}: not divisible by model.heads = {heads}; "
            f"the nearest that is: {near_multiples(width, heads, WIDTH)}"
        )


def _family(config: Config) -> Faults:
    yield from find(config.model.family).faults(config.model)


def _augment(config: Config) -> Faults:
    name, augment, source = config.data.name, config.data.augment, config.data.source
    if augment in (None, "off", *source.augments):
        return
    if source.kind == "text":
        yield (
            f"data.augment = {augment}: changes images, but {name} is text; set data.augment=off"
        )
    else:
        yield (
            f"data.augment = {augment}: is for small images in arrays, but {name} has files; "
            "set data.augment=crop"
        )


def _channels(config: Config) -> Faults:
    channels = config.model.channels
    for name, value in (("mean", config.data.mean), ("std", config.data.std)):
        count = 1 if value is None else len(channel_numbers(value))
        if count not in (1, channels) and config.data.source.kind == "image":
            yield (
                f"data.{name} = {value}: has {count} numbers; give one, or as many as"
                f" model.channels = {channels}"
            )


def _reads(config: Config) -> Faults:
    family, kind = find(config.model.family), config.data.source.kind
    if family.reads not in (None, kind):
        others = [other.name for other in FAMILIES.values() if other.reads == kind]
        yield (
            f"model.family = {config.model.family}: reads {family.reads}s, and data set "
            f"{config.data.name} has {kind}s; set model.family={' or '.join(others)} or another "
            "data.name"
        )


def _classes(config: Config) -> Faults:
    classes, there = config.model.num_classes, config.data.source.num_classes
    if there not in (None, classes):
        yield (
            f"model.num_classes = {classes}: data set {config.data.name} has {there} classes; "
            f"set model.num_classes={there}"
        )


def _tokenizer(config: Config) -> Faults:
    if config.data.source.kind == "text" and config.data.tokenizer is None:
        yield (
            f"data.tokenizer = none: {config.data.name} is text; set data.tokenizer=vocab.txt or "
            "data.tokenizer=tokenizer.json, the file that comes with the model's weights"
        )


def _warmup(config: Config) -> Faults:
    warmup, steps = config.optimizer.warmup_steps, config.steps
    if warmup >= steps:
        yield (
            f"optimizer.warmup_steps = {warmup}: must be below steps = {steps}; "
            f"set optimizer.warmup_steps={steps // 10}, or another that is"
        )


def _budgets(config: Config) -> Faults:
    """Arms must tile the columns, and min_prob for all of them must fit in the budget K."""
    method, sites = named_method(config), architecture(config).sites
    group, min_prob = config.pruning.group_size, config.pruning.min_prob
    if method.policy is None:
        return
    # Groups tile the columns of every site where they divide what all have in common.
    widths = sorted({site.columns for site in sites.values()})
    shared = math.gcd(*widths)
    if shared % group:
        divisors = [factor for factor in range(1, shared + 1) if shared % factor == 0]
        nearest_divisor = min(divisors, key=lambda factor: abs(factor - group))
        yield (
            f"pruning.group_size = {group}: must divide the columns of every site, "
            f"{' and '.join(map(str, widths))}; set pruning.group_size={nearest_divisor}"
        )
    elif min_prob is not None:
        # One line, for the site with the least room: what fits there fits everywhere.
        room = []
        for name, site in sites.items():
            budget = budget_for(method.plan.keep_at(name), site.columns, group)
            room.append((budget / site.columns, name, site.columns, budget))
        share, name, columns, budget = min(room)
        if min_prob > share:
            yield (
                f"pruning.min_prob = {min_prob}: times the {columns} columns of site {name} is "
                f"{min_prob * columns:g}, above its budget of {budget} columns; set "
                f"pruning.min_prob={_rounded_down(share):g} or less"
            )


def _rounded_down(share: float) -> float:
    """A number in (0, 1] with its first three digits."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 2)
    return math.floor(share / unit) * unit


def _draws(config: Config) -> Faults:
    """What draws exactly K of the columns counts groups in 16 bits."""
    method, sites = named_method(config), architecture(config).sites
    group = config.pruning.group_size
    if method.policy is None or config.pruning.sampler != "systematic":
        return
    for name, site in sites.items():
        if site.columns % group:  # told by another rule
            return
        budget = budget_for(method.plan.keep_at(name), site.columns, group)
        if budget // group > MOST_DRAWN and budget < site.columns:
            yield (
                f"pruning.sampler = systematic: draws at most {MOST_DRAWN} groups of columns, and"
                f" site {name} keeps {budget // group}; set pruning.sampler=bernoulli"
            )
            return


def _elements(config: Config) -> Faults:
    """What keeps the largest elements of an example numbers them in int32."""
    plan, sizes = named_method(config).plan, architecture(config)
    heads = sizes.attention.heads if sizes.attention else 0
    counts = {
        "linear": sizes.tokens * sizes.hidden,
        "layer_norm": sizes.tokens * sizes.width,
        "attention": heads * sizes.tokens**2,
    }
    for op, count in counts.items():
        if getattr(plan, op) == "elements" and count > MOST_ELEMENTS:
            # What the setting itself does not say is the method's own.
            given = getattr(config.plan, op) is not None
            other = f"plan.{op}=none" if given else "method=prebackrazor"
            yield (
                f"plan.{op} = elements: keeps the largest of at most {MOST_ELEMENTS} elements of"
                f" an example, which has {count}; set {other}"
            )


def _of_sizes(rule: Callable[[Config], Faults]) -> Callable[[Config], Faults]:
    """A rule about sizes, for families whose sizes are known before their program is."""

    def checked(config: Config) -> Faults:
        return iter(()) if find(config.model.family).describe is None else rule(config)

    return checked


_METHOD = ("method", "pruning", "plan")
_SHAPE = ("model.family", "model.size", *(f"model.{name}" for name in SHAPE))
_BATCH = ("batch_size", "optimizer.accumulation_steps", "mesh.data")
# The keys that a rule reads, and the rule; one that needs the method comes after `_method`.
_TIES: tuple[tuple[tuple[str, ...], Callable[[Config], Faults]], ...] = (
    (_METHOD, _method),
    (("mesh.data", "mesh.fsdp", "mesh.split"), _shards),
    (_BATCH, _accumulation),
    ((*_BATCH, *_METHOD), _chunks),
    (_SHAPE, _shape),
    (("model.family", "model.width", "model.heads", "model.decoder"), _heads),
    (("model",), _family),
    (("data.name", "data.augment"), _augment),
    (("data.mean", "data.std", "data.name", "model.channels"), _channels),
    (("model.family", "data.name"), _reads),
    (("data.name", "model.num_classes"), _classes),
    (("data.name", "data.tokenizer"), _tokenizer),
    (("optimizer.warmup_steps", "steps"), _warmup),
    # What a family makes its architecture of, only the family knows.
    (("model.family", *_METHOD), _methods),
    (("model", "pruning.keep"), _of_sizes(_keep)),
    (("model", *_METHOD), _of_sizes(_budgets)),
    (("model", *_METHOD), _of_sizes(_draws)),
    (("model", *_METHOD), _of_sizes(_elements)),
)
