"""All that is to be measured on a GPU, in runs of ten minutes that go on where the last one ended.

    PYTHONPATH=. python benchmarks/gpu.py                        ten minutes of what is not done yet
    PYTHONPATH=. python benchmarks/gpu.py --stages check,step --minutes 5
    PYTHONPATH=. python benchmarks/gpu.py --list                 what there is, and what is done

Needs a checkout, JAX with CUDA, flax, optax, orbax and rich; what jax-triton alone can run is left
out and said so. Every item is a command of `pbr` in a process of its own with a limit of time, so
that one that hangs or breaks costs no other. Stages, in this order:

    check      kernels and the step of every method against XLA and float64; the card's description
    step       time of every method with ViT-B/16 and BERT-base, in turn with full and remat
    kernels    each kernel, cuBLAS at the shapes of a step, cuDNN; ceilings of product and copy
    attention  all kinds at lengths 197, 128 and 512
    linear     the paper's Table 3
    memory     compiled against in use, a process for each method
    profile    the step that misses its arithmetic most, kernel by kernel against the floors

Results are one JSON file for each stage in benchmarks/results/CARD-DATE, or in --out, with command,
versions and commit of each item. What XLA finds out about its kernels is kept in --cache, so that a
later process neither tries them again nor counts the memory of that as its own.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = ("check", "step", "kernels", "attention", "linear", "memory", "profile")
_BASELINES = "full,remat,remat/chunks1"
_GROUPS = {  # in turn with the baselines; the most wanted first
    "plans": "fast,fast/js50,lean,lean/js50,tiny",
    "rivals": "static,static-groups,remat+offload,tiny+offload",
    "paper": "backrazor,prebackrazor-,prebackrazor,prebackrazor++,prebackrazor++/js50",
}
_KERNELS = (
    *("matrix product", "weight gradient", "attention", "LayerNorm", "GELU", "BackRazor"),
    *("sgd", "adamw"),
)
_VIT = ("--config", "configs/vit_b16.py")
_BERT = ("--config", "configs/bert_rte.py")
_BF16 = "--config.model.dtype=bfloat16"
_SETTINGS: dict[str, tuple[str, ...]] = {
    "vit-bf16": (*_VIT, _BF16),
    "bert-32x128": (*_BERT, _BF16, "--config.model.max_length=128"),
    "bert-32x512": (*_BERT, _BF16),
    "bert-8x128": (*_BERT, _BF16, "--config.batch_size=8", "--config.model.max_length=128"),
    "bert-8x512": (*_BERT, _BF16, "--config.batch_size=8"),
    "vit-tf32": _VIT,
}
_TINY = ("--config", "configs/digits.py:tiny", "--config.model.depth=1", "--config.batch_size=4")


class Item(NamedTuple):
    """One command of `pbr`.

    Attributes:
      stage: of `STAGES`.
      name: within the stage.
      words: after `pbr`; `--out FILE` is added.
      limit: of its process, seconds.
      flags: of XLA, beside the driver's.
    """

    stage: str
    name: str
    words: tuple[str, ...]
    limit: int
    flags: str = ""


def items(done: dict[str, dict[str, Any]], tiny: bool = False) -> Iterator[Item]:
    """All items, the most wanted of a stage first.

    Args:
      done: what is known so far, by stage and name; it decides what is profiled.
      tiny: of the smallest sizes, for a CPU.
    """
    settings, groups, rounds = _SETTINGS, _GROUPS, ("--rounds", "15")
    kernels, dtypes, baselines = _KERNELS, ("float32", "bfloat16"), _BASELINES
    checked, measured = ("vit-bf16", "bert-32x128"), ("vit-bf16", "vit-tf32", "bert-32x512")
    if tiny:
        settings, groups, rounds = {"tiny": _TINY}, {"plans": "fast"}, ("--rounds", "1")
        kernels, dtypes, baselines = ("sgd",), ("float32",), "full"
        checked = measured = ("tiny",)

    def steps(command: str, names: Iterable[str], others: str, *more: str, limit: int):
        for group, methods in groups.items():
            for name in names:
                words = ("bench", *command.split(), *settings[name], *more)
                words += ("--methods", f"{others},{methods}")
                yield Item(command.split()[0], f"{name}, {group}", words, limit)

    yield Item("check", "card", ("bench", "check", "--what", "card"), 60)
    for only in kernels:
        words = ("bench", "check", "--what", "kernels", "--only", only)
        yield Item("check", f"kernels, {only}", words, 150)
    few = ("--config.batch_size=4",) if tiny else ("--config.batch_size=16",)
    yield from steps("check --what steps", checked, "full", *few, limit=300)
    yield from steps("step", settings, baselines, *rounds, limit=300)
    for only in kernels:
        words = ("bench", "kernels", "--only", only)
        yield Item("kernels", only, (*words, "--card", "h200") if tiny else words, 200)
    for name, shape in _attention_shapes(tiny):
        yield Item("attention", name, ("bench", "attention", "--shape", *shape, *rounds), 150)
    for dtype in dtypes:
        words = ("bench", "linear", "--dtype", dtype, *rounds)
        words += ("--shape", "2", "3", "16", "8", "--keeps", "0.5") if tiny else ()
        yield Item("linear", dtype, words, 200)
    yield from steps("memory", measured, "full,remat", limit=400)
    if found := worst(done.get("step", {})):
        name, method = found
        words = ("bench", "profile", *settings[name], f"--config.method={method}", *_keep(method))
        yield Item("profile", f"{name}, {method}", words, 150, "--xla_gpu_enable_command_buffer=")
    else:
        yield Item("profile", "the worst step", (), 0)


def _attention_shapes(tiny: bool) -> list[tuple[str, tuple[str, ...]]]:
    if tiny:
        return [("tiny", ("1", "2", "9", "8"))]
    sizes = {"vit": (128, 197), "bert-32x128": (32, 128), "bert-32x512": (32, 512)}
    return [(name, (str(b), "12", str(n), "64")) for name, (b, n) in sizes.items()]


def _keep(method: str) -> tuple[str, ...]:
    """A configuration's keep, where it has one, is not for a method that prunes nothing."""
    unpruned = method.partition("/")[0] in ("full", "remat")
    return ("--config.pruning.keep=none",) if unpruned else ()


