"""Images per second of the input pipeline, per number of workers.

    python benchmarks/input_pipeline.py --out benchmarks/results/input_pipeline_cpu.json

Writes JPEGs of the size of CUB-200-2011's (500 x 375) and PNGs of CIFAR's (32 x 32) to a temporary
folder, and reads them as training does (a random part, resized to 224 x 224 pixels) and as
evaluation does. The content is smooth noise: files are as large as photographs of that size.

Threads share one interpreter, so the time that Python itself takes for an image bounds what any
number of them can do. It is that of an image of a few pixels.
"""

import argparse
import io
import itertools
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from pbr_jax import __version__, data
from pbr_jax.data.records import ImageRecord
from pbr_jax.files import write_json

KINDS = {"jpeg 500x375": (500, 375, "jpg"), "png 32x32": (32, 32, "png")}
CLASSES, SIDE = 4, 224


def write_images(folder: Path, width: int, height: int, suffix: str, count: int) -> int:
    """An image folder of `count` images per split; returns the mean size of a file."""
    generator = np.random.default_rng(0)
    sizes = []
    for split, number in itertools.product(("train", "test"), range(count)):
        place = folder / split / f"class{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        # Detail at three scales, so that a JPEG of this size has about the bytes of a photograph.
        pixels = np.zeros((height, width, 3), np.float32)
        for scale, weight in ((32, 0.6), (8, 0.25), (2, 0.15)):
            coarse = generator.integers(
                0, 256, (max(height // scale, 1), max(width // scale, 1), 3), dtype=np.uint8
            )
            fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            pixels += weight * np.asarray(fine, np.float32)
        file = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file, "JPEG" if suffix == "jpg" else "PNG", quality=90)
        (place / f"{number}.{suffix}").write_bytes(file.getvalue())
        sizes.append(file.tell())
    return round(float(np.mean(sizes)))


def images_per_second(folder: Path, batch_size: int, workers: int, seconds: float) -> dict:
    """Rates of training batches, over about `seconds`, and of one evaluation."""
    dataset = data.load("image_folder", str(folder))
    inputs = data.ImageInputs(SIDE, 3, "crop")
    batches = data.TrainBatches(dataset.train, inputs, batch_size, 0, workers)
    for _ in range(workers + 1):  # what was prepared ahead is not counted
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch_size
    train = count / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in data.eval_batches(dataset.test, inputs, batch_size, workers):
        pass
    return {"train": train, "evaluation": len(dataset.test) / (time.perf_counter() - start)}


def python_seconds(kind: str, rounds: int = 9) -> float:
    """Processor time per image of 16 x 16 pixels: little but Python's own."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(file, kind)
    records = [ImageRecord(file.getvalue(), 0, "")] * 512
    inputs, generators = data.ImageInputs(8, 3, "crop"), [np.random.default_rng(0)] * len(records)
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        inputs(records, generators)
        times.append((time.thread_time() - start) / len(records))
    return min(times)


def main() -> None:
    """Prints the table and writes the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", default=f"0,1,{cores}", help="numbers of threads")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--count", type=int, default=1024, help="images per split")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    results: dict = {
        "batch": args.batch,
        "side": SIDE,
        "cores": cores,
        "versions": {
            "pbr_jax": __version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "rates": {},
    }
    print(f"{'images per second':<16}{'workers':>10}{'train':>10}{'evaluation':>12}")
    for kind, (width, height, suffix) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            mean = write_images(Path(folder), width, height, suffix, args.count)
            python = python_seconds("JPEG" if suffix == "jpg" else "PNG")
            rates = results["rates"][kind] = {
                "bytes_per_file": mean,
                "python_seconds_per_image": python,
                "workers": {},
            }
            for workers in map(int, args.workers.split(",")):
                rate = images_per_second(Path(folder), args.batch, workers, args.seconds)
                rates["workers"][str(workers)] = rate
                print(f"{kind:<16}{workers:>11}{rate['train']:>10.0f}{rate['evaluation']:>12.0f}")
            print(f"{kind:<16}{'any':>11}{1 / python:>10.0f}            bound by Python itself")
    if args.out is not None:
        write_json(args.out, results)


if __name__ == "__main__":
    main()
