"""What a file that we do not read is, by its first bytes, and how weights come out of it."""

import glob
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pbr_jax.reading import foreign

_TAKE = "take model.safetensors of the same model"
_UNPACK = "unpack it and name the file of weights in it"
_PICKLE = "a pickle of PyTorch, which could run code and is not read"
_FLAX = (
    f"a msgpack file of Flax; {_TAKE}, or write it with Transformers 4 and PyTorch:"
    " from_pretrained(FOLDER, from_flax=True).save_pretrained(FOLDER)"
)
_HDF5 = (
    f"an HDF5 file of Keras or TensorFlow; {_TAKE}, or write it with Transformers 4, PyTorch and"
    " TensorFlow: from_pretrained(FOLDER, from_tf=True).save_pretrained(FOLDER)"
)
_MAGIC = (  # where, pattern of the bytes there -> what such a file is
    (0, rb"\x89HDF", _HDF5),
    (0, rb"GGUF", f"a GGUF file of llama.cpp; {_TAKE}"),
    (0, rb"\x80[\x02-\x05]", _PICKLE),
    (0, rb"\x93NUMPY", "a single NumPy array; weights are an .npz, which holds one for each name"),
    (0, rb"[\x81-\x8f\xde\xdf].{0,4}[\xa1-\xbf\xd9][a-z]", _FLAX),
    (
        0,
        rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x3a\x42]",
        f"an ONNX model or another protobuf; {_TAKE}",
    ),
    (0, rb"\x0a.{1,3}\x08\x01\x12", f"a SavedModel of TensorFlow; {_TAKE}"),
    (4, rb"TFL3", f"a TensorFlow Lite model; {_TAKE}"),
    (257, rb"ustar", f"a tar archive; {_UNPACK}"),
    (0, rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", f"a packed archive; {_UNPACK}"),
    (0, rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF", "an image or a document, not weights"),
    (0, rb"\x7fELF|MZ", "a program, not weights"),
)
OURS = (".npz", ".safetensors")  # endings of files that can be read
_ENDINGS = {  # of files that a folder of a model may hold in place of ours
    *OURS,
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".hdf5", ".keras", ".msgpack"),
    *(".onnx", ".gguf", ".pb", ".tflite", ".index", ".tar", ".gz", ".tgz", ".zip", ".7z"),
}
_NOT_A_MODEL = re.compile(r"(optimizer|scheduler|training_args|rng_state|scaler)")
_SHARD = re.compile(r"(.*-)\d{5}(-of-(?!0*1\.)\d{5}\..*)")  # one of more than one
_OF_TENSORFLOW = re.compile(r".*(\.data-\d{5}-of-\d{5}|ckpt.*\.(index|meta))")
_CONVERT = (  # one line of Python: the file to write, then those to read
    "import sys, torch; from safetensors.numpy import save_file; w = {}; "
    "[w.update(torch.load(f, map_location='cpu', weights_only=True)) for f in sys.argv[2:]]; "
    "w = w.get('state_dict', w); "
    "save_file({k: v.float().contiguous().numpy() for k, v in w.items()}, sys.argv[1])"
)


def what(path: Path, start: bytes) -> str | None:
    """What the file that begins with `start` is, and the way on; None where that is not known."""
    if instead := foreign(start):
        return instead
    for place, pattern, kind in _MAGIC:
        if re.match(pattern, start[place:], re.DOTALL):
            return pickled(path) if kind is _PICKLE else kind
    if _OF_TENSORFLOW.fullmatch(path.name):
        return f"a checkpoint of TensorFlow; {_TAKE}"
    text = start.decode("utf-8", "ignore")
    if len(text) > len(start) - 4 and text.replace("\n", "").replace("\t", "").isprintable():
        return f"a text, not weights: {text.strip()[:60]!r}"
    return None


def what_zip(path: Path, names: Sequence[str]) -> str | None:
    """What a zip archive of files with these names is; None where it may be an `.npz`."""
    endings = {Path(name).suffix for name in names}
    if ".pkl" in endings:
        return pickled(path)
    if any(name.endswith(".weights.h5") for name in names):
        return f"a model of Keras; {_TAKE}"
    return f"a zip archive of other files; {_UNPACK}" if endings & _ENDINGS else None


def pickled(path: Path) -> str:
    """What a file of PyTorch is, and the command that writes its arrays as safetensors."""
    parts = shards_of(path) or [path]
    out = path.parent / "model.safetensors"
    command = f'python -c "{_CONVERT}" ' + shlex.join([str(out), *map(str, parts)])
    return (
        f"{_PICKLE}. {_TAKE.capitalize()}, or, where PyTorch is installed, write it by\n"
        f"  {command}\nand name {out}"
    )


def shards_of(path: Path) -> list[Path]:
    """All shards of the model of which `path` is one by its name; none where it is no shard."""
    if not (shard := _SHARD.fullmatch(path.name)):
        return []
    return sorted(path.parent.glob(f"{glob.escape(shard[1])}?????{glob.escape(shard[2])}"))


def others(folder: Path) -> list[Path]:
    """Files of weights of any kind in a folder, those that are ours to read first."""
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in _ENDINGS and file.is_file() and not _NOT_A_MODEL.match(file.name)
    ]
    return sorted(found, key=lambda file: file.suffix not in OURS)
