"""What the study runs: questions, most valuable first, and the settings that answer them.

An arm is settings on top of `config.py`, in the form of `--config.key=value`, so that each can be
run by itself with `train.py` or `pbr compare`.
"""

from typing import Any, Literal, NamedTuple


class Arm(NamedTuple):
    """One way to fine-tune.

    Attributes:
      settings: `key=value` each.
      phases: `(begin, settings)` each: from that share of the steps on, these on top.
      dense_every: one of so many steps takes the whole gradient, and all others the method's.
      decayed_moments: moments of rows that were not selected decay; without it they stay.
      token_rows: share of the token rows that every weight gradient is estimated from, drawn by the
        norms of their inputs and gradients or uniformly, and divided by their probability.
    """

    settings: tuple[str, ...]
    phases: tuple[tuple[float, tuple[str, ...]], ...] = ()
    dense_every: int = 0
    decayed_moments: bool = False
    token_rows: tuple[float, Literal["uniform", "norms"]] | None = None


class Question(NamedTuple):
    """Arms that belong together; gaps are to the arm `base` of the same seed, of which `seeds`."""

    title: str
    arms: tuple[str, ...]
    base: str = "full"
    seeds: int = 3


def _arm(*settings: str, **others: Any) -> Arm:
    return Arm(settings, **others)


def _keep(qkv: float, proj: float, fc1: float, fc2: float) -> tuple[str, ...]:
    values = {"qkv": qkv, "proj": proj, "fc1": fc1, "fc2": fc2}
    return tuple(f"pruning.keep.{site}={value}" for site, value in values.items())


def _rate(value: float) -> str:
    return f"optimizer.learning_rate={value}"


_FULL, _UNIFORM = "method=full", "pruning.policy=uniform"
_KEEP_01, _KEEP_025 = "pruning.keep=0.1", "pruning.keep=0.25"
_EXACT_DX = ("plan.layer_norm=dense", "plan.attention=flash")
_LONG = ("steps=1200", "eval_every=600")

ARMS: dict[str, Arm] = {
    "full": _arm(_FULL),
    "0.1": _arm(),
    "0.2": _arm("pruning.keep=0.2"),
    "0.5": _arm("pruning.keep=0.5"),
    "fc2 0.1": _arm(*_keep(1, 1, 1, 0.1)),
    "fc2, proj 0.1": _arm(*_keep(1, 0.1, 1, 0.1)),
    "qkv, fc1 0.1": _arm(*_keep(0.1, 1, 0.1, 1)),
    "qkv, fc1 0.25; proj, fc2 0.1": _arm(*_keep(0.25, 0.1, 0.25, 0.1)),
    "qkv, fc1 0.5; proj, fc2 0.1": _arm(*_keep(0.5, 0.1, 0.5, 0.1)),
    "qkv 1; others 0.1": _arm(*_keep(1, 0.1, 0.1, 0.1)),
    "fc1 1; others 0.1": _arm(*_keep(0.1, 0.1, 1, 0.1)),
    "0.1, 1 step in 16 whole": _arm(dense_every=16),
    "fc1 0.5; others 0.1": _arm(*_keep(0.1, 0.1, 0.5, 0.1)),
    "fc1 0.4; others 0.1": _arm(*_keep(0.1, 0.1, 0.4, 0.1)),
    "fc1 0.25; others 0.1": _arm(*_keep(0.1, 0.1, 0.25, 0.1)),
    "lean, fc1 0.4; others 0.1": _arm("method=lean", *_keep(0.1, 0.1, 0.4, 0.1)),
    "0.1, last 10 % whole": _arm(phases=((0.9, (_FULL,)),)),
    "uniform, keep 0.5, 0.25, 0.1": _arm(
        _UNIFORM, "pruning.keep=0.5", phases=((1 / 3, (_KEEP_025,)), (2 / 3, (_KEEP_01,)))
    ),
    "uniform, keep 0.1, 0.25, 0.5": _arm(
        _UNIFORM, phases=((1 / 3, (_KEEP_025,)), (2 / 3, ("pruning.keep=0.5",)))
    ),
    "uniform": _arm(_UNIFORM),
    "importance": _arm("pruning.policy=importance"),
    "magnitude": _arm("method=prebackrazor-", *_EXACT_DX),
    "decayed moments": _arm(decayed_moments=True),
    "token rows 0.1": _arm(_FULL, token_rows=(0.1, "uniform")),
    "token rows 0.1 by norms": _arm(_FULL, token_rows=(0.1, "norms")),
    "uniform / p": _arm(_UNIFORM, "pruning.importance_weighting=true"),
    "uniform / p, no clipping": _arm(
        _UNIFORM, "pruning.importance_weighting=true", "optimizer.clip_norm=none"
    ),
    "uniform, no clipping": _arm(_UNIFORM, "optimizer.clip_norm=none"),
    "uniform, new columns every 20": _arm(_UNIFORM, "pruning.interval=20"),
    "full, lr 0.05": _arm(_FULL, _rate(0.05)),
    "full, lr 0.3": _arm(_FULL, _rate(0.3)),
    "full, lr 0.1": _arm(_FULL, _rate(0.1)),
    "lean, fc1 0.4, lr 0.2": _arm("method=lean", *_keep(0.1, 0.1, 0.4, 0.1), _rate(0.2)),
    "0.1, lr 0.05": _arm(_rate(0.05)),
    "0.1, lr 0.3": _arm(_rate(0.3)),
    "0.1, lr 0.6": _arm(_rate(0.6)),
    "0.1, 790 steps": _arm("steps=790", "eval_every=790"),
    "full, 1200 steps": _arm(_FULL, *_LONG),
    "0.1, 1200 steps": _arm(*_LONG),
    "0.2, 1200 steps": _arm("pruning.keep=0.2", *_LONG),
    "fast, keep 0.1": _arm("method=fast", _KEEP_01),
    "lean, keep 0.1": _arm("method=lean", _KEEP_01),
    "tiny, keep 0.1": _arm("method=tiny", _KEEP_01),
    "full, int8 and codes": _arm(_FULL, "plan.layer_norm=int8", "plan.gelu=code2"),
    "BackRazor": _arm("method=backrazor"),
    "BackRazor, keep 0.85": _arm("method=backrazor", "pruning.keep=0.85"),
    "BackRazor, exact dx": _arm("method=backrazor", *_EXACT_DX),
    **{f"full/js{share}": _arm(f"method=full/js{share}") for share in (70, 50, 30)},
    "0.1/js50": _arm("method=prebackrazor/js50"),
    "p_min 0.02": _arm("pruning.min_prob=0.002"),
    "p_min 0.8": _arm("pruning.min_prob=0.08"),
    "groups of 8": _arm("pruning.group_size=8"),
    "step size 1e-2": _arm("pruning.step_size=0.01"),
    "accumulation 4": _arm("optimizer.accumulation_steps=4"),
}

