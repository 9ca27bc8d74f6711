"""Every setting, once: its type, default, meaning, and the rule that a value must obey.

A configuration is a tree of frozen dataclasses. The type annotation, the comment and the rule of a
field are the only source for validation (`pbr_jax.settings.rules`), for the conversion of
`--config.a.b=value` (`pbr_jax.settings.load`) and for `--help` (`pbr_jax.settings.flags`).
`None` stands for "not set": the chosen method, or the model size, then decides.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional

from pbr_jax.datasets import SOURCES, Augment, OnError, Source
from pbr_jax.methods import METHODS
from pbr_jax.plans import Keep, ResidualPlan

__all__ = ["Config", "Data", "Keep", "Model", "Optimizer", "Plan", "Pruning"]


class Rule(NamedTuple):
    """What a value that is not None must satisfy. `text` follows "name = value: "."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("must be above 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("must be 0 or more", lambda value: value >= 0)
AT_LEAST_ONE = Rule("must be 1 or more", lambda value: value >= 1)
BELOW_ONE = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
FRACTION = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
KEEP = Rule('must be in (0, 1]; 0.1 keeps 10 % of the columns, the paper\'s "90 %"', FRACTION.holds)
TWO_OR_MORE = Rule("must be 2 or more", lambda value: value >= 2)
# Decimal units as cards are sold by, binary ones as they are built.
_UNITS = {"b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}


def size_in_bytes(text: str) -> int | None:
    """`8GiB` or `24 GB` in bytes; None when it is no size above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        return None
    return round(float(match[1]) * _UNITS[match[2]]) or None


SIZE = Rule(
    "must be a size with its unit, such as 8GiB, 24GB or 512MiB",
    lambda text: size_in_bytes(text) is not None,
)
RATE = Rule("must be in (0, 1]; 0.5 trains half of the tensors at a time", FRACTION.holds)


def setting(
    default: Any,
    comment: str,
    rule: Rule | None = None,
    *,
    choices: Iterable[str] = (),
    resume_safe: bool = False,
) -> Any:
    """A dataclass field with its comment, its rule, and the names that it can take.

    `resume_safe` says that a run may be resumed with another value, and still takes the same
    course as if it had never stopped.
    """
    known = {"comment": comment, "rule": rule, "resume_safe": resume_safe}
    metadata = known | {"choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which columns of an activation are kept for the weight gradient, and how they are chosen."""

    keep: Keep | float | None = setting(
        None,
        "fraction of columns kept; for one site pruning.keep.SITE, such as pruning.keep.fc2=0.1; "
        "none = the method's own",
        KEEP,
    )
    policy: Literal["uniform", "bandit", "importance"] | None = setting(
        None, "how columns are chosen; none = the method's own"
    )
    sampler: Literal["systematic", "bernoulli"] = setting(
        "systematic", "systematic = exactly K columns; bernoulli = the paper's independent draws"
    )
    step_size: float = setting(1e-3, "step size of the bandit", POSITIVE)
    min_prob: float | None = setting(None, "least probability; none = the policy's own", FRACTION)
    interval: int = setting(1, "steps between two draws of columns", AT_LEAST_ONE)
    group_size: int = setting(1, "contiguous columns that are chosen together", AT_LEAST_ONE)
    offset: Literal["none", "paper"] = setting(
        "none", "constant in the bandit loss; paper = Algorithm 2 to the letter, does not learn"
    )
    importance_weighting: bool = setting(False, "divide kept rows by their probability: unbiased")
    attention_keep: float | None = setting(
        None, "channels kept of q, k, v by the sparse attention plans; none = method's own", KEEP
    )
    joint_spar: float | None = setting(
        None, "share of parameter tensors trained at a time; none = the method's own", RATE
    )
    joint_spar_interval: int = setting(20, "steps between two draws of tensors", AT_LEAST_ONE)
    joint_spar_step_size: float = setting(1e-3, "step size of the bandit over tensors", POSITIVE)


def _plan_field(field: dataclasses.Field) -> tuple[str, Any, Any]:
    """A field of `ResidualPlan` as a setting that is open."""
    least = field.metadata.get("at_least")
    rule = None if least is None else Rule(f"must be {least} or more", lambda n: n >= least)
    names = field.metadata.get("choices", ())
    made = setting(None, field.metadata["comment"], rule, choices=names)
    return field.name, Optional[field.type], made  # noqa: UP045 (the type is known at run time)


if TYPE_CHECKING:

    class Plan(ResidualPlan):
        """The fields of `ResidualPlan`, each of which may be None."""

        def __init__(self, **fields: Any) -> None: ...

else:
    # What a plan keeps of columns and channels is set in `pruning`.
    _SET_THERE = ("keep", "attention_keep")
    _FIELDS = [_plan_field(f) for f in dataclasses.fields(ResidualPlan) if f.name not in _SET_THERE]
    _DOC = {"__doc__": "What each site keeps for the backward pass; None = the method's choice."}
    Plan = dataclasses.make_dataclass("Plan", _FIELDS, frozen=True, kw_only=True, namespace=_DOC)
    Plan.__module__ = __name__  # where another process finds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model: either a named size, or width, depth, heads and mlp_dim.

    A family's record says which of the other fields it reads (`pbr_jax.families`).
    """

    family: str = setting(
        "vit",
        "vit reads images, bert one or two texts; or the place of a Family of your own, "
        "my_module:FAMILY",
    )
    size: Literal["Ti", "S", "B", "L"] | None = setting(
        None, "named size; then width, depth, heads and mlp_dim stay none"
    )
    width: int | None = setting(None, "channels of a token", AT_LEAST_ONE)
    depth: int | None = setting(None, "number of blocks", AT_LEAST_ONE)
    heads: int | None = setting(None, "attention heads; divides width", AT_LEAST_ONE)
    mlp_dim: int | None = setting(None, "hidden width of the MLP", AT_LEAST_ONE)
    patch: int = setting(16, "side of a patch in pixels; divides image_size", AT_LEAST_ONE)
    image_size: int = setting(224, "side of the image in pixels", AT_LEAST_ONE)
    channels: int = setting(3, "colour channels of the image", AT_LEAST_ONE)
    vocab_size: int = setting(30522, "words of the vocabulary", AT_LEAST_ONE)
    max_length: int = setting(512, "tokens to which texts are cut or filled up", AT_LEAST_ONE)
    num_classes: int = setting(1000, "number of classes", TWO_OR_MORE)
    dropout: float = setting(
        0.0,
        "dropout rate of the residual branches; for bert also of embeddings, attention and pooler",
        BELOW_ONE,
    )
    pool: Literal["cls", "mean"] = setting("cls", "what the head reads: class token or mean token")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the activations")
    weights: str | None = setting(
        None,
        "pretrained weights to start from, a file or directory (docs/weights.md); none = random",
    )

    def resolved(self) -> "Model":
        """This model with `width`, `depth`, `heads` and `mlp_dim` filled in from `size`."""
        if self.size is None:
            return self
        named: dict[str, Any] = dict(zip(SHAPE, MODEL_SIZES[self.size], strict=True))
        return dataclasses.replace(self, **named)


SHAPE = ("width", "depth", "heads", "mlp_dim")
MODEL_SIZES = {  # of the fields of SHAPE
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
}


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


_OWN = [name for name, source in SOURCES.items() if source.is_at is not None]
_ARRAYS = [name for name, source in SOURCES.items() if source.augments[:1] == ("affine",)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The data set and how examples are changed before they reach the model."""

    name: str = setting(
        "digits",
        f"data set: digits needs no download; {_listed(_OWN)} are your own, in path; "
        "`pbr data prepare` readies the others",
        choices=SOURCES,
    )
    path: str | None = setting(
        None,
        "file of npz, folder of others; none = $TFDS_DATA_DIR or ~/tensorflow_datasets, for those "
        "that `pbr data prepare` readies",
    )
    test_split: str | None = setting(
        None, "split that evaluation reads; none = the usual one, or the only one beside train"
    )
    max_test: int | None = setting(
        None, "evaluate on so many examples, the first of the split; none = on all", AT_LEAST_ONE
    )
    on_error: OnError = setting(
        "stop",
        "what to do about broken images and rows; skip counts them and leaves them out",
        resume_safe=True,
    )
    augment: Augment | None = setting(
        None,
        "random changes of training images: affine = small shifts, rotations and scales; crop = a "
        f"random part, resized; none = affine for {_listed(_ARRAYS)}, crop for image files",
    )
    workers: int = setting(0, "threads that prepare batches ahead", NOT_NEGATIVE, resume_safe=True)
    tokenizer: str | None = setting(
        None, "vocab.txt or tokenizer.json of a text model, from where its weights are from"
    )
    lower_case: bool | None = setting(
        None, "lower-case the text, with vocab.txt; none = true; tokenizer.json says so itself"
    )

    @property
    def source(self) -> Source:
        """The kind, defaults and limits of the data set that is named."""
        return SOURCES[self.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer, learning-rate schedule and gradient handling."""

    name: Literal["sgd", "adamw"] = setting("sgd", "sgd = with momentum")
    learning_rate: float = setting(0.01, "highest learning rate of the schedule", POSITIVE)
    momentum: float = setting(0.9, "momentum of sgd", BELOW_ONE)
    b1: float = setting(0.9, "decay of the first moment of adamw", BELOW_ONE)
    b2: float = setting(0.999, "decay of the second moment of adamw", BELOW_ONE)
    eps: float = setting(1e-8, "added to the denominator of adamw", POSITIVE)
    weight_decay: float = setting(0.0, "of kernels: decoupled for adamw, L2 for sgd", NOT_NEGATIVE)
    clip_norm: float | None = setting(1.0, "largest global gradient norm; none = off", POSITIVE)
    warmup_steps: int = setting(0, "steps of linear warm-up, part of steps", NOT_NEGATIVE)
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "learning rate after the warm-up: falls to zero, or stays"
    )
    accumulation_steps: int = setting(1, "parts of a batch, whose gradients add up", AT_LEAST_ONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str = setting("run", "names the run, and its default work directory", resume_safe=True)
    seed: int = setting(0, "seed of parameters, data order, dropout and columns", NOT_NEGATIVE)
    method: str = setting(
        "lean",
        "residual plan; a suffix such as /js50 trains 50 % of the tensors at a time",
        choices=METHODS,
    )
    memory_budget: str | None = setting(
        None, "train by the fastest plan that fits in this much memory, in place of method", SIZE
    )
    steps: int = setting(1000, "optimizer steps", AT_LEAST_ONE)
    batch_size: int = setting(64, "examples per optimizer step", AT_LEAST_ONE)
    eval_every: int = setting(100, "steps between two evaluations", AT_LEAST_ONE, resume_safe=True)
    checkpoint_every: int = setting(
        100, "steps between checkpoints", AT_LEAST_ONE, resume_safe=True
    )
    keep_checkpoints: int = setting(
        2, "latest checkpoints that stay on disk, beside the best", AT_LEAST_ONE, resume_safe=True
    )
    log_every: int = setting(10, "steps between lines of metrics", AT_LEAST_ONE, resume_safe=True)
    pruning: Pruning = Pruning()
    plan: Plan = Plan()  # noqa: RUF009 (it is a frozen dataclass too)
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
