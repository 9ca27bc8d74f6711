"""The table of nodes and links: each line of the floor has the cautious one below it."""

import pathlib
import runpy
import sys

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks/nodes.py"


def test_every_line_has_its_cautious_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), "--batches", "128"])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    title, _, floor, cautious = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    )
    assert "2 x 8 h200, 100Gbit" in title
    assert floor[:2] == ["128", "its floor"] and cautious[:2] == ["128", "**twice the floor**"]
    for cells in zip(floor[2:], cautious[2:], strict=True):
        optimistic, guarded = ([float(x) for x in cell.split("/")] for cell in cells)
        assert optimistic[0] > guarded[0] > 1 and optimistic[1] >= guarded[1] > 1
