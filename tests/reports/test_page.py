"""The page about a run: complete, self-contained, and true to the files it was made from."""

import contextlib
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from pbr_jax.configs import digits
from pbr_jax.files import write_json
from pbr_jax.reports import figures
from pbr_jax.reports.page import read_columns, write_report
from pbr_jax.runs.console import MemoryUse
from pbr_jax.runs.metrics import MetricsWriter, write_summary
from pbr_jax.settings.load import SHIPPED, load
from pbr_jax.settings.saved import to_dict

S, L, A = 3, 2, 8
SUMMARY = {
    "method": "lean",
    "accuracy": 0.9678,
    "steps": 40,
    "seconds_per_step": 0.0512,
    "activation_bytes": 1_000_000,
    "compiled_peak_bytes": 9_300_000,
    "memory": MemoryUse(2_000_000, 200_000, 2_000_000, 1_000_000)._asdict(),
    "full_memory": MemoryUse(2_000_000, 2_000_000, 2_000_000, 8_100_000)._asdict(),
}


def columns() -> dict[str, np.ndarray]:
    """Two of eight columns per step; column 0 of block 0 was never trained."""
    probs = np.full((S, L, A), 0.25, np.float32)
    probs[-1, :, 0] = 0.05
    probs[-1, :, 1] = 0.45
    counts = np.full((L, A), 10, np.int32)
    counts[0, 0] = 0
    return {"steps": np.array([0, 20, 40]), "probs/fc2": probs, "counts/fc2": counts}


@pytest.fixture
def workdir(tmp_path):
    write_json(tmp_path / "config.json", to_dict(load(str(SHIPPED / "digits.py"))))
    with contextlib.closing(MetricsWriter(tmp_path)) as writer:
        for step in range(1, 41):
            writer.write({"step": step, "loss": 2.0 / step, "accuracy": 1 - 0.9 / step})
        writer.write({"step": 20, "loss": 0.3, "accuracy": 0.97}, split="test")
        writer.write({"step": 40, "loss": 0.2, "accuracy": 0.9678}, split="test")
    return tmp_path


def write_columns(workdir, **changed: np.ndarray) -> None:
    np.savez(workdir / "pruning.npz", **(columns() | changed))


