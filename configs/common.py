"""Every setting, once: its type, default, meaning, and the rule that a value must obey.

A configuration is a tree of frozen dataclasses. The type annotation, the comment and the rule of a
field are the only source for validation (`pbr_jax.settings.rules`), for the conversion of
`--config.a.b=value` (`pbr_jax.settings.overrides`) and for `--help` (`pbr_jax.settings.flags`).
`None` stands for "not set": the chosen method, or the model size, then decides.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional

from pbr_jax.datasets import SOURCES, Augment, OnError, Source
from pbr_jax.decoders import SHAPES
from pbr_jax.methods import METHODS
from pbr_jax.plans import Keep, ResidualPlan

__all__ = [
    "Config",
    "Data",
    "Decoder",
    "Keep",
    "Lora",
    "Mesh",
    "Model",
    "Optimizer",
    "Plan",
    "Pruning",
    "named_decoder",
]


class Rule(NamedTuple):
    """What a value that is not None must satisfy. `text` follows "name = value: "."""

    text: str
    holds: Callable[[Any], bool]
    least: float | None = None  # of numbers
    most: float | None = None

    @property
    def phrase(self) -> str:
        """The rule in a few words, such as "from 1 to 1e9"."""
        return self.text.partition(";")[0].removeprefix("must be ")


def within(least: float, most: float, *, or_zero: bool = False, why: str = "") -> Rule:
    """The rule of a number from `least` to `most`, both included; `why` ends its text."""
    zero = "0, or " if or_zero else ""
    text = f"must be {zero}from {_short(least)} to {_short(most)}" + (f"; {why}" if why else "")
    holds = lambda value: least <= value <= most or (or_zero and value == 0)  # noqa: E731
    return Rule(text, holds, least, most)


def _short(number: float) -> str:
    """A number in as few characters as it can be typed in, such as 1e9."""
    short = f"{number:g}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    return short if float(short) == number else str(number)


# What is beyond a bound means nothing, or breaks something later: steps are counted in int32, a key
# is made of 32 bits of the seed, and float32 loses a number that is smaller or larger.
STEPS = within(1, 10**9)
NO_STEPS = within(0, 10**9)
SEED = within(0, 2**32 - 1, why="a larger one would be cut to its last 32 bits")
BATCH = within(1, 10**6)
COUNT = within(1, 10**9)  # of examples or files
POSITIVE = within(1e-30, 1e30)
SIDE = within(1, 2**14)  # pixels
WIDTH = within(1, 2**16)
CLASSES = within(2, 10**7)
MOST_COLUMNS = 2**18  # of the widest activation
BELOW_ONE = within(0, 0.9999999)  # the largest numbers below 1 are 1 in float32
FRACTION = within(1e-6, 1)
KEEP = within(1e-6, 1, why='0.1 keeps 10 % of the columns, the paper\'s "90 %"')
RATE = within(1e-6, 1, why="0.5 trains half of the tensors at a time")
# A name is part of the name of a folder, which has at most 255 bytes.
NAME = Rule(
    "must be 1 to 200 printable characters",
    lambda text: bool(text.strip()) and text.isprintable() and len(text.encode()) <= 200,
)
PATH = Rule(
    "must be a path of 1 to 4096 characters",
    lambda text: bool(text.strip()) and len(text) <= 4096 and "\0" not in text,
)
# Decimal units as cards are sold by, binary ones as they are built.
_UNITS = {"b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}


def size_in_bytes(text: str) -> int | None:
    """`8GiB` or `24 GB` in bytes; None when it is no size, or not one from 1 MB to 1 PB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        return None
    size = float(match[1]) * _UNITS[match[2]]
    return round(size) if 10**6 <= size <= 10**15 else None


SIZE = Rule(
    "must be a size with its unit, such as 8GiB, 24GB or 512MiB, from 1MB to 1000TB",
    lambda text: size_in_bytes(text) is not None,
)


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError):
        return False
    return 0 < len(text) <= 1000


EXPRESSION = Rule("must be a regular expression, such as .*(q|v)", _is_expression)


