"""Every setting, once: its type, default, meaning, and the rule that a value must obey.

A configuration is a tree of frozen dataclasses. The type annotation, the comment and the rule of a
field are the only source for validation (`pbr_jax.settings.rules`), for the conversion of
`--config.a.b=value` (`pbr_jax.settings.load`) and for `--help` (`pbr_jax.settings.flags`).
`None` stands for "not set": the chosen method, or the model size, then decides.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pbr_jax.datasets import SOURCES, Augment, OnError, Source

SITES = ("qkv", "proj", "fc1", "fc2")


class Rule(NamedTuple):
    """What a value that is not None must satisfy. `text` follows "name = value: "."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("must be above 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("must be 0 or more", lambda value: value >= 0)
AT_LEAST_ONE = Rule("must be 1 or more", lambda value: value >= 1)
BELOW_ONE = Rule("must be in [0, 1)", lambda value: 0 <= value < 1)
FRACTION = Rule("must be in (0, 1]", lambda value: 0 < value <= 1)
KEEP = Rule(
    'must be in (0, 1]; 0.1 keeps 10 % of the columns, the paper\'s "90 %"',
    FRACTION.holds,
)
TWO_OR_MORE = Rule("must be 2 or more", lambda value: value >= 2)
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
    default: Any, comment: str, rule: Rule | None = None, *, resume_safe: bool = False
) -> Any:
    """A dataclass field with its comment and rule.

    `resume_safe` says that a run may be resumed with another value, and still takes the same
    course as if it had never stopped.
    """
    metadata = {"comment": comment, "rule": rule, "resume_safe": resume_safe}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Fraction of columns kept, per site (the activation that feeds the named linear layers)."""

    qkv: float | None = setting(None, "input of the query, key and value projections", KEEP)
    proj: float | None = setting(None, "input of the attention output projection", KEEP)
    fc1: float | None = setting(None, "input of the first MLP layer", KEEP)
    fc2: float | None = setting(None, "input of the second MLP layer (mlp_dim wide)", KEEP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruning:
    """Which columns of an activation are kept for the weight gradient, and how they are chosen."""

    keep: float | Keep | None = setting(
        None, "fraction of columns kept: one number, or one per site; none = the method's own", KEEP
    )
    policy: Literal["uniform", "bandit", "importance"] | None = setting(
        None, "how columns are chosen; none = the method's own"
    )
    sampler: Literal["systematic", "bernoulli"] = setting(
        "systematic", "systematic = exactly K columns; bernoulli = the paper's independent draws"
    )
    step_size: float = setting(1e-3, "step size of the bandit", POSITIVE)
    min_prob: float | None = setting(
        None, "smallest probability of a column; none = the policy's own", FRACTION
    )
    interval: int = setting(1, "steps between two draws of columns", AT_LEAST_ONE)
    group_size: int = setting(1, "contiguous columns that are chosen together", AT_LEAST_ONE)
    offset: Literal["none", "paper"] = setting(
        "none", "constant in the bandit loss; paper = Algorithm 2 to the letter, does not learn"
    )
    importance_weighting: bool = setting(
        False, "divide kept rows by their probability (unbiased, more variance)"
    )
    attention_keep: float | None = setting(
        None, "channels kept of q, k, v by the sparse attention plans; none = method's own", KEEP
    )
    joint_spar: float | None = setting(
        None, "share of parameter tensors trained at a time; none = the method's own", RATE
    )
    joint_spar_interval: int = setting(20, "steps between two draws of tensors", AT_LEAST_ONE)
    joint_spar_step_size: float = setting(1e-3, "step size of the bandit over tensors", POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What each site keeps for the backward pass. None = the method's own choice."""

    linear: Literal["dense", "columns", "elements"] | None = setting(
        None, "inputs of linear layers: all, chosen columns, or largest elements"
    )
    layer_norm: Literal["dense", "elements", "int8"] | None = setting(
        None, "normalised input of LayerNorm: dense, largest elements, or int8"
    )
    attention: Literal["flash", "qkv", "recompute", "elements", "channels"] | None = setting(
        None, "what attention keeps, or that it is recomputed"
    )
    gelu: Literal["dense", "code2", "code3", "code4"] | None = setting(
        None, "derivative of GELU: dense, or a code of 2, 3 or 4 bits"
    )
    stochastic_codes: bool | None = setting(
        None, "round GELU codes at random and without bias, not to the nearest level"
    )
    recompute: bool | None = setting(None, "keep the block input only and recompute the rest")
    batch_chunks: int | None = setting(
        None, "run each block in so many parts of the batch: smaller transients", AT_LEAST_ONE
    )
    implementation: Literal["xla", "triton", "mosaic", "jax_triton"] | None = setting(
        None, "kernels of linear, attention and optimizer; none = the best known for the device"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer: either a named size, or width, depth, heads and mlp_dim.

    `patch`, `image_size`, `channels` and `pool` are of the family vit, `vocab_size` and
    `max_length` of bert.
    """

    family: Literal["vit", "bert"] = setting("vit", "vit reads images; bert reads one or two texts")
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
    max_length: int = setting(
        512, "tokens to which texts are cut and filled up; positions of the model", AT_LEAST_ONE
    )
    num_classes: int = setting(
        1000, "number of classes", Rule("must be 2 or more", lambda n: n > 1)
    )
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
        width, depth, heads, mlp_dim = MODEL_SIZES[self.size]
        return dataclasses.replace(self, width=width, depth=depth, heads=heads, mlp_dim=mlp_dim)


MODEL_SIZES = {  # width, depth, heads, mlp_dim
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
}


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


_OWN = [name for name, source in SOURCES.items() if source.is_at is not None]
_ARRAYS = [name for name, source in SOURCES.items() if source.augments[:1] == ("affine",)]
if TYPE_CHECKING:
    _DataName = str
else:  # the choices, which a type checker cannot read from a table
    _DataName = Literal[tuple(SOURCES)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The data set and how examples are changed before they reach the model."""

    name: _DataName = setting(
        "digits",
        f"data set: digits needs no download; {_listed(_OWN)} are your own, in path; "
        "`pbr data prepare` readies the others",
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
        "stop", "what to do about broken images and rows; skip counts them and leaves them out"
    )
    augment: Augment | None = setting(
        None,
        "random changes of training images: affine = small shifts, rotations and scales; crop = a "
        f"random part, resized; none = affine for {_listed(_ARRAYS)}, crop for image files",
    )
    workers: int = setting(
        0, "threads that prepare batches ahead of time", NOT_NEGATIVE, resume_safe=True
    )
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
    weight_decay: float = setting(
        0.0, "weight decay of kernels: decoupled for adamw, L2 for sgd", NOT_NEGATIVE
    )
    clip_norm: float | None = setting(1.0, "largest global gradient norm; none = off", POSITIVE)
    warmup_steps: int = setting(0, "steps of linear warm-up, part of steps", NOT_NEGATIVE)
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "learning rate after the warm-up: falls to zero, or stays"
    )
    accumulation_steps: int = setting(
        1, "parts into which a batch is split to accumulate its gradient", AT_LEAST_ONE
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str = setting("run", "names the run, and its default work directory", resume_safe=True)
    seed: int = setting(0, "seed of parameters, data order, dropout and columns", NOT_NEGATIVE)
    method: str = setting(
        "lean", "residual plan; a suffix such as /js50 trains 50 % of the tensors at a time"
    )
    memory_budget: str | None = setting(
        None, "train by the fastest plan that fits in this much memory, in place of method", SIZE
    )
    steps: int = setting(1000, "optimizer steps", AT_LEAST_ONE)
    batch_size: int = setting(64, "examples per optimizer step", AT_LEAST_ONE)
    eval_every: int = setting(100, "steps between two evaluations", AT_LEAST_ONE, resume_safe=True)
    checkpoint_every: int = setting(
        100, "steps between two checkpoints", AT_LEAST_ONE, resume_safe=True
    )
    keep_checkpoints: int = setting(
        2, "latest checkpoints that stay on disk, beside the best", AT_LEAST_ONE, resume_safe=True
    )
    log_every: int = setting(
        10, "steps between two lines of metrics", AT_LEAST_ONE, resume_safe=True
    )
    pruning: Pruning = Pruning()
    plan: Plan = Plan()
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
