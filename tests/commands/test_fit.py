"""`pbr fit` from its flags to its exit code, with made-up memory instead of a compiler."""

import contextlib
import io
import json
import sys

import jax
import pytest
import rich.console

from pbr_jax import cli
from pbr_jax.commands import fit as command
from pbr_jax.gpu import CARDS, MemoryReport, find_card, sized_card, target_config
from pbr_jax.memory import fit
from pbr_jax.memory.table import Table, json_row, notes, print_table, to_json, to_markdown
from pbr_jax.memory.use import MemoryUse
from pbr_jax.settings.flags import parse_config
from pbr_jax.settings.load import SHIPPED
from pbr_jax.settings.variants import with_method

TINY = ["--config", f"{SHIPPED / 'digits.py'}:tiny"]
METHODS = "full,fast,lean"


def measure(run):
    """1 GB and, for an example, 100 MB by `full` and 20 MB by other methods."""
    if run.pruning.keep == 0.5:
        raise jax.errors.JaxRuntimeError("INTERNAL: no tile for keep 0.5")
    each = 100e6 if run.method == "full" else 20e6
    wire = 8_000_000 if (run.mesh.data or 1) > 1 else 0
    return MemoryReport(10**9, 10**9, round(each * run.batch_size), 10**9, wire_bytes=wire)


@pytest.fixture
def pbr_fit(monkeypatch, capsys):
    """Runs `pbr fit` with flags; returns its exit code, stdout and stderr."""
    made = contextlib.nullcontext((measure, ""))
    monkeypatch.setattr(command, "measure_for", lambda card, cache, hosts: made)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*flags):
        code = cli.main(["fit", *TINY, *flags])
        return (code, *capsys.readouterr())

    return run


def test_the_table_names_the_fastest_that_fits(pbr_fit):
    code, out, _ = pbr_fit("--gpu", "rtx3090", "--methods", METHODS)
    assert code == 0
    assert "digits-tiny · batch 16 · float32 · rtx3090: 25.2 GB with 805 MB in reserve" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["full"][-3:-1] == ["yes", "231"]  # (0.99 (25.206 - 0.805) - 1) / 0.1
    assert lines["fast"][-3:-1] == ["yes", "1156"]  # / 0.02, a multiple of 4
    assert "◀ fastest that fits" in out and "--config.method=fast" in out
    assert "Compiled by XLA for NVIDIA GeForce RTX 3090" in out


def test_json_has_the_promised_keys_and_nothing_else_on_stdout(pbr_fit):
    code, out, _ = pbr_fit("--gpu", "3GiB", "--methods", METHODS, "--reserve", "0", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["gpu"], found["compiled"], found["fastest"]) == ("3GiB", True, "fast")
    promised = {"method", "argument_bytes", "output_bytes", "temp_bytes", "peak_bytes"}
    assert all(promised | {"fits", "largest_batch"} <= set(row) for row in found["rows"])
    full, fast, _ = found["rows"]
    assert (full["peak_bytes"], full["fits"], full["largest_batch"]) == (2_600_000_000, True, 21)
    assert (fast["peak_bytes"], fast["largest_batch"]) == (1_320_000_000, 108)
    assert full["time"] == 1.0 and not full["time_measured"]


def test_measured_times_are_those_of_the_file_that_is_named(pbr_fit, tmp_path):
    file = tmp_path / "step.json"
    setting = {"device": "NVIDIA H100 80GB HBM3", "family": "vit", "size": None}
    setting |= {"dtype": "float32", "batch": 16, "seconds": {"full": [1.0], "fast": [1.5]}}
    file.write_text(json.dumps(setting))
    flags = ("--gpu", "h100", "--methods", METHODS, "--times", str(file))
    code, out, _ = pbr_fit(*flags, "--json")
    full, fast, lean = json.loads(out)["rows"]
    assert (code, full["time"], fast["time"], fast["time_measured"]) == (0, 1.0, 1.5, True)
    assert lean["time"] > 1 and not lean["time_measured"]
    assert " 1.50*" in pbr_fit(*flags)[1]
    code, _, err = pbr_fit(*flags, "--config.batch_size=32")
    assert code == 2
    assert f"--times {file}: was measured with batch = 16, not 32" in err


