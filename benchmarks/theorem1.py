"""Theorem 1: the corrected bound on a linear network, and counterexamples to the printed one.

    python benchmarks/theorem1.py

Least squares, one linear layer of 64 inputs and 4 outputs whose columns have unequal scales and
correlate; SGD on 4 samples a step, kept rows divided by p, step size proportional to 1 / sqrt(T).
Both sides are means over 32 runs; expectations over samples and columns are taken exactly at every
iterate. Statement and proof: docs/convergence.md.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pbr_jax import __version__, pruning
from pbr_jax.files import write_json

D, F, SAMPLES, BATCH, RUNS = 64, 4, 128, 4, 32
BUDGETS = (8, 16, 32, 64)
POLICIES = ("uniform", "bandit")
STEPS = (16, 64, 256, 1024)
OUT = Path("benchmarks/results/theorem1.json")
FIGURE = Path("docs/images/theorem1.png")


class Problem(NamedTuple):
    """Loss `||x W - y||^2 / (2 SAMPLES)`.

    Attributes:
      x, y: `[SAMPLES, D]`, `[SAMPLES, F]`.
      joint: smoothness of the loss, the largest eigenvalue of its Hessian.
      largest: of the smoothness of single rows, as the paper prints it.
      minimum: of the loss.
    """

    x: jax.Array
    y: jax.Array
    joint: float
    largest: float
    minimum: float


def make_problem(seed: int = 0) -> Problem:
    """Columns of log-normal scale with a common part, and labels with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, D)) + 0.5 * rng.standard_normal((SAMPLES, 1))
    x = x * np.exp(0.7 * rng.standard_normal(D))
    x = x / np.sqrt(np.mean(x**2))
    y = x @ rng.standard_normal((D, F)) / D**0.5 + 0.5 * rng.standard_normal((SAMPLES, F))
    hessian = x.T @ x / SAMPLES
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    minimum = np.sum((x @ best - y) ** 2) / (2 * SAMPLES)
    joint = np.linalg.eigvalsh(hessian)[-1]
    arrays = (jnp.asarray(a, jnp.float32) for a in (x, y))
    return Problem(*arrays, float(joint), float(np.diag(hessian).max()), float(minimum))


def loss(problem: Problem, w: jax.Array) -> jax.Array:
    """At `[D, F]`."""
    return jnp.sum((problem.x @ w - problem.y) ** 2) / (2 * SAMPLES)


def make_sides(
    problem: Problem, policy: pruning.PruningPolicy
) -> Callable[[int, float], dict[str, float]]:
    """`(steps, step size) -> {"left", "right", "printed"}`, means over the runs."""

    def trajectory(key: jax.Array, steps: jax.Array, step_size: jax.Array) -> tuple:
        """Sums over one run: `||g||^2`, and the variance term with samples and without."""

        def body(t, carry):
            w, state, sums = carry
            sample_key, column_key = jax.random.split(jax.random.fold_in(key, t))
            residual = problem.x @ w - problem.y
            exact = jnp.sum((problem.x.T @ residual / SAMPLES) ** 2, axis=1)
            # The mean squared norm of row d over single samples, then of a batch of them.
            single = jnp.mean(problem.x**2 * jnp.sum(residual**2, axis=1, keepdims=True), axis=0)
            moment = exact + (single - exact) / BATCH
            terms = (exact.sum(), jnp.sum(moment / state.probs), jnp.sum(exact / state.probs))
            rows = jax.random.randint(sample_key, (BATCH,), 0, SAMPLES)
            columns = policy.sample(column_key, state)
            kept = problem.x[rows][:, columns].T @ residual[rows] / BATCH
            p = policy.inclusion(state, columns)
            w = w.at[columns].add(-step_size * kept / p[:, None])
            state = policy.update(state, columns, jnp.sum(kept**2, axis=1))
            return w, state, jax.tree.map(jnp.add, sums, terms)

        start = (jnp.zeros((D, F)), policy.init(), (jnp.zeros(()),) * 3)
        return jax.lax.fori_loop(0, steps, body, start)[2]

    many = jax.jit(jax.vmap(trajectory, in_axes=(0, None, None)))
    first = float(jnp.sum(problem.y**2)) / (2 * SAMPLES) - problem.minimum

    def sides(steps: int, step_size: float) -> dict[str, float]:
        keys = jax.random.split(jax.random.key(steps), RUNS)
        means = [float(jnp.mean(s)) / steps for s in many(keys, steps, step_size)]
        decrease = first / (step_size * steps)
        return {
            "left": means[0],
            "right": decrease + step_size / 2 * problem.joint * means[1],
            "printed": decrease + step_size / 2 * problem.largest * means[2],
        }

    return sides


