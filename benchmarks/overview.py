"""The figure of README.md: memory and time of ViT-B/16 on an H200, and accuracy on the digits.

    python benchmarks/overview.py

draws `docs/images/overview.png` from results of this folder: peak bytes of the compiled step and
its time by arithmetic (`fit.py --cards h200`, none of it run on a card), and mean accuracy over
five seeds (`pbr compare --seeds 5`).
"""

import json
import statistics
from pathlib import Path

from pbr_jax.compare.figures import frontier
from pbr_jax.compare.table import Result

RESULTS, FIGURE = Path("benchmarks/results"), Path("docs/images/overview.png")


def rows() -> list[Result]:
    """Every method that all results have."""
    steps = json.loads((RESULTS / "fit_vit_b16.json").read_text())["cards"]["h200"]
    accuracy: dict[str, float] = {}
    for name in ("digits_accuracy.json", "digits_defaults.json"):  # the latter goes first
        content = json.loads((RESULTS / name).read_text())
        # `pbr compare` writes trials; these two files are older, and call them runs.
        for method, seeds in content.get("trials", content.get("runs", {})).items():
            accuracy[method] = statistics.fmean(run["accuracy"] for run in seeds.values())
    return [
        Result(
            method,
            memory_to_full=step["peak_bytes"] / steps["full"]["peak_bytes"],
            time_to_full=step["time"],
            accuracy=accuracy[method],
        )
        for method, step in steps.items()
        if method in accuracy
    ]


if __name__ == "__main__":
    frontier(rows(), FIGURE)
