"""Downloads a data set and prepares it for training, which itself downloads nothing.

    pbr data prepare cifar100
    pbr data prepare glue/rte --path /data/tfds
    pbr data prepare cub200 --archive CUB_200_2011.tgz

The archive of cub200 is downloaded with a browser. Data sets go to --path, by default
$TFDS_DATA_DIR or ~/tensorflow_datasets; a run reads them from there, or from data.path.
"""

import argparse
from pathlib import Path

from pbr_jax import data
from pbr_jax.data import cub200, tfds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("name", metavar="NAME", help=", ".join(tfds.SETS))
    parser.add_argument("--path", help="the folder of prepared data sets")
    parser.add_argument("--archive", help="cub200: CUB_200_2011.tgz, as downloaded")


def main(args: argparse.Namespace) -> int:
    """Prepares the data set, or finds that it is there, and prints what it has."""
    if args.name not in tfds.SETS:
        if args.name in data.NAMES:
            raise ValueError(f"{args.name}: needs no preparation; `pbr data check` looks at it")
        raise ValueError(data.unknown(args.name))
    if args.archive is not None and args.name != "cub200":
        raise ValueError(
            f"--archive {args.archive}: {args.name} is downloaded; cub200 has archives"
        )
    folder: Path
    if args.name == "cub200":
        folder = cub200.prepare(args.archive, args.path)
    else:
        folder = tfds.prepare(args.name, args.path)
    dataset = data.load(args.name, args.path)
    print(
        f"{args.name}: {len(dataset.train)} training and {len(dataset.test)} test examples of "
        f"{dataset.num_classes} classes in {folder}"
    )
    return 0