def worst(steps: dict[str, Any]) -> tuple[str, str] | None:
    """Setting and method whose time, as a fraction of full, is most above what is expected of it.

    Without an expectation, on a CPU, it is the slowest.
    """
    ratios = {}
    for name, item in steps.items():
        found = item["result"]
        seconds, expected = found["seconds"], found["arithmetic"]
        for method in seconds:
            if method == "full":
                continue
            each = sorted(a / b for a, b in zip(seconds[method], seconds["full"], strict=True))
            ratio = each[len(each) // 2]
            if expected:
                ratio /= expected[method] / expected["full"]
            ratios[name.partition(",")[0], method] = ratio
    return max(ratios, key=lambda key: ratios[key]) if ratios else None


class Results:
    """A folder's files, one for each stage: `{"items": {name: ...}, "failed": {name: ...}}`."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.stages = {
            stage: json.loads(path.read_text()) if path.exists() else {"items": {}, "failed": {}}
            for stage in STAGES
            for path in [folder / f"{stage}.json"]
        }

    def done(self) -> dict[str, dict[str, Any]]:
        """Finished items by stage and name."""
        return {stage: content["items"] for stage, content in self.stages.items()}

    def record(self, item: Item, kind: str, content: dict[str, Any]) -> None:
        """Writes a result or a failure; a result takes the place of an earlier failure."""
        stage = self.stages[item.stage]
        stage["failed"].pop(item.name, None)
        stage[kind][item.name] = content
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{item.stage}.json.tmp"
        temporary.write_text(json.dumps(stage, indent=1) + "\n")
        temporary.replace(self.folder / f"{item.stage}.json")


def run(item: Item, limit: float, cache: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """Runs one item for at most `limit` seconds; "items" or "failed", and what to record."""
    about = {"command": " ".join(["pbr", *item.words]), "commit": commit(), "limit": round(limit)}
    flags = [os.environ.get("XLA_FLAGS", ""), item.flags]
    flags.append(f"--xla_gpu_per_fusion_autotune_cache_dir={cache}")
    cache.mkdir(parents=True, exist_ok=True)
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"XLA_FLAGS": " ".join(filter(None, flags)), "PYTHONPATH": places}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "result.json")
        command = [sys.executable, "-m", "pbr_jax.cli", *item.words, "--out", str(out)]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=limit, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired as error:
            said = error.stderr or b""
            text = said.decode(errors="replace") if isinstance(said, bytes) else said
            reason = f"took more than {limit:.0f} s"
            return "failed", about | {"reason": reason, "said": _last_lines(text)}
        about["seconds"] = round(time.monotonic() - started, 1)
        if not out.exists():
            reason = f"exit code {ended.returncode}"
            return "failed", about | {"reason": reason, "said": _last_lines(ended.stderr)}
        print(ended.stdout, flush=True)
        result = json.loads(out.read_text())
        result["command"] = about["command"]  # without the temporary file
        return "items", about | {"exit_code": ended.returncode, "result": result}


def commit() -> str:
    """Of the checkout, with a mark if files of it were changed; "unknown" outside of git."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def card() -> str:
    """The GPU's name as a folder's, or "cpu"."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        name = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "cpu"
    words = name.splitlines()[0].lower().removeprefix("nvidia ").split()
    return "-".join(word for word in words if word != "geforce")


def _last_lines(text: str, count: int = 15) -> list[str]:
    return text.splitlines()[-count:]


def main(arguments: Iterable[str] | None = None) -> int:
    """Runs what is missing until the time is up; 1 if something failed or computed wrongly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="default: all")
    parser.add_argument("--minutes", type=float, default=9.5, help="in all, default %(default)s")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results")
    parser.add_argument(
        "--cache", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "pbr-autotune")
    )
    parser.add_argument("--list", action="store_true", help="show what there is, and run nothing")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that all works")
    args = parser.parse_args(None if arguments is None else list(arguments))
    stages = args.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"--stages {','.join(unknown)}: must be of {', '.join(STAGES)}")
    day = datetime.date.today().isoformat()
    folder = args.out or ROOT / "benchmarks" / "results" / f"{card()}-{day}"
    results, end, wrong = Results(folder), time.monotonic() + 60 * args.minutes, False
    for stage in stages:
        # The profile is chosen by what the steps took, so the list is made anew for each stage.
        for item in [one for one in items(results.done(), args.tiny) if one.stage == stage]:
            left = end - time.monotonic()
            known, failed = (results.stages[stage][kind] for kind in ("items", "failed"))
            state = "done" if item.name in known else failed.get(item.name, {}).get("reason", "")
            if args.list or item.name in known:
                print(f"{stage:<10}{item.name:<28}{state:<22}pbr {' '.join(item.words)}")
            elif not item.words:
                print(f"{stage}: {item.name}: nothing to choose from before the stage step ran")
            elif left < 20:
                print(f"{stage}: {item.name}: no time left, run again to go on")
            else:
                print(f"\n{stage}: {item.name}", flush=True)
                kind, content = run(item, min(item.limit, left), args.cache)
                results.record(item, kind, content)
                if kind == "failed":
                    print("\n".join([f"FAILED: {content['reason']}", *content["said"]]), flush=True)
                wrong = wrong or kind == "failed" or content["exit_code"] != 0
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