def test_steps_over_a_link_are_arithmetic_and_say_so(pbr_fit):
    flags = ("--gpu", "h200", "--methods", "full,lean", "--devices", "16", "--hosts", "2")
    code, out, _ = pbr_fit(*flags, "--link", "100Gbit")
    assert code == 0
    assert "16 x h200 in 2 hosts" in out
    assert "Steps by arithmetic, not measured, over 100Gbit between 2 hosts" in out
    assert "quote `cautious`, with twice the compute" in " ".join(out.split())
    # A made-up 8 MB are exchanged by every method: half of it twice over 12.5 GB/s.
    full, lean = json.loads(pbr_fit(*flags, "--link", "100Gbit", "--json")[1])["rows"]
    assert (full["devices"], full["hosts"], full["link"]) == (16, 2, "100Gbit")
    assert full["wire_bytes"] == lean["wire_bytes"] == 8_000_000
    assert full["seconds"]["exchange"] == pytest.approx(8e6 / 12.5e9)
    assert lean["seconds"]["times_faster_than_full"][0] > 1
    assert "by arithmetic" in pbr_fit(*flags, "--link", "100Gbit", "--markdown")[1]
    # Without a link nothing is said of such times.
    assert "by arithmetic, not measured, over" not in pbr_fit(*flags)[1]
    row = json.loads(pbr_fit(*flags, "--json")[1])["rows"][0]
    assert (row["hosts"], row["link"], row["seconds"]) == (2, None, None)


def test_when_nothing_fits_the_smallest_need_is_said(pbr_fit):
    code, _, err = pbr_fit("--gpu", "2GB", "--methods", METHODS)
    assert code == 1
    assert "nothing fits in 2.00 GB: fast, the smallest, needs 2.13 GB with the reserve" in err
    assert "at batch 16; a batch of 8 would fit" in err


def test_a_failing_compile_is_named_and_the_exit_code_is_1(pbr_fit):
    flags = ("--gpu", "h100", "--methods", METHODS, "--config.pruning.keep=0.5")
    code, out, err = pbr_fit(*flags, "--config.method=fast")
    assert code == 1
    assert "fast: JaxRuntimeError: INTERNAL: no tile for keep 0.5" in out
    assert "lean: JaxRuntimeError: INTERNAL: no tile for keep 0.5" in out
    assert "nothing fits" not in err  # full does, whose keep is its own


def test_a_batch_that_cannot_be_cut_is_no_failure(pbr_fit):
    methods = f"{METHODS},lean/chunks4"
    code, out, _ = pbr_fit("--gpu", "h100", "--methods", methods, "--config.batch_size=6")
    assert code == 0
    assert "lean/chunks4: batch_size = 6: must be a multiple of 4" in out
    assert "lean: batch_size" not in out


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--gpu", "rtx4900"], ["--gpu 'rtx4900': no such card; did you mean 'rtx4090'?", "8GiB"]),
        ([], ["--gpu: JAX sees no GPU here; name one (h200, h100"]),
        (["--gpu", "h100", "--gpu-file", "x"], ["--gpu and --gpu-file: give one of them"]),
        (["--gpu-file", "nowhere.txt"], ["--gpu-file nowhere.txt: cannot be read (No such file"]),
        (
            ["--gpu", "h20", "--reserve", "1G", "--methods", "fasst,lean/x"],
            [
                "4 faults in the command line",
                "did you mean 'h200'?",
                "--reserve 1G: must be a size with its unit",
                "--methods fasst: no such method; the nearest is fast",
                "--methods lean/x: the suffix must be",
            ],
        ),
        (
            ["--gpu", "h100", "--times", "nowhere.json"],
            ["--times nowhere.json: cannot be read (No such file"],
        ),
        (["--gpu", "8GiB", "--reserve", "8GiB"], ["8GiB: leaves nothing of the 8.59 GB of 8GiB"]),
        (["--gpu-file", "/dev/zero"], ["--gpu-file /dev/zero: is a device, not a file"]),
        (
            ["--gpu", "h100", "--devices", "8", "--hosts", "3", "--link", "100Gb"],
            [
                "--hosts 3: must divide the number of devices, 8; --devices says how many in all",
                "--link 100Gb: must be a rate with its unit, Mbit, Gbit, Tbit, MB/s, GB/s or TB/s",
            ],
        ),
        (["--gpu", "h100", "--hosts", "0"], ["--hosts 0: must be from 1 to 65536"]),
        (["--gpu", "h100", "--link", "1Gbit"], ["--link: joins several devices; say how many"]),
        (["--gpu", "h100", "--config.stps=3"], ["stps: no such key; the nearest is steps"]),
        (["--gpu", "h100", "--config.memory_budget=8"], ["must be a size with its unit, such as"]),
    ],
)
def test_mistakes_are_lines_and_exit_code_2(pbr_fit, flags, messages):
    code, out, err = pbr_fit(*flags)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for message in messages:
        assert message in err


