"""Bars of the commands: what a terminal shows, and silence elsewhere."""

import io

import rich.console

from pbr_jax.runs.progress import make_bar, progress


def test_a_bar_shows_count_and_description():
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True, width=80)
    with make_bar(console) as bar:
        task = bar.add_task("train step: [full]", total=5)
        bar.advance(task, 3)
    assert "3/5" in out.getvalue() and "train step: [full]" in out.getvalue()


def test_without_a_terminal_nothing_is_printed(capsys):
    with progress("methods", total=2) as done:
        done("full")
        done("lean")
    assert capsys.readouterr() == ("", "")
