"""The table "full against lean by nodes and link" of docs/fit.md: arithmetic, nothing is measured.

    JAX_PLATFORMS=cpu python benchmarks/nodes.py

ViT-B/16 at 224 px, bfloat16, SGD with momentum: how many times faster a step by `--method` is than
full fine-tuning's on the same machines, by the formula of `pbr_jax.memory.network`. A cell has two
figures: nothing of the exchange hidden, and as much as 60 % of the compute takes.
"""

import argparse
import dataclasses

from pbr_jax.configs.common import Config, Mesh, Model, Optimizer
from pbr_jax.gpu import CARDS
from pbr_jax.measure.text import markdown
from pbr_jax.memory.network import Network, compared, pair

PLACES = (  # card, hosts, devices of each, link
    ("h200", 1, 8, "450GB/s"),
    ("h200", 2, 8, "400Gbit"),
    ("h200", 2, 8, "100Gbit"),
    ("h200", 8, 8, "100Gbit"),
    ("rtx4090", 4, 1, "10Gbit"),
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="lean")
    parser.add_argument("--batches", default="128,32", help="images of a device, joined by commas")
    args = parser.parse_args()
    base = Config(
        method=args.method,
        model=Model(size="B", patch=16, num_classes=100, dtype="bfloat16"),
        optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
    )
    lines = [("images a GPU", "compute", *(_place(*place) for place in PLACES))]
    for batch in map(int, args.batches.split(",")):
        found = []
        for card, hosts, each, link in PLACES:
            mesh = Mesh(data=hosts * each)
            run = dataclasses.replace(base, batch_size=batch * hosts * each, mesh=mesh)
            network = Network(hosts * each, hosts, link)
            found.append(compared(run, CARDS[card], network))
        for cautious, words in ((False, "its floor"), (True, "**twice the floor**")):
            ratios = (pair(one.times_faster(cautious)) for one in found)
            lines.append((str(batch), words, *ratios))
    print(markdown(lines))


def _place(card: str, hosts: int, each: int, link: str) -> str:
    many = f"{hosts} x " if hosts > 1 else ""
    return f"{many}{each} {card}, {link}"


if __name__ == "__main__":
    main()
