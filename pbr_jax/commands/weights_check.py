"""Says what a file of weights is, whether it is whole, and which configuration it fits.

    pbr weights check ViT-B_16.npz
    pbr weights check model.safetensors --config configs/vit_b16.py

Exit code 1 when it does not fit the configuration or, without one, is not whole by its own sizes.
Reads `.npz`, safetensors, the index of a sharded checkpoint, and directories of these.
"""

import argparse
import collections

from pbr_jax.configs.common import Config, Model
from pbr_jax.families import FAMILIES
from pbr_jax.reading import few
from pbr_jax.settings.flags import add_config
from pbr_jax.settings.load import SHIPPED, ConfigError, load, relative
from pbr_jax.training import from_config, pretrained
from pbr_jax.training.inputs import as_setting
from pbr_jax.weights import (
    Normalization,
    Weights,
    WeightsError,
    check,
    own_classes,
    own_faults,
    preparation_of,
    published,
    read,
    remarks,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    add_config(parser, required=False)


def main(args: argparse.Namespace) -> int:
    """Prints what the file is; returns 0 if it fits, else 1."""
    weights = read(pretrained.find_weights(args.file))
    print(weights.path)
    for title, text in facts(weights):
        print(f"  {title:<12}{text}")
    if args.config is not None:
        return _check_config(weights, args.config, args.arguments.config)
    faults = own_faults(weights)
    if not faults:
        print("It is whole.")
        return 0
    print(f"It is not whole; {pretrained.describe(weights)} would have other arrays:")
    for fault in faults:
        print(f"  {fault}")
    return 1


def facts(weights: Weights) -> list[tuple[str, str]]:
    """Facts about the weights, a title and a text each."""
    sizes, arrays = weights.sizes, weights.arrays.values()
    dtypes = collections.Counter(str(array.dtype) for array in arrays)
    count = sum(array.size for array in arrays)
    shape = ", ".join(f"{word} {sizes[word]}" for word in sorted(sizes))
    found = [
        ("is", f"{pretrained.describe(weights)}, {weights.format.name}"),
        ("parameters", f"{count / 1e6:.2f} M, {' and '.join(sorted(dtypes))}"),
        ("sizes", shape),
    ]
    found += [("not used", f"{', '.join(names)} ({why})") for why, names in weights.unused.items()]
    # What lies beside the file.
    names, why_not = own_classes(weights)
    if names or why_not:
        found.append(("classes", few(names, 6) if names else why_not))
    family = FAMILIES.get(weights.family)
    if family is not None and family.reads == "image":
        beside = preparation_of(weights.path)
        mean, std = map(as_setting, Normalization() if beside is None else beside.normalization)
        by = "" if beside is None else f", by {beside.file.name}"
        found.append(("images", f"mean {mean}, deviation {std}{by}"))
        found += [("note", note) for note in ([] if beside is None else beside.notes)]
    found += [("note", note) for note in remarks(weights)]
    # Settings that differ from the defaults, and the shipped files that have them.
    found.append(("settings", pretrained.flags(weights, Model()) or "the defaults"))
    shipped = [str(relative(file)) for file in sorted(SHIPPED.glob("*.py"))]
    fitting = [spec for spec in shipped if _fits(weights, spec)]
    found.append(("fits", ", ".join(fitting) or "none of the configurations here as it stands"))
    return found


def _fits(weights: Weights, spec: str) -> bool:
    try:
        _notes(weights, load(spec))
    except (ConfigError, WeightsError):
        return False
    return True


def _notes(weights: Weights, config: Config) -> list[str]:
    """Notes that loading into the model of a configuration gives; raises as loading does."""
    # Shapes are all that is compared, so no parameter is drawn.
    like, _ = from_config.build(config).model.shapes()
    family, form = config.model.family, published(config.model.family)
    if faults := form.differences(weights.config, config.model):
        raise WeightsError(weights.path, faults)
    return check(weights, family, form.sizes(config.model), like)


def _check_config(weights: Weights, spec: str, config: Config) -> int:
    try:
        notes = _notes(weights, config)
    except WeightsError as error:
        print(f"It does not fit {spec}:")
        for line in (*error.faults, pretrained.advice(weights, config.model)):
            print(f"  {line}")
        return 1
    print(f"It fits {spec}.")
    for note in notes:
        if note not in remarks(weights):  # which are among the facts
            print(f"  {note}")
    return 0
