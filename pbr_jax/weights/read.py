"""What a file of weights is: its family, layout and sizes, and whether it is whole."""

import collections
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pbr_jax.files import read_json
from pbr_jax.weights import files, layout
from pbr_jax.weights.formats import Format, formats
from pbr_jax.weights.layout import Arrays, Line

ARCHITECTURE = "architecture.json"  # beside an Orbax checkpoint of ours: {"family", "sizes"}
OPTIONAL = ("head", "pooler", "cls")  # parts of our tree that a whole file may lack
_FOREIGN = {  # a pattern that some name begins with -> what such a file is
    r"conv_root/|block1/unit": "a hybrid of ResNet and ViT",
    r"MixerBlock_": "an MLP-Mixer",
    r"deit\.|.*distillation_token": "a DeiT",
    r"blocks\.0\.attn\.qkv\.": "a ViT in timm's layout",
    r"roberta\.": "a RoBERTa",
    r"distilbert\.": "a DistilBERT",
    r"albert\.": "an ALBERT",
    r"electra\.": "an ELECTRA",
    r"(vision|text)_model\.": "a CLIP",
}


class Weights(NamedTuple):
    """A file of weights."""

    path: Path
    format: Format  # its layout
    arrays: Arrays  # those that `format` knows, under its names, and others under their own
    names: dict[str, str]  # name in `arrays` -> name in the file
    unused: dict[str, list[str]]  # what it is -> names in the file, of what no model of ours has
    sizes: dict[str, int]  # of the words of `format`; no "heads" where only a config would tell
    config: dict[str, Any]  # `config.json` beside a file in Hugging Face's layout, empty without

    @property
    def family(self) -> str:
        """Name of the family whose weights these are."""
        return self.format.family

    def names_of(self, part: str) -> list[str]:
        """Names in `arrays` of what belongs to a part of our tree, such as "head"."""
        lines = self.format.table(self.sizes["depth"])
        names = [line.theirs for line in lines if line.ours.split("/")[0] == part]
        return [name for name in names if name in self.arrays]


def read(path: str | os.PathLike[str]) -> Weights:
    """Reads a file and finds out what it is.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it cannot be read, or is of a model that is not ours.
    """
    path = Path(path)
    stored = files.read(path)
    if (path / ARCHITECTURE).is_file():
        return _own(path, stored)
    # A model that is not ours is better named than read by halves.
    for pattern, what in _FOREIGN.items():
        if any(re.match(pattern, name) for name in stored):
            raise ValueError(f"weights {path}: this is {what}; what can be read is {_ours()}")
    # The layout that knows most of the names.
    form = max(formats(), key=lambda form: _num_known(form, stored))
    if not _num_known(form, stored):
        some = ", ".join(sorted(stored)[:3])
        raise ValueError(
            f"weights {path}: of its {len(stored)} arrays ({some} ...) none belongs to {_ours()}"
        )
    # Names as the layout has them, and what our model has no place for.
    unused: dict[str, list[str]] = {}
    names = {}
    for name in sorted(stored):
        if why := form.why_unused(name):
            unused.setdefault(why, []).append(name)
        else:
            names[form.full_name(name)] = name
    arrays = {full: stored[name] for full, name in names.items()}
    # The shapes say all sizes but the number of heads, which a config beside the file may say.
    depth = _depth(form, arrays)
    sizes = {"depth": depth} | layout.infer_sizes(form.table(depth), arrays)
    config = _config_beside(path) if form.prefix else {}
    # Without their prefix, the names of some families are alike.
    if config.get("model_type", form.family) != form.family:
        raise ValueError(
            f"weights {path}: this is a {config['model_type']} by its config.json; what can be read"
            f" is {_ours()}"
        )
    if "num_attention_heads" in config:
        sizes.setdefault("heads", config["num_attention_heads"])
    return Weights(path, form, arrays, names, unused, sizes, config)


def _ours() -> str:
    return ", ".join(form.name for form in formats())


def own_faults(weights: Weights) -> list[str]:
    """What is missing, superfluous, misshapen or not finite by what the file itself says."""
    # Where the file is silent about a size, any will do: its arrays are compared with themselves.
    sizes = collections.defaultdict(lambda: 1, weights.sizes)
    absent = [part for part in OPTIONAL if not weights.names_of(part)]
    expected = {
        line.theirs: layout.shape_of(line, weights.arrays.get(line.theirs), sizes)
        for line in weights.format.table(sizes["depth"])
        if line.ours.split("/")[0] not in absent
    }
    return faults(weights, weights.arrays, expected)


def faults(weights: Weights, arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for every array that is missing, superfluous, misshapen or not finite.

    Arrays of several blocks with the same fault share a line.
    """
    found: dict[tuple[str, str], list[str]] = {}

    def add(name: str, text: str) -> None:
        found.setdefault((weights.format.in_block(name, "0"), text), []).append(name)

    for name in sorted(expected.keys() - arrays.keys()):
        add(name, "missing: {}")
    for name in sorted(arrays.keys() - expected.keys()):
        add(name, "not in the model: {}")
    for name in sorted(expected.keys() & arrays.keys()):
        if arrays[name].shape != expected[name]:
            add(name, f"{{}} is {arrays[name].shape}, the model wants {expected[name]}")
        elif not np.all(np.isfinite(arrays[name])):
            add(name, "{} has values that are not finite")
    return [text.format(_listed(weights, names)) for (_, text), names in found.items()]


def _listed(weights: Weights, names: list[str]) -> str:
    """One name of the file, or that of all blocks with their numbers."""
    form, name = weights.format, weights.names.get(names[0], names[0])
    if len(names) == 1:
        return name
    numbers = sorted(form.block_of(name) or 0 for name in names)
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    listed = f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
    return f"{form.in_block(name, '*')} of blocks {listed}"


def _num_known(form: Format, names: Mapping[str, Any]) -> int:
    known = {line.theirs for line in form.table(1)}
    return sum(form.in_block(form.full_name(name), "0") in known for name in names)


def _depth(form: Format, arrays: Arrays) -> int:
    """The number of blocks, by most of the names that have one."""
    in_blocks = [form.in_block(name, "0") for name in arrays if form.block_of(name) is not None]
    counts = collections.Counter(collections.Counter(in_blocks).values())
    return counts.most_common(1)[0][0] if counts else 0


def _config_beside(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    # A run of ours also has a config.json; Hugging Face's names the type of the model.
    return config if isinstance(config, dict) and "model_type" in config else {}


def _own(path: Path, arrays: Arrays) -> Weights:
    """A directory of `export.save_orbax`: our tree as it is."""
    form = {"family": str, "sizes": dict}
    described = read_json(path / ARCHITECTURE, form, "export the model again")
    lines = [Line(name, name) for name in arrays]
    # No name holds "\0": blocks are stacked, and none has a number.
    layout = Format("pbr_jax's own tree", described["family"], "orbax", lambda depth: lines, "\0")
    return Weights(path, layout, arrays, {n: n for n in arrays}, {}, described["sizes"], {})