def test_a_card_of_ones_own(pbr_fit, tmp_path):
    file = tmp_path / "card.txt"
    file.write_text(target_config(CARDS["rtx4090"]))
    code, out, _ = pbr_fit("--gpu-file", str(file), "--methods", "full", "--json")
    assert code == 0
    assert json.loads(out)["memory_bytes"] == CARDS["rtx4090"].memory_bytes
    file.write_text("cores: many")
    code, _, err = pbr_fit("--gpu-file", str(file))
    assert code == 2
    assert "card.txt: no description of a card" in err


# What a table looks like, without a program behind it.


def made_up(missing="", card=None, dtype="bfloat16"):
    flags = ["--config.method=lean", f"--config.model.dtype={dtype}"]
    config = parse_config(TINY[1], flags, ()).config
    use = MemoryUse(343_502_224, 343_502_224, 343_502_228, 6_524_329_604)
    rows = [
        fit.MethodFit(
            with_method(config, name),
            use=use,
            need=MemoryReport(764_075_312, 687_004_853, temp, 687_004_464),
            fits=temp < 6e9,
            largest_batch=batch,
            time=time,
            fault=fault,
        )
        for name, temp, batch, time, fault in (
            ("full", 7_694_764_040, 10, 1.0, ""),
            ("prebackrazor++/js50", 3_813_000_000, 65536, 0.7, ""),
            ("lean", 1_391_051_736, 1280, 0.79, ""),
        )
    ]
    broken = fit.MethodFit(with_method(config, "tiny"), fault="INTERNAL: no tile")
    table = Table(config, card or CARDS["rtx3090"], 805_306_368, (*rows, broken), missing)
    return table


def drawn(width):
    out = io.StringIO()
    print_table(made_up(), rich.console.Console(file=out, width=width, highlight=False), TINY[1])
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_the_terminal(width):
    text = drawn(width)
    rows = [line for line in text.splitlines() if line.startswith((" full", " lean", " preb"))]
    assert len(rows) == 3
    assert all(len(line.rstrip()) <= width for line in rows)
    assert "…" not in text
    assert ("parameters 344 MB, optimizer 344 MB by every method" in text) == (width == 80)
    assert " ≥ 65536 " in text
    assert "tiny: INTERNAL: no tile" in text


@pytest.mark.parametrize("width", [80, 120])
def test_what_lies_on_the_host_has_a_column(width):
    table, out = made_up(), io.StringIO()
    away = table.rows[0]._replace(need=table.rows[0].need._replace(host_bytes=465_000_000))
    table = table._replace(rows=(away, *table.rows[1:]))
    print_table(table, rich.console.Console(file=out, width=width, highlight=False), TINY[1])
    (row,) = (line for line in out.getvalue().splitlines() if line.startswith(" full"))
    assert row.rstrip().endswith("465 MB") and len(row.rstrip()) <= width
    assert "no part of temp" in out.getvalue()
    assert json_row(away)["host_bytes"] == 465_000_000
    assert "| 465 MB |" in to_markdown(table)


def test_the_command_of_the_fastest_plan_is_printed():
    text = drawn(100)
    assert "python train.py --config" in text and "--config.method=lean" in text
    assert text.count("--config.method=") == 1  # what was asked for is replaced


