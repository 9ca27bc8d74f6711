"""Writes the model of a run in a format that other programs read.

    pbr export runs/digits-lean --to safetensors

safetensors  a directory for `from_pretrained` of Hugging Face's Transformers, with the
             preprocessing or the tokenizer and the names of the classes
npz          one file in the layout of Google's ViT
orbax        a directory with our own tree of parameters
delta        a directory with what differs from the weights that the run began with

`--config.model.weights=PATH` reads each of them back, bit for bit. A delta is read with the weights
that it differs from, and `pbr export DELTA --to orbax` makes it whole.
"""

import argparse
import os
import tempfile
from pathlib import Path

from pbr_jax import data
from pbr_jax import weights as public
from pbr_jax.configs.common import Model
from pbr_jax.files import user_path, write_json
from pbr_jax.runs import held
from pbr_jax.runs.run import OpenRun, open_run
from pbr_jax.settings.flags import add_run
from pbr_jax.training.inputs import as_setting, normalization
from pbr_jax.training.pretrained import find_weights
from pbr_jax.training.state import as_tree
from pbr_jax.weights.layout import unflatten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--to", required=True, choices=("safetensors", "npz", "orbax", "delta"))
    parser.add_argument("--out", type=user_path, metavar="PATH", help="default in RUN/export")


def main(args: argparse.Namespace) -> int:
    out = args.out or args.run / "export" / ("model.npz" if args.to == "npz" else args.to)
    if out.exists():
        raise ValueError(f"{out}: is there already; delete it, or give another --out")
    run = None if public.is_delta(args.run) else open_run(args.run, args.checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    # What is at `out` is whole, whatever happens while it is written.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        if run is None:
            write_whole(args.run, args.to, Path(folder) / "out")
        else:
            write(run, args.to, Path(folder) / "out", out)
        (Path(folder) / "out").rename(out)
    what = f"{args.run} with its base" if run is None else f"checkpoint {run.step} of {run.workdir}"
    print(f"wrote {what} to {out}")
    print(f"--config.model.weights={out} starts from it")
    return 0


def write(run: OpenRun, form: str, out: Path, place: Path) -> None:
    """Writes the model of a run to `out`, which will be moved to `place`.

    Raises:
      ValueError: the format cannot hold it, or there are no weights that a delta could differ from.
    """
    model = run.config.model
    published, kind = public.published(model.family), run.config.data.source.kind
    seen = normalization(run.config) if kind == "image" else None
    params, extra = run.state.variables
    tree, sizes = as_tree(run.parts.model.merged(params), extra), published.sizes(model)
    if form == "delta":
        base = _base(model)
        from_there = os.path.relpath(os.path.realpath(base), os.path.realpath(place))
        described = model.family, tree, sizes, run.class_names, seen
        size = public.save_delta(out, *described, base, from_there)
        share = size["delta"] / size["whole"]
        print(f"it holds {size['delta']} bytes of {size['whole']} ({share:.1%}); {base} must stay")
    else:
        said = published.described(model) if form == "safetensors" else None
        public.save(out, form, model.family, tree, sizes, run.class_names, seen, said)
    if form == "npz" and seen is not None and seen != public.Normalization():
        flags = [f"--config.data.{n}={as_setting(v)}" for n, v in seen._asdict().items()]
        print(f"an .npz does not say how images are normalised; give {' '.join(flags)} with it")
    if form in ("safetensors", "delta") and kind != "image":
        _write_tokenizer(run, out)


def write_whole(delta: Path, form: str, out: Path) -> None:
    """Writes the model of a delta and its base to `out`, as our tree."""
    if form != "orbax":
        raise ValueError(
            f"--to {form}: {delta} is a delta, which is made whole by --to orbax; other formats are"
            " written from the run"
        )
    found = public.read(delta)
    names, _ = public.own_classes(found)
    seen = public.preparation_of(delta)
    normalization = None if seen is None else seen.normalization
    params = unflatten(found.arrays)
    public.save_orbax(out, found.family, params, found.sizes, names, normalization)


def _base(model: Model) -> Path:
    """The weights that a run began with."""
    if model.weights is None:
        raise ValueError(
            "--to delta: the run began with random parameters, since model.weights was none, so"
            " there is nothing to differ from; export it --to orbax"
        )
    return find_weights(model.weights)


def _write_tokenizer(run: OpenRun, out: Path) -> None:
    """The vocabulary beside the weights, and what Hugging Face's tokenizer must know of it."""
    for name, content in held.tokenizer_to_copy(run.config, run.workdir).items():
        (out / name).write_bytes(content)
    if run.config.data.source.kind == "language":  # as it came, with the template of a chat
        return
    # Transformers changes texts as this file says, whatever a tokenizer.json says.
    d, longest = run.config.data, run.config.model.max_length
    assert d.tokenizer is not None  # a run on text has one
    used = data.TextInputs(d.tokenizer, longest, d.lower_case).normalization
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": longest, **used}
    write_json(out / "tokenizer_config.json", settings)