def text_of(page: str) -> str:
    """The words of the page outside figures and style."""
    page = re.sub(r"<(svg|style).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_page_of_a_finished_run(workdir):
    write_summary(workdir, SUMMARY)
    write_columns(workdir)
    path = write_report(workdir)
    assert path == workdir / "report.html"
    page = path.read_text()
    text = text_of(page)
    assert "digits: lean" in text
    assert "96.8% best 97.0% at step 20" in text
    assert "1.00 MB 8.1x less than full fine-tuning" in text
    assert "9.30 MB" in text
    assert "51.2 ms" in text
    assert "full fine-tuning 2.00 MB 2.00 MB 2.00 MB 8.10 MB 14.1 MB" in text
    # 15 of 16 columns were trained; a tenth of 8 columns is 1, with 10 + 10 of 150 draws.
    assert "fc2 2 of 8 94% 13% 0.050 to 0.450" in text
    assert f"optimizer.learning_rate {digits.get_config().optimizer.learning_rate:g}" in text
    assert "40 0.2000 96.78%" in text
    assert page.count("<svg") == 3


def test_page_is_self_contained_and_well_formed(workdir):
    write_summary(workdir, SUMMARY)
    write_columns(workdir)
    page = write_report(workdir).read_text()
    assert "<script" not in page
    # Namespaces are names; nothing else may point outside.
    outside = set(re.findall(r"https?://[^\"' <)]+", page))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    for link in re.findall(r'href="([^"]*)"', page):
        assert link.startswith(("#", "data:"))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", page) + re.findall(r'href="#([^"]*)"', page)
    assert used
    assert set(used) <= set(ids)
    Balanced().feed(page)


class Balanced(html.parser.HTMLParser):
    """Fails where an element is not closed by its own end tag."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_figures_take_the_colour_of_the_page(workdir):
    write_summary(workdir, SUMMARY)
    page = write_report(workdir).read_text()
    assert "prefers-color-scheme: dark" in page
    svg = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "currentColor" in svg
    for fixed in ("#010203", "#000000", "#ffffff"):
        assert fixed not in svg


def test_full_fine_tuning_has_no_columns_and_no_second_row(workdir):
    write_summary(workdir, SUMMARY | {"method": "full", "memory": SUMMARY["full_memory"]})
    page = write_report(workdir).read_text()
    assert page.count("<svg") == 2
    assert "Which columns" not in page
    assert "full fine-tuning" not in text_of(page).partition("Settings")[0].partition("Memory")[2]


def test_run_under_way_has_a_shorter_page(workdir):
    text = text_of(write_report(workdir).read_text())
    assert "not finished yet" in text
    assert "Evaluations" in text
    assert "Memory" not in text


def test_run_that_has_only_started(tmp_path):
    write_json(tmp_path / "config.json", {"name": "<b>x</b>", "method": "full"})
    page = write_report(tmp_path).read_text()
    assert "&lt;b&gt;x&lt;/b&gt;: full" in page
    assert "<svg" not in page


def test_values_that_were_not_finite_do_not_stop_the_page(workdir):
    with contextlib.closing(MetricsWriter(workdir, resume_step=20)) as writer:
        writer.write({"step": 21, "loss": float("nan"), "accuracy": 0.1})
        writer.write({"step": 21, "loss": float("nan"), "accuracy": 0.1}, split="test")
    assert "21 not finite 10.00%" in text_of(write_report(workdir).read_text())


def test_no_work_directory(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(workdir):
    (workdir / "summary.json").write_text('{\n"method": ')
    with pytest.raises(ValueError, match=r"summary\.json, line 2: is not JSON"):
        write_report(workdir)


def test_pruning_file_with_missing_or_misshapen_arrays(workdir):
    arrays = columns()
    np.savez(workdir / "pruning.npz", steps=arrays["steps"], **{"probs/fc2": arrays["probs/fc2"]})
    with pytest.raises(ValueError, match="lacks counts/fc2"):
        read_columns(workdir)
    write_columns(workdir, **{"counts/fc2": np.zeros((L, A + 1), np.int32)})
    with pytest.raises(ValueError, match=r"shape \(3, 2, 8\), must be \(3, 2, 9\)"):
        read_columns(workdir)


def test_one_snapshot_at_step_zero_can_be_drawn(workdir):
    arrays = columns()
    write_columns(workdir, steps=np.array([0]), **{"probs/fc2": arrays["probs/fc2"][:1]})
    assert "Which columns" in write_report(workdir).read_text()


def test_smooth_keeps_a_straight_line_and_averages_noise():
    line = np.linspace(5.0, 1.0, 200)
    np.testing.assert_allclose(figures.smooth(line), line, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=400)
    assert figures.smooth(noise)[20:-20].std() < 0.3
    np.testing.assert_array_equal(figures.smooth(np.array([3.0, 1.0])), [3.0, 1.0])
    assert figures.smooth(np.array([])).shape == (0,)


def test_probability_moves_are_relative_to_an_even_choice_and_sorted():
    probs = np.full((2, 1, 4), 0.25)
    probs[1, 0] = [0.125, 0.5, 0.25, 0.125]
    moves = figures.probability_moves(probs)
    np.testing.assert_allclose(moves, [[0, 1], [0, 0], [0, -1], [0, -1]])
    many = np.full((2, 3, 100), 0.25)
    assert figures.probability_moves(many).shape == (96, 2)
    never = np.stack([np.array([[1.0, 0.0]])])
    assert np.isfinite(figures.probability_moves(never)).all()


def test_report_is_replaced_in_one_piece(workdir):
    write_report(workdir)
    write_summary(workdir, SUMMARY)
    write_report(workdir)
    assert not list(workdir.glob("*.tmp"))
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 40


def test_matplotlib_is_imported_only_for_a_page():
    code = "import sys, pbr_jax.reports.page; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
