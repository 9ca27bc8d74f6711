"""`pbr predict RUN --prompt`: what a language model writes after a prompt."""

import argparse
import sys
from pathlib import Path

from pbr_jax.configs.common import COUNT, SEED, within
from pbr_jax.data.language_tokens import LanguageTokenizer
from pbr_jax.runs.run import open_run, read_config
from pbr_jax.settings.flags import number_faults

_TEMPERATURE = within(1e-30, 100, or_zero=True)
_TOP_P = within(1e-6, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("language models")
    own.add_argument(
        "--prompt", action="append", metavar="TEXT", help="to continue; may be several"
    )
    own.add_argument("--chat", action="store_true", help="prompts are what a user says in a chat")
    own.add_argument(
        "--max-new", type=int, default=128, metavar="T", help="most tokens to write; default 128"
    )
    own.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 = the likeliest token; 1 = drawn as the model has learned; default 0",
    )
    own.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from this share; default 1"
    )
    own.add_argument("--seed", type=int, default=0, help="of what is drawn")


def kind_of(workdir: Path) -> str:
    """What the run in a work directory reads: images, texts or language."""
    return read_config(workdir).data.source.kind


def main(args: argparse.Namespace, reads: str) -> int:
    """Writes what follows each prompt; returns 0."""
    if reads != "language":
        raise ValueError(f"--prompt: is for language models, and {args.run} reads {reads}s")
    if not args.prompt:
        raise ValueError(f"{args.run}: is a language model; give --prompt TEXT for it to continue")
    if args.paths or args.csv:
        raise ValueError("--prompt: continues a text, and takes neither PATH nor --csv")
    rules = {"max-new": COUNT, "temperature": _TEMPERATURE, "top-p": _TOP_P, "seed": SEED}
    given = {name: getattr(args, name.replace("-", "_")) for name in rules}
    faults = [f for n, rule in rules.items() for f in number_faults(f"--{n}", rule, given[n])]
    if faults:
        raise ValueError("\n".join(faults))
    run = open_run(args.run, args.checkpoint, lambda text: print(text, file=sys.stderr))
    assert run.config.data.tokenizer is not None  # a run on language has one
    tokenizer = LanguageTokenizer(run.config.data.tokenizer)
    prompts = [tokenizer.prompt(text, args.chat) for text in args.prompt]
    for text, made in zip(args.prompt, _written(args, run, tokenizer, prompts), strict=True):
        # What was given stays where a text goes on, and an answer stands alone.
        print(made if args.chat else text + made)
    said = f"written with checkpoint {run.step} of {run.workdir}"
    print(said, file=sys.stderr)
    return 0


def _written(args, run, tokenizer: LanguageTokenizer, prompts: list[list[int]]) -> list[str]:
    """The texts that follow the prompts."""
    import jax

    from pbr_jax.families import find, late
    from pbr_jax.models.generation import generate

    # The module itself: what a method adds to it is in the parameters, or merged into them.
    module = late(find(run.config.model.family).build)(run.config.model, run.parts.method.plan)
    params = run.parts.model.merged(run.state.params)
    how = {"temperature": args.temperature, "top_p": args.top_p, "eos": tokenizer.end}
    made = generate(module, params, prompts, args.max_new, jax.random.key(args.seed), **how)
    return [tokenizer.decode(ids) for ids in made]
