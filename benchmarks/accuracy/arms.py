"""What the study runs: questions, most valuable first, and the settings that answer them.

An arm is settings on top of `config.py`, in the form of `--config.key=value`, so that each can be
run by itself with `train.py` or `pbr compare`.
"""

from typing import NamedTuple


class Arm(NamedTuple):
    """One way to fine-tune.

    Attributes:
      settings: `key=value` each.
      dense_every: one of so many steps takes the whole gradient, and all others the method's.
      dense_last: share of the steps, at the end, that take the whole gradient.
    """

    settings: tuple[str, ...]
    dense_every: int = 0
    dense_last: float = 0.0


class Question(NamedTuple):
    """Arms that belong together; gaps are to the arm `base` of the same seed."""

    title: str
    arms: tuple[str, ...]
    base: str = "full"


def _arm(*settings: str, **dense: float) -> Arm:
    return Arm(settings, **dense)


def _keep(qkv: float, proj: float, fc1: float, fc2: float) -> tuple[str, ...]:
    values = {"qkv": qkv, "proj": proj, "fc1": fc1, "fc2": fc2}
    return tuple(f"pruning.keep.{site}={value}" for site, value in values.items())


def _rate(value: float) -> str:
    return f"optimizer.learning_rate={value}"


_FULL, _UNIFORM = "method=full", "pruning.policy=uniform"
_LONG = ("steps=2400", "eval_every=600")

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
    "0.1, last 10 % whole": _arm(dense_last=0.1),
    "uniform": _arm(_UNIFORM),
    "importance": _arm("pruning.policy=importance"),
    "uniform / p": _arm(_UNIFORM, "pruning.importance_weighting=true"),
    "uniform / p, no clipping": _arm(
        _UNIFORM, "pruning.importance_weighting=true", "optimizer.clip_norm=none"
    ),
    "uniform, no clipping": _arm(_UNIFORM, "optimizer.clip_norm=none"),
    "uniform, new columns every 20": _arm(_UNIFORM, "pruning.interval=20"),
    "full, lr 0.05": _arm(_FULL, _rate(0.05)),
    "full, lr 0.3": _arm(_FULL, _rate(0.3)),
    "0.1, lr 0.05": _arm(_rate(0.05)),
    "0.1, lr 0.3": _arm(_rate(0.3)),
    "0.1, lr 0.6": _arm(_rate(0.6)),
    "full, 2400 steps": _arm(_FULL, *_LONG),
    "0.1, 2400 steps": _arm(*_LONG),
    "0.2, 2400 steps": _arm("pruning.keep=0.2", *_LONG),
    "fast": _arm("method=fast"),
    "lean": _arm("method=lean"),
    "tiny": _arm("method=tiny"),
    "full, int8 and codes": _arm(_FULL, "plan.layer_norm=int8", "plan.gelu=code2"),
    "BackRazor": _arm("method=backrazor"),
    "BackRazor, exact dx": _arm(
        "method=backrazor", "plan.layer_norm=dense", "plan.attention=flash"
    ),
    "full/js50": _arm("method=full/js50"),
    "0.1/js50": _arm("method=prebackrazor/js50"),
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
        ),
    ),
    "i": Question(
        "int8 LayerNorm and GELU codes", ("full", "full, int8 and codes", "fast", "lean", "tiny")
    ),
    "e": Question(
        "Each method's own learning rate",
        (
            "full, lr 0.05",
            "full",
            "full, lr 0.3",
            "0.1, lr 0.05",
            "0.1",
            "0.1, lr 0.3",
            "0.1, lr 0.6",
        ),
    ),
    "b": Question("Who chooses the columns", ("full", "uniform", "importance", "0.1")),
    "f": Question(
        "New columns every step or every 20", ("full", "uniform", "uniform, new columns every 20")
    ),
    "c": Question(
        "Dividing by p",
        ("full", "uniform", "uniform / p", "uniform, no clipping", "uniform / p, no clipping"),
    ),
    "a": Question(
        "More steps", ("full, 2400 steps", "0.1, 2400 steps", "0.2, 2400 steps"), "full, 2400 steps"
    ),
    "k": Question(
        "Exact dx for BackRazor, same keep", ("full", "BackRazor", "BackRazor, exact dx")
    ),
    "j": Question("JointSPAR", ("full", "full/js50", "0.1", "0.1/js50")),
    "g": Question(
        "Groups and step size of the bandit", ("full", "0.1", "groups of 8", "step size 1e-2")
    ),
    "h": Question("Accumulation under one selection", ("full", "0.1", "accumulation 4")),
}