def measure() -> list[dict[str, Any]]:
    """Both sides for every policy, budget and number of steps."""
    problem, rows = make_problem(), []
    for name in POLICIES:
        for budget in BUDGETS:
            policy = pruning.make_policy(name, D, budget)
            sides = make_sides(problem, policy)
            # At most K / D of what plain SGD stands, so that small budgets do not diverge.
            largest = budget / D / problem.joint
            for steps in STEPS:
                size = largest * (STEPS[0] / steps) ** 0.5
                rows.append(
                    {"policy": name, "budget": budget, "steps": steps, **sides(steps, size)}
                )
    return rows


def counterexamples() -> dict[str, dict[str, float]]:
    """The printed inequality at two losses where both its sides can be worked out by hand."""
    theta = np.ones(4)  # L = (sum theta)^2 / 2, step size 1, p = 1, T = 1
    gradient = np.full(4, theta.sum())
    joint = {
        "left": float(gradient @ gradient),
        "printed": float(theta.sum() ** 2 / 2 + gradient @ gradient / 2),  # S_d = 1 for each d
        "right": float(theta.sum() ** 2 / 2 + 4 * gradient @ gradient / 2),  # S = 4
    }
    # L = theta^2 / 2 from its minimum, samples theta + noise of variance 1, step size 1/2, T = 2:
    # the gradients are 0 and noise / 2, so that their mean square is 0 and 1/4.
    left = (0 + 1 / 4) / 2
    noise = {"left": left, "printed": left / 4, "right": (1 + 1 / 4 + 1) / 8}
    return {"joint smoothness": joint, "noise of the samples": noise}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Left side (dots) under the corrected bound (lines) as T grows, by budget."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(BUDGETS)))
    panels = figure.subplots(1, len(POLICIES), sharey=True)
    for axes, policy in zip(panels, POLICIES, strict=True):
        for colour, budget in zip(colours, BUDGETS, strict=True):
            mine = [r for r in rows if (r["policy"], r["budget"]) == (policy, budget)]
            steps = [r["steps"] for r in mine]
            label = f"K / D = {budget}/{D}"
            axes.plot(steps, [r["right"] for r in mine], color=colour, label=label)
            axes.plot(steps, [r["printed"] for r in mine], color=colour, linestyle=":")
            axes.plot(steps, [r["left"] for r in mine], "o", color=colour, markersize=4)
        axes.set(title=policy, xlabel="steps T", xscale="log", yscale="log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean squared gradient")
    panels[0].legend(frameon=False, fontsize=8, title="corrected bound; printed dotted")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Prints both sides, writes the results and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    args = parser.parse_args()
    rows, known = measure(), counterexamples()
    print("| policy | K | T | left | corrected | printed |\n|---|---|---|---|---|---|")
    for row in rows:
        numbers = " | ".join(f"{row[side]:.4g}" for side in ("left", "right", "printed"))
        print(f"| {row['policy']} | {row['budget']} | {row['steps']} | {numbers} |")
    print(*known.items(), sep="\n")
    versions = {"jax": jax.__version__, "pbr_jax": __version__}
    command = "python benchmarks/theorem1.py"
    problem = make_problem()
    content = {
        "command": command,
        "versions": versions,
        "smoothness": {"joint": problem.joint, "largest of rows": problem.largest},
        "rows": rows,
        "counterexamples": known,
    }
    write_json(args.out, content)
    plot(rows, args.figure)


if __name__ == "__main__":
    main()
