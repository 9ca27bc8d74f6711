"""The table of docs/fit.md: what each method needs on every named card, as `pbr fit` finds it.

    JAX_PLATFORMS=cpu python benchmarks/fit.py --out benchmarks/results/fit_vit_b16.json
    JAX_PLATFORMS=cpu python benchmarks/fit.py --size L --batch 64 --out ...

A ViT by size: 224 px, bfloat16 activations, float32 weights, SGD with momentum, clipping. Each cell
is the peak of a step and the largest batch that fits; bold is the fastest that fits (arithmetic).
What the file at --out has already is not compiled again.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import jax

from pbr_jax import __version__, methods
from pbr_jax.configs.common import Config, Model, Optimizer
from pbr_jax.files import write_json
from pbr_jax.gpu import CARDS
from pbr_jax.memory import fit
from pbr_jax.memory.table import json_row
from pbr_jax.settings.variants import with_method

RESERVE = round(0.75 * 2**30)


def main() -> None:
    """Compiles what is missing and prints the table in GB (10^9 bytes)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", default=",".join(CARDS))
    parser.add_argument("--methods", default=",".join(methods.OF_HALF_BLOCKS))
    parser.add_argument("--size", default="B", choices=["Ti", "S", "B", "L"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = Config(
        method="full",
        batch_size=args.batch,
        model=Model(size=args.size, patch=16, num_classes=100, dtype="bfloat16"),
        optimizer=Optimizer(name="sgd", momentum=0.9, clip_norm=1.0, warmup_steps=100),
    )
    found = json.loads(args.out.read_text()) if args.out.is_file() else {"cards": {}}
    found |= {"size": args.size, "batch": args.batch, "reserve_bytes": RESERVE}
    found["versions"] = {"jax": jax.__version__, "pbr_jax": __version__}
    names = args.methods.split(",")
    with contextlib.ExitStack() as stack:
        targets = [
            fit.Target(CARDS[name], RESERVE, stack.enter_context(fit.compiled(CARDS[name])))
            for name in args.cards.split(",")
        ]
        for name in names:
            run, slope = with_method(config, name), None  # of one card, a good guess on the next
            for target in targets:
                rows = found["cards"].setdefault(target.card.name, {})
                if name not in rows:
                    one = fit.fit_method(run, target, slope=slope)
                    rows[name] = json_row(one) | {"bytes_per_example": one.bytes_per_example}
                    write_json(args.out, found)
                    print(f"{name} on {target.card.name}", file=sys.stderr, flush=True)
                slope = rows[name]["bytes_per_example"] or slope
    print("\n".join(table(found["cards"], names)))


def table(cards: dict, names: list[str]) -> list[str]:
    """Lines of Markdown: a row for each method, a column for each card."""
    lines = [f"| method | {' | '.join(cards)} |", "|---" * (len(cards) + 1) + "|"]
    for name in names:
        cells = []
        for rows in cards.values():
            row = rows.get(name)
            if row is None:
                cells.append("-")
                continue
            cell = f"{row['peak_bytes'] / 1e9:.2f} · {row['largest_batch']}"
            fitting = [other for other in rows.values() if other["fits"]]
            best = min(fitting, key=lambda other: other["time"], default=None)
            cells.append(f"**{cell}**" if row is best else cell)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
