"""Predicts the classes of images or texts with the model of a run, or continues a prompt.

    pbr predict runs/digits-lean images/*.png --csv out.csv
    pbr predict runs/bert texts.jsonl --csv out.csv --top 2
    pbr predict runs/qwen3-0.6b-tiny --prompt "Once upon a time" --temperature 0.7

Images are files, folders of them, or an `.npz` with an array `images` [N, H, W, C]; they are
prepared as in evaluation. Texts are `.jsonl` or `.csv` with text, or text_a and text_b; labels are
not read. The output has a line for each file or row, `example,class,probability`. An example that
cannot be used stops the command, which then writes nothing; with --skip it is named, counted and
left out. A language model writes what follows each --prompt: the likeliest tokens, or with
--temperature drawn ones.
"""

import argparse
import csv
import dataclasses
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax

from pbr_jax.commands import predict_prompt
from pbr_jax.configs.common import BATCH, Config, Mesh
from pbr_jax.data import unlabelled
from pbr_jax.files import user_path, write_text
from pbr_jax.runs.predict import Prediction, predict
from pbr_jax.runs.progress import progress
from pbr_jax.runs.run import open_run
from pbr_jax.settings.flags import add_run, number_faults
from pbr_jax.training import from_config
from pbr_jax.training.from_config import Parts
from pbr_jax.training.inputs import input_notes, make_inputs
from pbr_jax.training.mesh import settled_devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("paths", nargs="*", type=user_path, metavar="PATH", help="images or texts")
    parser.add_argument(
        "--csv", type=user_path, metavar="FILE", help="where to write; default stdout"
    )
    parser.add_argument("--top", type=int, default=1, metavar="K", help="classes per example")
    parser.add_argument("--skip", action="store_true", help="leave out what cannot be used")
    parser.add_argument("--batch-size", type=int, metavar="B", help="default that of training")
    predict_prompt.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Predicts; returns 0, or 1 if no example could be used."""
    if args.csv is not None:
        check_output(args.csv, args.paths)
    reads = predict_prompt.kind_of(args.run)
    if args.prompt or reads == "language":
        return predict_prompt.main(args, reads)
    if not args.paths:
        raise ValueError("PATH: give the images or texts to predict")
    run = open_run(args.run, args.checkpoint, lambda text: print(text, file=sys.stderr))
    if not 1 <= args.top <= len(run.class_names):
        raise ValueError(f"--top {args.top}: must be between 1 and {len(run.class_names)} classes")
    batch_size = run.config.batch_size if args.batch_size is None else args.batch_size
    if faults := number_faults("--batch-size", BATCH, batch_size):
        raise ValueError(*faults)
    examples = unlabelled.find(args.paths, run.config.data.source.kind)
    # The last batch is filled up: one larger than all examples would be filled for nothing.
    batch_size = min(batch_size, max(run.config.batch_size, len(examples)))
    # Files are prepared as in evaluation, even where training reads arrays.
    data = dataclasses.replace(run.config.data, augment="off")
    inputs = make_inputs(dataclasses.replace(run.config, data=data))
    for note in input_notes(inputs, examples):
        print(note, file=sys.stderr)
    faults = []
    skip = faults.append if args.skip else None
    parts = _on_all_devices(run.config, batch_size)
    probabilities = parts.placement.each(lambda *own: jax.nn.softmax(parts.model.outputs(*own)))
    predictions = predict(probabilities, run.state.variables, examples, inputs, batch_size, skip)
    # Nothing is written before the last example is predicted: an output is whole or not there.
    try:
        text = as_csv(_shown(predictions, len(examples)), run.class_names, args.top)
    except ValueError as error:
        advice = "Nothing was written. --skip leaves out what cannot be used."
        raise ValueError(f"{error}\n{advice}") from error
    if args.csv is None:
        sys.stdout.write(text)
    else:
        write_text(args.csv, text)
    # Standard output is for the predictions alone.
    for note in [*(f"skipped: {fault}" for fault in faults), *examples.notes]:
        print(note, file=sys.stderr)
    where = "" if args.csv is None else f"; wrote {args.csv}"
    print(
        f"{len(examples) - len(faults)} of {len(examples)} examples predicted with checkpoint"
        f" {run.step} of {run.workdir}{where}",
        file=sys.stderr,
    )
    return int(len(faults) == len(examples))


def _on_all_devices(config: Config, batch_size: int) -> Parts:
    """The model of a run on the devices that divide a batch."""
    alone = dataclasses.replace(config.optimizer, accumulation_steps=1)
    config = dataclasses.replace(config, batch_size=batch_size, optimizer=alone, mesh=Mesh())
    return from_config.build(settled_devices(config)[0])


def check_output(file: Path, examples: Sequence[Path]) -> None:
    """Raises `ValueError`, before anything is computed, for what must or can not be written."""
    if not file.parent.is_dir():
        raise ValueError(f"--csv {file}: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"--csv {file}: nothing can be written into {file.parent}")
    if file.exists() and not file.is_file():
        raise ValueError(f"--csv {file}: is no file; leave out --csv for standard output")
    if file.exists() and any(each.exists() and each.samefile(file) for each in examples):
        raise ValueError(f"--csv {file}: is one of the inputs; give another file")


def as_csv(predictions: Iterable[Prediction], class_names: Sequence[str], top: int) -> str:
    """The table of the predictions, a line each."""
    header = ["example", "class", "probability"]
    header += [f"{name}_{rank}" for rank in range(2, top + 1) for name in header[1:]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for prediction in predictions:
        best = prediction.best(top)
        cells = [cell for label, p in best for cell in (class_names[label], f"{p:.6f}")]
        writer.writerow([prediction.name, *cells])
    return text.getvalue()


def _shown(predictions: Iterable[Prediction], count: int) -> Iterator[Prediction]:
    """The same predictions, with a bar that counts them."""
    with progress("predicting", count) as done:
        for prediction in predictions:
            done(prediction.name)
            yield prediction
