"""A small BERT from pretraining to prediction, by the commands of this repository, without network.

    python benchmarks/bert_docstrings.py --out benchmarks/results/bert_docstrings.json

Real text that every Python installation has: docstrings of the standard library, cut into
sentences; the class of a sentence is the package that it is from. A BERT (width 128, 4 blocks, 48
tokens) is trained from random weights on half of the packages and exported to safetensors; from
that file it is fine-tuned on the other half by several methods, and the test sentences are
predicted. Sentences go to training or test by a hash, so that none is in both.
"""

import argparse
import ast
import csv
import hashlib
import json
import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import jax

from pbr_jax.files import write_json

ROOT = Path(__file__).parents[1]
PER_CLASS = 400
NUM_CLASSES = 6  # of pretraining, and of fine-tuning


def sentences() -> dict[str, list[str]]:
    """Package -> its sentences of 5 to 40 words, each once."""
    found: dict[str, set[str]] = defaultdict(set)
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        package = file.relative_to(library).parts[0].removesuffix(".py")
        if package in ("site-packages", "test", "idlelib", "lib2to3", "this") or "test" in str(
            file
        ):
            continue
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = re.sub(r"\s+", " ", ast.get_docstring(node) or "")
                parts = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
                found[package] |= {part for part in parts if 5 <= len(part.split()) <= 40}
    return {package: sorted(texts) for package, texts in found.items()}


def write_tables(folder: Path, texts: dict[str, list[str]], packages: list[str]) -> None:
    """`train.csv` and `test.csv`, at most `PER_CLASS` sentences of a package."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for package in packages:
        by_hash = sorted(texts[package], key=lambda t: hashlib.sha256(t.encode()).digest())
        for i, text in enumerate(by_hash[:PER_CLASS]):
            rows["test" if i % 5 == 0 else "train"].append((text, package))
    for split, lines in rows.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("text", "label"), *lines])


def write_vocabulary(path: Path, texts: list[str]) -> int:
    """Learns word pieces from the texts of both tasks; returns their number."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts, vocab_size=4000, show_progress=False)
    words = tokenizer.get_vocab()
    path.write_text("\n".join(sorted(words, key=lambda word: words[word])) + "\n")
    return len(words)


def run(*words: str) -> None:
    """Runs a command of this repository."""
    print("$", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def settings(data: Path, vocabulary: Path, vocab_size: int, steps: int, rate: float) -> list[str]:
    """Of a training run."""
    values = {
        "steps": steps,
        "batch_size": 32,
        "eval_every": 100,
        "pruning.keep": "none",
        "model.size": "none",
        "model.width": 128,
        "model.depth": 4,
        "model.heads": 4,
        "model.mlp_dim": 512,
        "model.vocab_size": vocab_size,
        "model.max_length": 48,
        "model.num_classes": NUM_CLASSES,
        "model.weights": "none",
        "data.name": "csv",
        "data.path": data,
        "data.tokenizer": vocabulary,
        "optimizer.learning_rate": rate,
        "optimizer.warmup_steps": 30,
    }
    config = [f"--config.{key}={value}" for key, value in values.items()]
    return ["--config", "configs/bert_rte.py:smoke", *config]


def main() -> None:
    """Trains, exports, fine-tunes, predicts; prints the table and writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bert-docstrings"))
    parser.add_argument("--methods", default="full,prebackrazor,lean")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.work.resolve()
    texts = sentences()
    packages = sorted(texts, key=lambda package: -len(texts[package]))[: 2 * NUM_CLASSES]
    tasks = {"pretraining": packages[::2], "fine-tuning": packages[1::2]}
    for task, chosen in tasks.items():
        write_tables(work / task, texts, chosen)
    vocabulary = work / "vocab.txt"
    vocab_size = write_vocabulary(vocabulary, [t for p in packages for t in texts[p]])

    def options(task: str, steps: int, rate: float) -> list[str]:
        return settings(work / task, vocabulary, vocab_size, steps, rate)

    pretrained = work / "pretrained"
    words = options("pretraining", 2 * args.steps, 1e-3)
    run("train.py", *words, "--config.method=full", "--workdir", str(pretrained))
    weights = pretrained / "export" / "safetensors"
    if not weights.exists():
        run("-m", "pbr_jax.cli", "export", str(pretrained), "--to", "safetensors")
    results: dict[str, list[float]] = {}
    starts = [(method, weights) for method in args.methods.split(",")] + [
        ("full, from scratch", "none")
    ]
    for label, start in starts:
        method = label.partition(",")[0]
        for seed in range(args.seeds):
            folder = work / f"{label.replace('/', '-').replace(', ', '-').replace(' ', '-')}-{seed}"
            run(
                *("train.py", *options("fine-tuning", args.steps, 5e-4)),
                *(f"--config.method={method}", f"--config.seed={seed}"),
                *(f"--config.model.weights={start}", "--workdir", str(folder)),
            )
            summary = json.loads((folder / "summary.json").read_text())
            results.setdefault(label, []).append(summary["accuracy"])
    test = work / "fine-tuning" / "test.csv"
    table = work / "predictions.csv"
    folder = work / f"{args.methods.split(',')[0]}-0"
    run(
        "-m",
        "pbr_jax.cli",
        "predict",
        str(folder),
        str(test),
        "--csv",
        str(table),
        "--checkpoint=last",
    )
    print("| method | test accuracy %, per seed | mean |\n|---|---|---|")
    for label, values in results.items():
        shown = ", ".join(f"{100 * v:.1f}" for v in values)
        print(f"| {label} | {shown} | {100 * sum(values) / len(values):.1f} |")
    pretraining = json.loads((pretrained / "summary.json").read_text())["accuracy"]
    print(f"pretraining accuracy: {100 * pretraining:.1f} %")
    if args.out:
        figures = {"steps": args.steps, "tasks": tasks, "pretraining": pretraining}
        versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
        write_json(args.out, {**figures, "accuracy": results, "versions": versions})


if __name__ == "__main__":
    main()
