"""Writes the model of a run in a format that other programs read.

    pbr export runs/digits-lean --to safetensors

safetensors  a directory for `from_pretrained` of Hugging Face's Transformers, with the
             preprocessing or the tokenizer and the names of the classes
npz          one file in the layout of Google's ViT
orbax        a directory with our own tree of parameters

`--config.model.weights=PATH` reads each of them back, bit for bit.
"""

import argparse
import tempfile
from pathlib import Path

from pbr_jax import data
from pbr_jax import weights as public
from pbr_jax.files import user_path, write_json
from pbr_jax.runs import held
from pbr_jax.runs.run import OpenRun, open_run
from pbr_jax.settings.flags import add_run
from pbr_jax.training.inputs import as_setting, normalization
from pbr_jax.training.state import as_tree


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--to", required=True, choices=("safetensors", "npz", "orbax"))
    parser.add_argument("--out", type=user_path, metavar="PATH", help="default in RUN/export")


def main(args: argparse.Namespace) -> int:
    out = args.out or args.run / "export" / ("model.npz" if args.to == "npz" else args.to)
    if out.exists():
        raise ValueError(f"{out}: is there already; delete it, or give another --out")
    run = open_run(args.run, args.checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    # What is at `out` is whole, whatever happens while it is written.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        write(run, args.to, Path(folder) / "out")
        (Path(folder) / "out").rename(out)
    print(f"wrote checkpoint {run.step} of {run.workdir} to {out}")
    print(f"--config.model.weights={out} starts from it")
    return 0


def write(run: OpenRun, form: str, out: Path) -> None:
    """Writes the model of a run to `out`; raises ValueError where the format cannot hold it."""
    model = run.config.model
    published, kind = public.published(model.family), run.config.data.source.kind
    seen = normalization(run.config) if kind == "image" else None
    params, extra = run.state.variables
    tree = as_tree(run.parts.model.merged(params), extra)
    said = published.described(model) if form == "safetensors" else None
    how = (published.sizes(model), run.class_names, seen, said)
    public.save(out, form, model.family, tree, *how)
    if form == "npz" and seen is not None and seen != public.Normalization():
        flags = [f"--config.data.{n}={as_setting(v)}" for n, v in seen._asdict().items()]
        print(f"an .npz does not say how images are normalised; give {' '.join(flags)} with it")
    if form == "safetensors" and kind == "text":
        _write_tokenizer(run, out)


def _write_tokenizer(run: OpenRun, out: Path) -> None:
    """The vocabulary beside the weights, and what Hugging Face's tokenizer must know of it."""
    for name, content in held.tokenizer_to_copy(run.config, run.workdir).items():
        (out / name).write_bytes(content)
    # Transformers changes texts as this file says, whatever a tokenizer.json says.
    d, longest = run.config.data, run.config.model.max_length
    assert d.tokenizer is not None  # a run on text has one
    used = data.TextInputs(d.tokenizer, longest, d.lower_case).normalization
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": longest, **used}
    write_json(out / "tokenizer_config.json", settings)
