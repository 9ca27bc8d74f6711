"""`train.py` in a process of which one thing goes wrong: `faulty.py FAULT [arguments of train.py]`.

none          nothing does
stuck@7       the seventh training batch never comes
full@50000    the disk takes no file of more bytes
raises@7      the seventh training batch cannot be read
"""

import sys
import time

from full_disk import full_at

from pbr_jax.cli import main
from pbr_jax.data import TrainBatches


def break_batches(at, what):
    """Calls `what` in place of reading the batch of that number, counted from 1."""
    read, count = TrainBatches.__next__, 0

    def counted(self):
        nonlocal count
        count += 1
        if count == at:
            what()
        return read(self)

    TrainBatches.__next__ = counted


def unreadable():
    raise ValueError("birds/7.jpg: not a readable image")


if __name__ == "__main__":
    name, _, at = sys.argv[1].partition("@")
    arguments = ["train", *sys.argv[2:]]
    if name == "stuck":
        break_batches(int(at), lambda: time.sleep(1000))
    elif name == "raises":
        break_batches(int(at), unreadable)
    if name == "full":
        with full_at(int(at)):
            sys.exit(main(arguments))
    sys.exit(main(arguments))