def channel_numbers(value: float | str) -> tuple[float, ...]:
    """`0.5`, or one for each channel as `0.485,0.456,0.406`; empty where it is neither."""
    try:
        return tuple(float(word) for word in str(value).split(","))
    except ValueError:
        return ()


def _each_within(least: float, most: float) -> Rule:
    one = within(least, most)

    def holds(value: float | str) -> bool:
        return bool(numbers := channel_numbers(value)) and all(map(one.holds, numbers))

    text = f"{one.text}, as pixels are; one number, or one for each channel, joined by commas"
    return Rule(text, holds, least, most)


MEAN = _each_within(0, 1)
STD = _each_within(0.001, 1)


def setting(
    default: Any,
    comment: str,
    rule: Rule | None = None,
    *,
    choices: Iterable[str] = (),
    resume_safe: bool = False,
    settled: bool = False,
) -> Any:
    """A dataclass field with its comment, its rule, and the names that it can take.

    `resume_safe` says that a run may be resumed with another value, and still takes the same
    course as if it had never stopped. `settled` says that none is settled when a run starts, and
    that the run keeps what it was then.
    """
    known = {"comment": comment, "rule": rule, "resume_safe": resume_safe, "settled": settled}
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
    interval: int | Literal["never"] | None = setting(
        None, "steps between two draws of columns; never = one draw; none = the method's own", STEPS
    )
    group_size: int | None = setting(
        None,
        "contiguous columns that are chosen together; none = the method's own",
        within(1, MOST_COLUMNS),
    )
    state: Literal["whole", "packed"] | None = setting(
        None,
        "moments of the optimizer: whole = of every row; packed = of the rows that are trained, "
        "until the next draw; none = the method's own",
    )
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
    joint_spar_interval: int = setting(20, "steps between two draws of tensors", STEPS)
    joint_spar_step_size: float = setting(1e-3, "step size of the bandit over tensors", POSITIVE)