def test_the_markdown_is_a_table():
    lines = to_markdown(made_up()).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {9}
    (lean,) = (line.split() for line in table if "lean" in line)
    assert " ".join(lean).startswith("| **`lean`** | 344 MB | 6.52 GB | 1.39 GB |")


def test_the_notes_say_what_the_figures_are():
    def said(**changes):
        return "\n".join(notes(made_up(**changes)))

    assert "not run: a peak on a live card is unverified" in said()
    assert "estimated by arithmetic, not measured" in said()
    assert "JAX takes at most 75% of a card" in said() and "XLA_CLIENT_MEM_FRACTION=0.96" in said()
    assert "no bfloat16 units" in said(card=find_card("rtx2080ti"))
    assert "no bfloat16 units" not in said(card=find_card("rtx2080ti"), dtype="float32")
    sized = said(card=sized_card("8GiB", 8 * 2**30))
    assert "8GiB is taken for a card like the NVIDIA GeForce RTX 3090" in sized
    absent = said(missing="jax-cuda13-plugin is not installed: install the extra")
    assert "Estimated by a formula, not compiled: jax-cuda13-plugin is not installed" in absent
    assert "Compiled by XLA" not in absent


def test_an_estimate_is_marked_in_json():
    assert to_json(made_up(missing="no plugin"))["compiled"] is False
    assert to_json(made_up())["fastest"] == "lean"


STEP = """
import jax
import jax.numpy as jnp

@jax.jit
def step(params, x):
    return params - 1e-3 * jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(params)

step_args = [jax.ShapeDtypeStruct((rows, 1024), jnp.float32) for rows in (1024, 8)]

def larger():
    return jnp.zeros((64, 64)), jax.ShapeDtypeStruct((10**8, 64), jnp.float32)

word = "step"
"""


@pytest.fixture
def in_a_program(tmp_path, monkeypatch):
    """The folder of a program with a step in it, which tests of the same name do not share."""
    (tmp_path / "a_program.py").write_text(STEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("a_program", None)


@pytest.mark.gpu_compile
@pytest.mark.usefixtures("in_a_program")
def test_a_step_of_ones_own_is_fitted(capsys):
    assert cli.main(["fit", "a_program:step", "--gpu", "rtx4090"]) == 0
    printed = capsys.readouterr().out
    assert "a_program:step on rtx4090, 25.3 GB" in printed
    assert "arguments  4.23 MB" in printed and "fits, 24.4 GB are left" in printed
    assert "4.19 MB  f32[1024,1024]  argument" in printed
    assert "params" in printed and "jax.jit(step, donate_argnums=...)" in printed


@pytest.mark.gpu_compile
@pytest.mark.usefixtures("in_a_program")
def test_a_step_that_does_not_fit_ends_with_1(capsys):
    words = ["fit", "a_program:step", "--args", "larger", "--gpu", "8GiB", "--json"]
    assert cli.main(words) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["argument_bytes"] == 4 * 64 * (10**8 + 64)
    assert found["arrays"][0]["bytes"] == 4 * 64 * 10**8
    assert found["peak_bytes"] > found["card_bytes"] - found["reserve_bytes"]


@pytest.mark.usefixtures("in_a_program")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step"], "step: must be MODULE:FUNCTION"),
        (["nowhere:step"], "nowhere:step: cannot be imported (ModuleNotFoundError"),
        (["a_program:stp"], "has no attribute 'stp'"),
        (["a_program:larger"], "a_program:larger_args: cannot be imported"),
        (["a_program:word", "--args", "larger"], "a_program:word: is a str, and must be a func"),
        (["a_program:step", "--args", "word"], "word: gives a str, and must give a tuple"),
        (["a_program:step", "--methods", "full"], "--methods: is of methods; leave it out"),
        (["--args", "word"], "--args: is of MODULE:FUNCTION; leave it out"),
    ],
)
def test_mistakes_about_a_step_are_named(words, message, capsys):
    assert cli.main(["fit", *words, "--gpu", "rtx4090"]) == 2
    assert message in capsys.readouterr().err
