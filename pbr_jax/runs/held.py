"""What a run holds of its inputs, so that it needs nothing from elsewhere: `inputs/` in its folder.

    vocab.txt or tokenizer.json   the tokenizer of a model of texts, as the run began with it
    tokenizer_config.json         what lay beside that, if it did, and so chat_template.jinja
    examples.npz                  the lists of both splits (`data.listing`)
    files.json                    the sha256 of these

Files of the user's are copied from where his configuration says, once, when the run begins. A path
that the `config.json` of a run names is never copied from. How images are normalised joins here.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from pbr_jax.configs.common import Config
from pbr_jax.data.listing import Change, Listing, compare, from_bytes, to_bytes
from pbr_jax.files import DamagedFile, read_bytes, read_json, user_path, write_bytes, write_json

FOLDER = "inputs"
EXAMPLES = "examples.npz"
SPLITS = ("train", "test")
_SUMS = "files.json"
_TOKENIZERS = ("vocab.txt", "tokenizer.json")
# What lies beside a tokenizer and belongs to it.
_BESIDE = ("tokenizer_config.json", "chat_template.jinja")


def tokenizer_files(tokenizer: Path) -> dict[str, bytes]:
    """What a tokenizer consists of, under the names that it has in a run."""
    tokenizer = _file_of(tokenizer)
    files = {"tokenizer.json" if tokenizer.suffix == ".json" else "vocab.txt": tokenizer}
    files |= {name: tokenizer.with_name(name) for name in _BESIDE}
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}


def _file_of(tokenizer: Path) -> Path:
    return tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer


def write(workdir: Path, files: Mapping[str, bytes]) -> None:
    """Puts files into a run, and their checksums last."""
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    sums = _sums(workdir) | {name: _digest(content) for name, content in files.items()}
    # Sums last: a write that was cut off leaves files that no sum vouches for.
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_json(folder / _SUMS, sums)


def tokenizer(workdir: Path) -> dict[str, bytes]:
    """The files of a run's tokenizer by name; none if it is of images, or from before it held one.

    Raises:
      DamagedFile: one is not what the run began with.
    """
    found = {name: _read(workdir, name) for name in (*_TOKENIZERS, *_BESIDE)}
    return {name: content for name, content in found.items() if content is not None}


def with_own_tokenizer(config: Config, workdir: Path) -> Config:
    """`config` with the tokenizer that the run in `workdir` holds, if it holds one.

    Raises:
      DamagedFile: it is not what the run began with.
    """
    found = [name for name in tokenizer(workdir) if name in _TOKENIZERS]
    if not found:
        return config
    own = str(workdir / FOLDER / found[0])
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=own))


def tokenizer_to_copy(config: Config, workdir: Path) -> dict[str, bytes]:
    """The files of a run's tokenizer, to be copied from it.

    Raises:
      ValueError: it holds none, and the one that `config` names lies elsewhere. A run may be
        somebody else's, and name any file of the reader's.
    """
    if files := tokenizer(workdir):
        return files
    assert config.data.tokenizer is not None  # a run on text has one
    named = _file_of(user_path(config.data.tokenizer))
    if any(_leads_out(workdir, named.with_name(name)) for name in (named.name, *_BESIDE)):
        raise ValueError(
            f"{workdir} holds no tokenizer, and {named}, named in its config.json, lies elsewhere\n"
            f"Copy the vocab.txt or tokenizer.json of its model to {workdir / FOLDER}, and export"
            " again."
        )
    return tokenizer_files(named)


def check_tokenizer(config: Config, workdir: Path) -> list[str]:
    """Notes on the tokenizer of a run that goes on with `config`.

    Raises:
      ValueError: it is another one than that with which the run began.
    """
    held, named = tokenizer(workdir), config.data.tokenizer
    if not held or named is None:
        return []
    now = tokenizer_files(user_path(named))
    # The run needs only its own copy; one that changed would prepare texts otherwise.
    if not {*now} & {*_TOKENIZERS}:
        return [f"data.tokenizer = {named} is gone: the run goes on with its own copy of it"]
    if differing := sorted(n for n in {*held, *now} if held.get(n) != now.get(n)):
        raise ValueError(
            f"data.tokenizer = {named}: its {', '.join(differing)} changed since the run began\n"
            f"Put back what is in {workdir / FOLDER}, or start afresh with another --workdir than"
            f" {workdir}."
        )
    return []


def examples(workdir: Path) -> dict[str, Listing] | None:
    """The lists of a run's examples by split; None if it is from before it held them.

    Raises:
      DamagedFile: they are not what was written.
    """
    stored = _read(workdir, EXAMPLES)
    if stored is None:
        return None
    try:
        return from_bytes(stored, SPLITS)
    except ValueError as error:
        raise DamagedFile(f"{workdir / FOLDER / EXAMPLES}: {error}; {_advice(workdir)}") from error


def check_examples(workdir: Path, now: Mapping[str, Listing]) -> dict[str, Change] | None:
    """What is gone of the examples of a run, by split; None where that is not known.

    Raises:
      ValueError: examples were gained, changed or reordered; says how many and some names.
    """
    before = examples(workdir)
    if before is None:
        return None
    found = {split: compare(before[split], now[split]) for split in SPLITS}
    changes = {split: change for split, change in found.items() if change is not None}
    # A run may lose examples, as broken files are skipped; anything else would change its order.
    if not all(change.only_lost for change in changes.values()):
        lines = "".join(f"\n  {split}: {change}" for split, change in changes.items())
        raise ValueError(
            f"the data changed since the run in {workdir} began:{lines}\n"
            "Put it back, or remove what was gained or changed (a run may lose examples), or start"
            f" afresh with another --workdir than {workdir}."
        )
    return changes


def examples_file(lists: Mapping[str, Listing]) -> dict[str, bytes]:
    """The file of lists, for `write`."""
    return {EXAMPLES: to_bytes(lists)}


def _read(workdir: Path, name: str) -> bytes | None:
    """A file that a run holds, as it was written; None if it holds none of that name."""
    file, wanted = workdir / FOLDER / name, _sums(workdir).get(name)
    # A file that the user put there has no sum, and is taken as it is; none may lead elsewhere.
    if wanted is None and not os.path.lexists(file):
        return None
    if _leads_out(workdir, file):
        raise DamagedFile(f"{file}: leads out of the run; {_advice(workdir)}")
    content = read_bytes(file, _advice(workdir))
    if wanted not in (None, _digest(content)):
        raise DamagedFile(
            f"{file}: is not what the run began with (sha256 differs); {_advice(workdir)}"
        )
    return content


def _sums(workdir: Path) -> dict[str, str]:
    """The sha256 of what a run holds, by name; none of it where the user put a file there."""
    folder, file = workdir / FOLDER, workdir / FOLDER / _SUMS
    if os.path.lexists(folder) and not folder.is_dir():
        raise DamagedFile(f"{folder}: is no folder; {_advice(workdir)}")
    return read_json(file, {...: str}, _advice(workdir)) if os.path.lexists(file) else {}


def _leads_out(workdir: Path, file: Path) -> bool:
    return not file.resolve().is_relative_to(workdir.resolve())


def _advice(workdir: Path) -> str:
    return f"put it back, or remove {workdir / FOLDER}: then the run has what its settings name"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
