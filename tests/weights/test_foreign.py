"""Files that are no weights of ours are named for what they are, and the way on works."""

import io
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from published import google_vit
from safetensors.numpy import save

from pbr_jax import weights as public


def zipped(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


FOREIGN = {
    "a pickle of PyTorch": pickle.dumps({"a": 1}, protocol=2),
    "a pickle of PyTorch, which": zipped(archive__data_DOT_pkl=b"\x80\x04}\x94."),
    "a model of Keras": zipped(config_DOT_json=b"{}", model_DOT_weights_DOT_h5=b"\x89HDF"),
    "a zip archive of other files; unpack": zipped(m__model_DOT_safetensors=b"x"),
    "an HDF5 file of Keras": b"\x89HDF\r\n\x1a\n" + bytes(80),
    "a msgpack file of Flax": b"\x81\xa6params\x82\xaaclassifier\x82\xa4bias",
    "an ONNX model": b"\x08\x07\x12\x07pytorch\x1a\x051.13.",
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(30),
    "a TensorFlow Lite": b"\x1c\0\0\0TFL3" + bytes(30),
    "a single NumPy array": npy(),
    "a tar archive; unpack": tarred(),
    "a packed archive; unpack": b"\x1f\x8b\x08\0" + bytes(30),
    "a packed archive": b"7z\xbc\xaf\x27\x1c" + bytes(30),
    "a Git LFS pointer; `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid s",
    "a web page": b"\n<!DOCTYPE html><title>Sign in</title>",
    "an empty file; copy or download it again": b"",
    "a text, not weights: 'Access denied'": b"Access denied\n",
    "it lacks 'weight_map'; so it is not the index": b'{"error": "Repository not found"}',
    "neither .npz nor safetensors, by its first bytes": bytes(range(255, 1, -1)),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_kind_is_named_and_so_is_its_folder(tmp_path, what):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(FOREIGN[what])
    with pytest.raises(ValueError, match=rf"^weights {file}: ") as named:
        public.read(file)
    of_file = str(named.value).partition(f"{file}: ")[2]
    assert what in of_file and "complete?" not in of_file
    if what.startswith("it lacks"):
        return
    # Its folder says the same of it.
    with pytest.raises(FileNotFoundError, match="a directory without") as of_folder:
        public.read(tmp_path)
    assert f"pytorch_model.bin is {of_file}" in str(of_folder.value)


@pytest.mark.parametrize("name", ["bert_model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_a_checkpoint_of_tensorflow_is_known_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(200, 100, -1)))
    with pytest.raises(ValueError, match=r"a checkpoint of TensorFlow; take model"):
        public.read(tmp_path / name)


def test_a_header_is_not_taken_for_another_file():
    """The length before the header of safetensors has any first byte."""
    from pbr_jax.weights import tensors

    for length in (0x3C, 0x80 + 2 * 256, ord("{"), ord("P") + 256 * ord("K"), 8 + 7 * 256):
        assert tensors.begins(length.to_bytes(8, "little") + b'{"a":')
    assert not tensors.begins(b'{"a":{"b')


@pytest.mark.parametrize("begin", [0x3C, 0x80 + 2 * 256, ord("{")])
def test_a_header_of_any_length_is_read(tmp_path, begin):
    content = save(google_vit())
    length = int.from_bytes(content[:8], "little")
    longer = length + (begin - length) % (256 if begin < 256 else 65536)
    padded = longer.to_bytes(8, "little") + content[8 : 8 + length] + b" " * (longer - length)
    (tmp_path / "a").write_bytes(padded + content[8 + length :])
    assert public.read(tmp_path / "a").family == "vit"


TORCH = """
import pickle, numpy

class Tensor:
    def __init__(self, array): self.array = array
    def float(self): return Tensor(self.array.astype("float32"))
    def contiguous(self): return Tensor(numpy.ascontiguousarray(self.array))
    def numpy(self): return self.array

def load(file, map_location, weights_only):
    assert map_location == "cpu" and weights_only
    arrays = numpy.load(file + ".npz")
    return {name: Tensor(arrays[name]) for name in arrays.files}
"""


@pytest.mark.parametrize("shards", [1, 2])
def test_the_command_for_a_pickle_writes_what_is_then_read(tmp_path, shards):
    """With a stand-in for PyTorch, which reads an `.npz` beside the pickle."""
    (tmp_path / "torch.py").write_text(TORCH)
    folder = tmp_path / "a model"
    folder.mkdir()
    names = ["pytorch_model.bin"]
    if shards > 1:
        names = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)]
    arrays = google_vit()
    for i, name in enumerate(names):
        (folder / name).write_bytes(pickle.dumps({}, protocol=2))
        part = {key: arrays[key].astype(np.float16) for key in sorted(arrays)[i::shards]}
        np.savez(folder / f"{name}.npz", **part)
    with pytest.raises(ValueError, match="a pickle of PyTorch") as raised:
        public.read(folder / names[0])
    python, *words = shlex.split(str(raised.value).splitlines()[1])
    assert python == "python"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, *words], check=True, env=os.environ | {"PYTHONPATH": path})
    assert public.own_faults(public.read(folder)) == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.zip"])
def test_a_file_of_ours_by_another_name_is_named(tmp_path, name):
    file = tmp_path / name
    with file.open("wb") as content:
        if name.endswith(".zip"):
            np.savez(content, a=np.zeros(3))
        else:
            content.write(save({"a": np.zeros(3)}))
    with pytest.raises(FileNotFoundError, match=rf"; name the file itself: {file}$"):
        public.read(tmp_path)


def test_a_link_that_leads_nowhere_is_told(tmp_path):
    (tmp_path / "a.npz").symlink_to("gone")
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read \(No such .*; a link to gone\)"):
        public.read(tmp_path / "a.npz")