def _plan_field(field: dataclasses.Field) -> tuple[str, Any, Any]:
    """A field of `ResidualPlan` as a setting that is open."""
    bounds = field.metadata.get("bounds")
    rule = None if bounds is None else within(*bounds)
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
class Decoder:
    """What a decoder of language has beside width, depth, heads and mlp_dim.

    The defaults are those of Llama; `named_decoder` has those of published models.
    """

    kv_heads: int | None = setting(
        None, "heads of keys and values; divides model.heads; none = as many", within(1, 1024)
    )
    head_dim: int | None = setting(
        None, "channels of a head, an even number; none = model.width / model.heads", WIDTH
    )
    query_scale: float | None = setting(
        None, "scores are divided by the root of this; none = of the channels of a head", POSITIVE
    )
    qk_norm: bool = setting(False, "RMSNorm of each head of queries and keys, as Qwen3 and Gemma 3")
    norm_eps: float = setting(1e-5, "added to the mean square of every RMSNorm", within(1e-30, 1))
    norm_offset: bool = setting(False, "an RMSNorm multiplies by 1 + its scale, as Gemma's")
    post_norms: bool = setting(False, "RMSNorm behind attention and MLP too, as Gemma 2 and 3")
    embedding_scale: bool = setting(
        False, "embeddings are multiplied by the root of model.width, as Gemma's"
    )
    activation: Literal["silu", "gelu_tanh"] = setting(
        "silu", "of the gate: silu makes SwiGLU, gelu_tanh the GeGLU of Gemma"
    )
    tied: bool = setting(True, "the embedding is the head too")
    positions: int | None = setting(
        None,
        "tokens that the model can have, as its config.json says; none = model.max_length",
        within(1, 2**30),
    )
    window: int | None = setting(
        None, "tokens that a query of a local layer sees, itself included; none = all", COUNT
    )
    global_every: int | None = setting(
        None,
        "with window: every so many-th layer sees all tokens; none = no layer does",
        within(2, 10**9),
    )
    rope_base: float = setting(1e4, "base of the rotary angles", POSITIVE)
    rope_local_base: float | None = setting(
        None, "that of local layers, which are not scaled; none = as of all", POSITIVE
    )
    rope_scaling: Literal["none", "linear", "llama3"] = setting(
        "none",
        "slower rotary angles, for longer texts: linear = all by rope_factor; llama3 = the slow "
        "ones, those with fewer than rope_low_factor turns in rope_original tokens, and up to "
        "rope_high_factor a part",
    )
    rope_factor: float = setting(1.0, "by which angles are divided", within(1, 1e6))
    rope_low_factor: float = setting(1.0, "turns, for llama3", POSITIVE)
    rope_high_factor: float = setting(4.0, "turns, for llama3; above rope_low_factor", POSITIVE)
    rope_original: int = setting(8192, "tokens of the first training, for llama3", COUNT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model: either a named size, or width, depth, heads and mlp_dim.

    A family's record says which of the other fields it reads (`pbr_jax.families`).
    """

    family: str = setting(
        "vit",
        "vit reads images, bert one or two texts, decoder language; or the place of a function of "
        "your own that makes a Flax module, my_module:make (docs/models.md)",
    )
    size: Literal["Ti", "S", "B", "L"] | None = setting(
        None, "named size; then width, depth, heads and mlp_dim stay none"
    )
    width: int | None = setting(None, "channels of a token", WIDTH)
    depth: int | None = setting(None, "number of blocks", within(1, 1000))
    heads: int | None = setting(None, "attention heads; divides width", within(1, 1024))
    mlp_dim: int | None = setting(None, "hidden width of the MLP", within(1, MOST_COLUMNS))
    patch: int = setting(16, "side of a patch in pixels; divides image_size", SIDE)
    image_size: int = setting(224, "side of the image in pixels", SIDE)
    channels: int = setting(3, "colour channels of the image", within(1, 1024))
    vocab_size: int = setting(30522, "words of the vocabulary", within(1, 10**7))
    max_length: int = setting(512, "tokens to which texts are cut or filled up", within(1, 2**20))
    num_classes: int = setting(1000, "number of classes", CLASSES)
    dropout: float = setting(
        0.0,
        "dropout rate of the residual branches; for bert also of embeddings, attention and pooler",
        BELOW_ONE,
    )
    pool: Literal["cls", "mean"] = setting("cls", "what the head reads: class token or mean token")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the activations")
    param_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the parameters of a decoder"
    )
    weights: str | None = setting(
        None,
        "pretrained weights to start from, a file or directory (docs/weights.md); none = random",
        PATH,
    )
    decoder: Decoder = Decoder()

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


def named_decoder(name: str, **changes: Any) -> Model:
    """The published decoder of that name in `pbr_jax.decoders`, with other fields of `Model`.

    Raises:
      ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(f"decoder {name!r}: must be one of {', '.join(SHAPES)}")
    *sizes, vocab_size, details = SHAPES[name]
    fields: dict[str, Any] = dict(zip(SHAPE, sizes, strict=True)) | {"vocab_size": vocab_size}
    return Model(**{"family": "decoder", **fields, "decoder": Decoder(**details), **changes})


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
        PATH,
    )
    test_split: str | None = setting(
        None,
        "split that evaluation reads; none = the usual one, or the only one beside train",
        NAME,
    )
    max_test: int | None = setting(
        None, "evaluate on so many examples, of all classes; none = on all", COUNT
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
    workers: int = setting(
        0, "threads that prepare batches ahead", within(0, 256), resume_safe=True
    )
    tokenizer: str | None = setting(
        None,
        "vocab.txt or tokenizer.json of a text model, or the folder of a language model's, from "
        "where its weights are from",
        PATH,
    )
    packing: bool = setting(
        True, "several texts share a row of model.max_length tokens, for language models"
    )
    lower_case: bool | None = setting(
        None,
        "lower-case the text, with vocab.txt; none = as tokenizer_config.json beside it says, or "
        "else true; tokenizer.json says so itself",
    )
    mean: float | str | None = setting(
        None,
        "mean of pixels in [0, 1], which is subtracted, such as 0.5, or 0.485,0.456,0.406 for red, "
        "green and blue; none = what lies beside model.weights says, else 0.5",
        MEAN,
        settled=True,
    )
    std: float | str | None = setting(
        None,
        "deviation of pixels, by which they are then divided; none = as for mean",
        STD,
        settled=True,
    )

    @property
    def source(self) -> Source:
        """The kind, defaults and limits of the data set that is named."""
        return SOURCES[self.name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimizer, learning-rate schedule and gradient handling."""

    name: Literal["sgd", "adamw"] = setting("sgd", "sgd = with momentum")
    learning_rate: float = setting(
        0.01, "highest learning rate of the schedule", within(1e-30, 1e6)
    )
    momentum: float = setting(0.9, "momentum of sgd", BELOW_ONE)
    b1: float = setting(0.9, "decay of the first moment of adamw", BELOW_ONE)
    b2: float = setting(0.999, "decay of the second moment of adamw", BELOW_ONE)
    eps: float = setting(1e-8, "added to the denominator of adamw", within(1e-30, 1))
    weight_decay: float = setting(
        0.0, "of kernels: decoupled for adamw, L2 for sgd", within(1e-30, 1000, or_zero=True)
    )
    clip_norm: float | None = setting(1.0, "largest global gradient norm; none = off", POSITIVE)
    warmup_steps: int = setting(0, "steps of linear warm-up, part of steps", NO_STEPS)
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "learning rate after the warm-up: falls to zero, or stays"
    )
    accumulation_steps: int = setting(1, "parts of a batch, whose gradients add up", BATCH)
    rate_for_keep: float = setting(
        0.0,
        "learning_rate is divided by (mean kept fraction of the columns)^this; 0 = as it is",
        within(0, 1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA, of the method `lora`: what is trained beside kernels that stand still."""

    rank: int = setting(16, "columns of A, and rows of B", within(1, 2**16))
    alpha: float = setting(32.0, "the product A B is scaled by alpha / rank", POSITIVE)
    modules: str | None = setting(
        None,
        "regular expression for the whole path of a layer that has A and B, such as "
        "blocks/(q|v); none = every linear layer",
        EXPRESSION,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The devices of a run."""

    data: int | None = setting(
        None,
        "devices that share a batch; none = as many of those that JAX sees as divide it",
        within(1, 2**16),
        resume_safe=True,
    )
    fsdp: int = setting(
        1,
        "of these, devices that split large parameters and their moments among them",
        within(1, 2**16),
        resume_safe=True,
    )
    split: Literal["parameters", "moments"] = setting(
        "parameters",
        "what these split: parameters with their moments, or moments alone, for fewer bytes",
        resume_safe=True,
    )
    timeout: int = setting(
        600,
        "seconds that a step may take before a job of several processes counts as stuck and ends",
        within(1, 10**6),
        resume_safe=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str = setting(
        "run", "names the run, and its default work directory", NAME, resume_safe=True
    )
    seed: int = setting(0, "seed of parameters, data order, dropout and columns", SEED)
    method: str = setting(
        "lean",
        "residual plan; a suffix such as /js50 trains 50 % of the tensors at a time",
        choices=METHODS,
    )
    memory_budget: str | None = setting(
        None, "train by the fastest plan that fits in this much memory, in place of method", SIZE
    )
    steps: int = setting(1000, "optimizer steps", STEPS)
    batch_size: int = setting(64, "examples per optimizer step", BATCH)
    eval_every: int = setting(100, "steps between two evaluations", STEPS, resume_safe=True)
    checkpoint_every: int = setting(100, "steps between checkpoints", STEPS, resume_safe=True)
    keep_checkpoints: int = setting(
        2, "latest checkpoints that stay on disk, beside the best", COUNT, resume_safe=True
    )
    log_every: int = setting(10, "steps between lines of metrics", STEPS, resume_safe=True)
    pruning: Pruning = Pruning()
    plan: Plan = Plan()  # noqa: RUF009 (it is a frozen dataclass too)
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    lora: Lora = Lora()
    mesh: Mesh = Mesh()
