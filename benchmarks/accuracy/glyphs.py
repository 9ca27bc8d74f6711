"""Glyphs of installed fonts as two image tasks: letters to pretrain on, and 36 classes to learn.

    sudo apt-get install $(python benchmarks/accuracy/glyphs.py --packages)
    python benchmarks/accuracy/glyphs.py --out runs/glyphs

writes `letters.npz` (A-Z) and `glyphs.npz` (0-9 and a-z), grey images of 16 x 16 pixels for
`--config.data.name=npz`. The packages are Debian's. A package goes whole to the training or to the
test split, so that no family is in both; fonts and images stay out of the repository, since each
font has a licence of its own.
"""

import argparse
import hashlib
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 16
_OVERSAMPLING = 4
_CANVAS = SIZE * _OVERSAMPLING
_MARGIN = _OVERSAMPLING  # one pixel
LETTERS = string.ascii_uppercase
GLYPHS = string.digits + string.ascii_lowercase

TRAIN = """
fonts-3270 fonts-cardo fonts-clear-sans fonts-comic-neue fonts-essays1743 fonts-adf-accanthis
fonts-adf-baskervald fonts-adf-gillius fonts-adf-ikarius fonts-adf-libris fonts-adf-mekanus
fonts-adf-romande fonts-adf-solothurn fonts-adf-tribun fonts-adf-universalis fonts-allerta
fonts-anonymous-pro fonts-averia-serif-gwf fonts-b612 fonts-breip fonts-bwht fonts-cantarell
fonts-century-catalogue fonts-compagnon fonts-courier-prime fonts-crosextra-caladea
fonts-dancingscript fonts-dejavu-core fonts-dustin fonts-ebgaramond fonts-elstob fonts-eurofurence
fonts-fanwood fonts-femkeklaver fonts-freefont-ttf fonts-georgewilliams fonts-gfs-didot
fonts-gfs-neohellenic fonts-go fonts-goudybookletter fonts-havana fonts-humor-sans fonts-isabella
fonts-jetbrains-mono fonts-junction fonts-junicode fonts-karla fonts-kaushanscript fonts-lato
fonts-league-mono fonts-leckerli-one fonts-lindenhill fonts-lobstertwo fonts-manrope
fonts-mononoki fonts-national-park fonts-open-sans fonts-opendin fonts-play fonts-prociono
fonts-quicksand fonts-roadgeek fonts-rufscript fonts-sil-andika fonts-sil-gentium-basic
fonts-sjfonts fonts-tiresias fonts-tomsontalks fonts-urw-base35 fonts-vollkorn fonts-mplus
"""
TEST = """
fonts-dkg-handwriting fonts-adf-berenis fonts-adf-irianis fonts-adf-oldania fonts-adf-switzera
fonts-adf-verana fonts-arapey fonts-beteckna fonts-cabin fonts-comfortaa fonts-crosextra-carlito
fonts-dosis fonts-ecolier-court fonts-fantasque-sans fonts-firacode fonts-gfs-artemisia
fonts-gnutypewriter fonts-hack fonts-inconsolata fonts-johnsmith-induni fonts-jura fonts-kristi
fonts-league-spartan fonts-linuxlibertine fonts-monofur fonts-oldstandard fonts-opendyslexic
fonts-quattrocento fonts-roboto-unhinted fonts-sil-charis fonts-sora fonts-tuffy
fonts-yanone-kaffeesatz fonts-lmodern fonts-okolaks fonts-summersby fonts-staypuft
"""


def font_files(package: str) -> list[Path]:
    """Files of an installed package, one for each font, sorted by name.

    Raises:
      ValueError: the package is not installed.
    """
    run = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    files = {
        path.stem: path
        for line in sorted(run.stdout.splitlines())
        if (path := Path(line)).suffix in (".otf", ".ttf") and path.is_file()
    }
    if not files:
        raise ValueError(f"package {package} has no fonts here: apt-get install {package}")
    return [files[stem] for stem in sorted(files)]


def render(path: Path) -> dict[str, np.ndarray] | None:
    """Character -> uint8 [SIZE, SIZE], white on black; None if the font lacks or repeats any.

    All characters of a font share baseline and scale, so that an o stays smaller than a 0.
    """
    try:
        font = ImageFont.truetype(path, 100)
        _, top, _, bottom = font.getbbox(LETTERS + GLYPHS, anchor="ls")
        size = 100 * (_CANVAS - 2 * _MARGIN) / (bottom - top)
        font = ImageFont.truetype(path, round(size))
        images = {c: _draw(c, font, -top * size / 100) for c in LETTERS + GLYPHS}
    except (OSError, ValueError, ZeroDivisionError):
        return None
    # A font without a character draws the same box for it as for any other.
    different = {image.tobytes() for image in images.values()}
    if len(different) < len(images) or any(image.max() < 64 for image in images.values()):
        return None
    return images


def _draw(character: str, font: ImageFont.FreeTypeFont, baseline: float) -> np.ndarray:
    left, _, right, _ = font.getbbox(character, anchor="ls")
    width = max(_CANVAS, right - left + 2 * _MARGIN)  # what is wider is squeezed
    image = Image.new("L", (round(width), _CANVAS))
    origin = ((width - right - left) / 2, _MARGIN + baseline)
    ImageDraw.Draw(image).text(origin, character, fill=255, font=font, anchor="ls")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def split(packages: str) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Each usable font of the packages with its images, none twice."""
    seen = set()
    for package in packages.split():
        for path in font_files(package):
            images = render(path)
            if images is None:
                continue
            content = b"".join(image.tobytes() for image in images.values())
            if content not in seen:
                seen.add(content)
                yield path, images


def arrays(fonts: list[dict[str, np.ndarray]], characters: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, SIZE, SIZE, 1] and labels int32 [N], font by font."""
    images = np.stack([font[c] for font in fonts for c in characters])[..., None]
    return images, np.tile(np.arange(len(characters), dtype=np.int32), len(fonts))


def make(folder: Path) -> None:
    """Renders both tasks into `folder`, with the list of fonts beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    fonts = {"train": dict(split(TRAIN)), "test": dict(split(TEST))}
    for name, characters in (("letters", LETTERS), ("glyphs", GLYPHS)):
        content = {"class_names": np.array(list(characters))}
        for part, found in fonts.items():
            images, labels = arrays(list(found.values()), characters)
            content |= {f"{part}_images": images, f"{part}_labels": labels}
        np.savez_compressed(folder / f"{name}.npz", **content)
        digest = digest_of(folder / f"{name}.npz")
        sizes = ", ".join(f"{len(content[f'{p}_labels'])} {p}" for p in fonts)
        print(f"{folder / name}.npz: {sizes} images, {digest}")
    lines = [f"{part} {path}" for part, found in fonts.items() for path in found]
    (folder / "fonts.txt").write_text("\n".join(lines) + "\n")


def digest_of(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the arrays in an `.npz` file."""
    digest = hashlib.sha256()
    with np.load(path) as archive:
        for name in sorted(archive.files):
            digest.update(name.encode() + archive[name].tobytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Prints the packages, or renders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", action="store_true", help="print the packages and stop")
    parser.add_argument("--out", type=Path, default=Path("runs/glyphs"))
    args = parser.parse_args()
    if args.packages:
        print(" ".join(sorted((TRAIN + TEST).split())))
    else:
        make(args.out)


if __name__ == "__main__":
    main()
