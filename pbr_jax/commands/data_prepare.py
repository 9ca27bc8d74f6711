"""Downloads a data set and prepares it for training, which itself downloads nothing.

    pbr data prepare cifar100
    pbr data prepare glue/rte --path /data/tfds
    pbr data prepare cub200 --archive CUB_200_2011.tgz

The archive of cub200 is downloaded with a browser. Data sets go to --path, by default
$TFDS_DATA_DIR or ~/tensorflow_datasets; a run reads them from there, or from data.path.
"""

import argparse

from pbr_jax import data
from pbr_jax.datasets import SOURCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [name for name, source in SOURCES.items() if source.prepared]
    parser.add_argument("name", metavar="NAME", help=", ".join(names))
    parser.add_argument("--path", help="the folder of prepared data sets")
    parser.add_argument("--archive", help="cub200: CUB_200_2011.tgz, as downloaded")


def main(args: argparse.Namespace) -> int:
    """Prepares the data set, or finds that it is there, and prints what it has."""
    folder = data.prepare(args.name, args.path, args.archive)
    dataset = data.load(args.name, args.path)
    print(
        f"{args.name}: {len(dataset.train)} training and {len(dataset.test)} test examples of "
        f"{dataset.num_classes} classes in {folder}"
    )
    return 0
