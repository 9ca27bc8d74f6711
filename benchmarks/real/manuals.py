"""The twelve manuals of the text task: packages, digests, and where the documents are in them."""

from typing import NamedTuple

from packages import Package


class Manual(NamedTuple):
    """A package of documents.

    Attributes:
      label: name of the class.
      folder: where the documents are in the package.
      named: words that would give the class away.
    """

    label: str
    package: Package
    folder: str
    named: str


def _manual(label: str, name: str, version: str, sha256: str, folder: str, named: str) -> Manual:
    return Manual(label, Package(name, version, sha256), folder, named)


MANUALS = (
    _manual(
        *("clang", "clang-14-doc", "1:14.0.6-12"),
        "9d4160c5cdb3e240fc676eacba163481002363f9532f854bc09e3eb566eb5c0f",
        *("usr/share/doc/clang-14/html", "clang llvm"),
    ),
    _manual(
        *("cmake", "cmake-doc", "3.25.1-1"),
        "6e805a758ffed87cc7ea234cf0a7a1bb8ae78b93d8b5783e7fb989a6320f8133",
        *("usr/share/doc/cmake-data/html", "cmake"),
    ),
    _manual(
        *("debian", "debian-handbook", "11.20220922"),
        "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        *("usr/share/doc/debian-handbook/html/en-US", "debian"),
    ),
    _manual(
        *("gimp", "gimp-help-en", "2.10.34-2"),
        "a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        *("usr/share/gimp/2.0/help/en", "gimp"),
    ),
    _manual(
        *("git", "git-doc", "1:2.39.5-0+deb12u3"),
        "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
        *("usr/share/doc/git-doc", "git"),
    ),
    _manual(
        *("gnumeric", "gnumeric-doc", "1.12.55-1"),
        "99ac7a4171ce3440b9c3d220f21181f93245bc91a607a5b3943b804b5e87eccb",
        *("usr/share/help/C/gnumeric", "gnumeric"),
    ),
    _manual(
        *("lilypond", "lilypond-doc-html", "2.24.1-2"),
        "be9fb743e58bd5ad4710146fe05e7c5f447fe4559e42c6acef1916d53e4bec60",
        *("usr/share/doc/lilypond/html/Documentation/notation", "lilypond"),
    ),
    _manual(
        *("maxima", "maxima-doc", "5.46.0-11"),
        "01a726b693a7e465a62040ac5ade4762194d7553524231d77cd1fcd4a69a75b9",
        *("usr/share/doc/maxima-doc/html", "maxima"),
    ),
    _manual(
        *("octave", "octave-doc", "7.3.0-2"),
        "b27897cc7e3d688daa5cb8f8d1ea47077f3fbd205ce32e22522200ff0c1eadd5",
        *("usr/share/doc/octave", "octave"),
    ),
    _manual(
        *("postfix", "postfix-doc", "3.7.11-0+deb12u1"),
        "6b07bcc68991703acf747dc2500355bdd02aef0a048419b939752c39faf47d8d",
        *("usr/share/doc/postfix", "postfix"),
    ),
    _manual(
        *("sqlite", "sqlite3-doc", "3.40.1-2+deb12u2"),
        "466e30d7066e2641fa13e56bc662a2ad521b8cc9c17dde9c9dac3d4f105e32f2",
        *("usr/share/doc/sqlite3", "sqlite"),
    ),
    _manual(
        *("zsh", "zsh-doc", "5.9-4"),
        "79bd75df4bf03d1021e993fd773f82b8a4c8d76649e420cd32eca940cf418ff4",
        *("usr/share/doc/zsh-common/html", "zsh"),
    ),
)
