"""The reader of `.npz` files: only what is wanted, and nothing that is out of proportion."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbr_jax import npz
from pbr_jax.measure import memory
from pbr_jax.measure.memory import Room

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(["ant", "bee"])}


def stored(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def archive(members, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip file of named contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return file.getvalue()


def array_file(shape, descr="<f4", content=b"") -> bytes:
    """A `.npy` file whose header says anything."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue() + content


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_what_numpy_reads(tmp_path, save):
    path = tmp_path / "a.npz"
    arrays = ARRAYS | {
        "none": np.zeros((0, 3)),
        "one": np.array(7),
        "f": ARRAYS["a"].T,
    }
    path.write_bytes(stored(save, **arrays))
    assert npz.names(path) == list(arrays)
    found = npz.read(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_only_what_is_wanted_is_looked_at(tmp_path):
    path = tmp_path / "a.npz"
    good = stored(a=ARRAYS["a"])
    with zipfile.ZipFile(io.BytesIO(good)) as one:
        path.write_bytes(archive({"a.npy": one.read("a.npy"), "README.txt": b"about"}))
    assert [*npz.read(path, ("a", "absent"))] == ["a"]
    with pytest.raises(ValueError, match=r"a\.npz: README\.txt is no array of NumPy's"):
        npz.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a readable \.npz file \(an empty file"),
        (b"<!doctype html>", "a web page; download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (array_file((2,), content=bytes(8)), "one array of np.save"),
        (stored(**ARRAYS)[:-30], "cut short or damaged"),
        (archive({"a.npy": b"no array"}), "a is no array of NumPy's; np.savez writes one"),
        (archive({"a.npy": array_file((10**12, 3))}), r"a should have shape \(1000000000000, 3\)"),
        (archive({"a.npy": array_file((-2, -3), content=bytes(24))}), r"shape \(-2, -3\)"),
        (archive({"a.npy": array_file((10**15,), "<U0")}), r"shape \(1000000000000000,\) of <U0"),
        (archive({"a.npy": array_file((10**4000,))}), "a should have shape"),
        (stored(a=np.array([None, 1])), r"array a holds Python objects.* np\.array\(list\(a"),
        (archive({"a.npy": array_file((1,), content=bytes(4))}, zipfile.ZIP_LZMA), "LZMA"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        npz.read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_damage_inside_an_array_is_named(tmp_path):
    content = bytearray(stored(a=np.zeros(1000)))
    content[500] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: array a cannot be read \(Bad CRC-32"):
        npz.read(tmp_path / "a.npz")


class Unpacked(BaseException):
    """Told apart from what the reader itself raises."""


@pytest.fixture
def nothing_is_unpacked(monkeypatch):
    def read_array(*args, **kwargs):
        raise Unpacked

    monkeypatch.setattr(np.lib.format, "read_array", read_array)


@pytest.mark.usefixtures("nothing_is_unpacked")
def test_more_than_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(stored(small=np.zeros(10), large=np.zeros(1000)))
    monkeypatch.setattr(memory, "host_room", lambda: Room(10**6, 8000, "this machine"))
    message = r"a\.npz: its arrays take 8\.08 kB of memory, and 8\.00 kB are free; large alone is 8"
    with pytest.raises(ValueError, match=message):
        npz.read(path)


@pytest.mark.usefixtures("nothing_is_unpacked")
def test_a_few_bytes_that_unpack_to_very_many_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    monkeypatch.setattr(npz, "_LARGE", 10**6)
    path.write_bytes(stored(np.savez_compressed, a=np.zeros(10**6, np.uint8)))
    with pytest.raises(Unpacked):
        npz.read(path)
    path.write_bytes(stored(np.savez_compressed, a=np.zeros(10**7, np.uint8)))
    with pytest.raises(ValueError, match=r"unpack to 10\.0 MB, .* if that is right, .* np\.savez"):
        npz.read(path)
    path.write_bytes(stored(np.savez, a=np.zeros(10**7, np.uint8)))
    with pytest.raises(Unpacked):
        npz.read(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "a.npz")
    for read in (npz.names, npz.read):
        with pytest.raises(ValueError, match=r"a\.npz: is a (named pipe|folder), not a file"):
            read(tmp_path / "a.npz")


REAL = [stored(save, **ARRAYS) for save in (np.savez, np.savez_compressed)]


@st.composite
def spoilt(draw):
    """A real file, cut short, with other bytes here and there."""
    content = bytearray(draw(st.sampled_from(REAL)))
    del content[draw(st.integers(0, len(content))) :]
    for _ in range(draw(st.integers(0, 5)) if content else 0):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@st.composite
def changed(draw):
    """A real file with one other byte, most often in a header or in the directory."""
    content = bytearray(draw(st.sampled_from(REAL)))
    content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@settings(max_examples=100)
@given(st.binary(max_size=300) | st.builds(b"PK\3\4".__add__, st.binary()) | spoilt() | changed())
def test_any_bytes_are_arrays_or_an_error_that_names_the_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.npz"
    path.write_bytes(content)
    text = f"{path}: "
    tracemalloc.start()
    try:
        npz.read(path)
    except ValueError as error:
        text = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert text.startswith(f"{path}: ") and " at 0x" not in text
    assert peak < 5e6