QUESTIONS: dict[str, Question] = {
    "l": Question(
        "Which sites may be pruned, and how far",
        (
            "full",
            "0.1",
            "fc2, proj 0.1",
            "qkv, fc1 0.1",
            "qkv, fc1 0.25; proj, fc2 0.1",
            "qkv, fc1 0.5; proj, fc2 0.1",
            "0.1, last 10 % whole",
            "0.1, 1 step in 16 whole",
            "0.2",
            "0.5",
            "fc2 0.1",
            "qkv 1; others 0.1",
            "fc1 1; others 0.1",
            "fc1 0.5; others 0.1",
            "fc1 0.4; others 0.1",
            "fc1 0.25; others 0.1",
            "lean, fc1 0.4; others 0.1",
        ),
    ),
    "i": Question(
        "int8 LayerNorm and GELU codes",
        ("full", "full, int8 and codes", "fast, keep 0.1", "lean, keep 0.1", "tiny, keep 0.1"),
    ),
    "e": Question(
        "Each method's own learning rate",
        (
            "full, lr 0.05",
            "full, lr 0.1",
            "full",
            "full, lr 0.3",
            "lean, fc1 0.4; others 0.1",
            "lean, fc1 0.4, lr 0.2",
            "0.1, lr 0.05",
            "0.1",
            "0.1, lr 0.3",
            "0.1, lr 0.6",
        ),
    ),
    "v": Question(
        "The default, with more seeds",
        ("full", "full, lr 0.1", "lean, fc1 0.4; others 0.1", "lean, fc1 0.4, lr 0.2"),
        seeds=8,
    ),
    "b": Question("Who chooses the columns", ("full", "uniform", "importance", "0.1", "magnitude")),
    "f": Question(
        "New columns every step or every 20", ("full", "uniform", "uniform, new columns every 20")
    ),
    "c": Question(
        "Dividing by p",
        ("full", "uniform", "uniform / p", "uniform, no clipping", "uniform / p, no clipping"),
    ),
    "t": Question("Equal time", ("full", "0.1", "0.1, 790 steps")),
    "a": Question(
        "More steps", ("full, 1200 steps", "0.1, 1200 steps", "0.2, 1200 steps"), "full, 1200 steps"
    ),
    "d": Question("Moments of rows that were not selected", ("full", "0.1", "decayed moments")),
    "m": Question(
        "Token rows in place of columns",
        ("full", "uniform", "uniform / p", "token rows 0.1", "token rows 0.1 by norms"),
    ),
    "n": Question(
        "A keep that changes",
        ("full", "0.2", "uniform, keep 0.5, 0.25, 0.1", "uniform, keep 0.1, 0.25, 0.5"),
    ),
    "k": Question(
        "BackRazor's approximate dx, and exact dx",
        (
            "full",
            "BackRazor",
            "fast, keep 0.1",
            "BackRazor, keep 0.85",
            "BackRazor, exact dx",
            "0.1",
        ),
    ),
    "j": Question(
        "JointSPAR",
        ("full", "full/js70", "full/js50", "full/js30", "0.1", "0.1/js50"),
    ),
    "g": Question(
        "The bandit's floor, step size and groups",
        ("full", "0.1", "p_min 0.02", "p_min 0.8", "step size 1e-2", "groups of 8"),
    ),
    "h": Question("Accumulation under one selection", ("full", "0.1", "accumulation 4")),
}
