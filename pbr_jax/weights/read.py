"""What a file of weights is: its family, layout and sizes."""

import collections
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pbr_jax.families import FAMILIES
from pbr_jax.weights import beside, files, layout
from pbr_jax.weights.beside import ARCHITECTURE
from pbr_jax.weights.formats import Format, formats
from pbr_jax.weights.layout import Arrays, Line

_DESCRIBED = {"family": str, "sizes": {"depth": int, ...: int}}
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
    if os.path.isdir(path / files.PARAMS):
        return _own(path)
    stored = files.read(path)
    # A model that is not ours is better named than read by halves.
    for pattern, what in _FOREIGN.items():
        if any(re.match(pattern, name) for name in stored):
            raise ValueError(f"weights {path}: this is {what}; what can be read is {_ours()}")
    # The layout that knows most of the names.
    form = max(formats(), key=lambda form: _num_known(form, stored))
    if not _num_known(form, stored):
        some = f" ({', '.join(sorted(stored)[:3])} ...)" if stored else ""
        raise ValueError(
            f"weights {path}: of its {len(stored)} arrays{some} none belongs to {_ours()}"
        )
    # Layouts of one family can be alike, and the config beside a file says which of them it is.
    config = beside.model_config(path) if form.prefix else {}
    same = [other for other in formats() if other.family == form.family]
    form = next((f for f in same if config.get("model_type") in f.types), form)
    # Names as the layout has them, and what our model has no place for.
    unused: dict[str, list[str]] = {}
    names = {}
    for name in sorted(stored):
        if why := form.why_unused(name):
            unused.setdefault(why, []).append(name)
        else:
            names[form.full_name(name)] = name
    arrays = {full: stored[name] for full, name in names.items()}
    _check_types(path, {name: stored[name] for full, name in names.items() if form.knows(full)})
    # The shapes say all sizes but the number of heads, which a config beside the file may say.
    depth = _depth(form, arrays)
    if not depth:
        raise ValueError(f"weights {path}: has none of the blocks of {form.name}")
    sizes = {"depth": depth} | layout.infer_sizes(form.table(depth), arrays)
    # Without their prefix, the names of some families are alike.
    types = (*form.model_types, *form.related)
    if config.get("model_type", types[0]) not in types:
        raise ValueError(
            f"weights {path}: this is a {config['model_type']} by its config.json; what can be read"
            f" is {_ours()}"
        )
    if (heads := config.get("num_attention_heads")) is not None:
        width, apart = sizes.get("width", 0), "head_dim" in config
        if type(heads) is not int or heads < 1 or (width % heads and not apart):
            raise ValueError(
                f"weights {path}: its config.json says num_attention_heads = {heads}, which must be"
                f" a whole number that divides the width of its arrays, {width}; take the"
                " config.json that belongs to it, or move it away"
            )
        sizes.setdefault("heads", heads)
    return Weights(path, form, arrays, names, unused, sizes, config)


def _check_types(path: Path, arrays: Arrays) -> None:
    """Raises `ValueError` where arrays of a model are no floats."""
    types = {name: array.dtype.name for name, array in arrays.items()}
    wrong = {name: kind for name, kind in types.items() if not re.match("b?float", kind)}
    if wrong:
        kinds = " and ".join(sorted({*wrong.values()}))
        raise ValueError(
            f"weights {path}: {len(wrong)} of its arrays hold {kinds}, such as {min(wrong)};"
            " weights are float32, float16 or bfloat16: take a file that is not quantized, or"
            " convert it"
        )


def _ours() -> str:
    return ", ".join(form.name for form in formats())


def _num_known(form: Format, names: Mapping[str, Any]) -> int:
    return sum(map(form.knows, names))


def _depth(form: Format, arrays: Arrays) -> int:
    """The number of blocks, by most of the names that have one."""
    in_blocks = [form.in_block(name, "0") for name in arrays if form.block_of(name) is not None]
    counts = collections.Counter(collections.Counter(in_blocks).values())
    return counts.most_common(1)[0][0] if counts else 0


def _own(path: Path) -> Weights:
    """A directory of `export.save_orbax`: our tree as it is."""
    file, advice = path / ARCHITECTURE, "write it again with `pbr export`"
    with files.of_weights():
        described = beside.read_small_json(file, _DESCRIBED, advice)
    family, sizes = described["family"], described["sizes"]
    # A family of one's own is a place to import from, which is left to the configuration.
    if family not in FAMILIES and ":" not in family:
        known = ", ".join(FAMILIES)
        raise ValueError(f"weights {file}: family = {family}: there are {known}; {advice}")
    if wrong := [f"{word} = {size}" for word, size in sizes.items() if size < 1]:
        raise ValueError(f"weights {file}: {', '.join(wrong)}: must be 1 or more; {advice}")
    # Orbax is only given what was written: of much else it makes tracebacks, or other numbers.
    there, written = files.digests(path / files.PARAMS), described.get("files")
    written = written if isinstance(written, dict) else {}  # older exports have none
    if damaged := [name for name, digest in written.items() if there.get(name) != digest]:
        raise ValueError(
            f"weights {path / files.PARAMS}: damaged or missing: {', '.join(damaged)}; {advice}"
        )
    arrays = files.read(path)
    _check_types(path, arrays)
    lines = [Line(name, name) for name in arrays]
    # No name holds "\0": blocks are stacked, and none has a number.
    form = Format("pbr_jax's own tree", family, "orbax", lambda depth: lines, "\0")
    return Weights(path, form, arrays, {n: n for n in arrays}, {}, sizes, described)
