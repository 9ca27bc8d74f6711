"""What a run prints: into a file, and on a terminal that a pseudo-terminal stands in for."""

import errno
import io
import os
import pty
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from pbr_jax.runs import console
from pbr_jax.runs.console import Console, MemoryUse

MINE = MemoryUse(2_000_000, 200_000, 2_000_000, 1_000_000)
FULL = MemoryUse(2_000_000, 2_000_000, 2_000_000, 8_100_000)
SUMMARY = {
    "method": "fast",
    "steps": 100,
    "seconds": 65.0,
    "seconds_per_step": 0.05,
    "accuracy": 0.978,
    "activation_bytes": 1_000_000,
    "compiled_peak_bytes": 12_300_000,
}


def metrics(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 0.5, "accuracy": 0.75, "seconds_per_step": 0.05, **more}


class Plain(Console):
    """A console that prints into `text`, with a clock that stands at `now`."""

    def __init__(self, **more):
        self.text, self.now = io.StringIO(), 0.0
        arguments = {"steps": 100, "memory": lambda: "RAM 1 MB", "clock": lambda: self.now} | more
        super().__init__(file=self.text, **arguments)

    def lines(self) -> list[str]:
        return self.text.getvalue().splitlines()


def test_header_compares_with_full_fine_tuning():
    plain = Plain()
    plain.header("digits", "prebackrazor++/js50", MINE, FULL)
    title, names, mine, full, ratios = plain.lines()
    assert title == "digits"
    assert _one_space(names) == "memory parameters gradients optimizer activations total"
    assert _one_space(mine) == "prebackrazor++/js50 2.00 MB 200 kB 2.00 MB 1.00 MB 5.20 MB"
    assert _one_space(full) == "full fine-tuning 2.00 MB 2.00 MB 2.00 MB 8.10 MB 14.1 MB"
    assert _one_space(ratios) == " 10.0x less 8.1x less 2.7x less"
    assert max(map(len, plain.lines())) <= 80


def test_header_of_full_fine_tuning_has_nothing_to_compare():
    plain = Plain()
    plain.header("digits", "full", FULL)
    assert len(plain.lines()) == 3


def test_plain_progress_is_a_line_now_and_then_and_at_the_end():
    plain = Plain(pause=10.0)
    with plain:
        for step in range(10, 101, 10):
            plain.now = step / 2  # 5 seconds apart
            plain.stepped(step, None)
            plain.logged(metrics(step))
    steps = [int(line.split()[1].split("/")[0].lstrip()) for line in map(_one_space, plain.lines())]
    assert steps == [10, 30, 50, 70, 90, 100]
    assert _one_space(plain.lines()[0]) == (
        "step 10/100 20.0 it/s ETA 0:04 loss 0.5000 accuracy 75.0% RAM 1 MB"
    )
    assert "\x1b" not in plain.text.getvalue()


def _one_space(line: str) -> str:
    return re.sub(r"\s+", " ", line)


def test_evaluation_says_when_it_is_the_best():
    plain = Plain()
    plain.evaluated(20, None, {"loss": 0.25, "accuracy": 0.9}, improved=True)
    plain.evaluated(40, None, {"loss": 0.3, "accuracy": 0.8}, improved=False)
    first, second = plain.lines()
    assert first == "step  20/100  test loss 0.2500  test accuracy 90.0%  best so far"
    assert second == "step  40/100  test loss 0.3000  test accuracy 80.0%"


def test_messages_are_printed_as_they_are():
    plain = Plain()
    text = "saved [bold]runs/[x][/bold] :smile: " + "x" * 200
    plain.message(text)
    assert plain.lines() == [text]


def test_finish_gives_the_outcome_and_the_next_command():
    plain = Plain()
    command = ("python train.py --config.method=full", "for comparison")
    plain.finish(SUMMARY, "runs/x", command, FULL)
    assert plain.lines() == [
        "",
        "done      fast, 100 steps in 1:05 min, 50.0 ms per step",
        "accuracy  97.8% on the test split",
        "memory    activations 1.00 MB, 8.1x less than the 8.10 MB of full fine-tuning",
        "          compiled peak 12.3 MB",
        "report    runs/x/report.html",
        "next      python train.py --config.method=full",
        "          for comparison",
    ]


def test_finish_without_accuracy_or_compiled_peak():
    plain = Plain()
    unknown = {"accuracy": None, "compiled_peak_bytes": None}
    plain.finish(SUMMARY | unknown, "runs/x", ("command", "why"))
    text = plain.text.getvalue()
    assert "accuracy" not in text
    assert "compiled" not in text
    assert "None" not in text


def read_to_the_end(leader: int) -> str:
    """All that was written to a pseudo-terminal until its other end was closed."""
    parts = []
    while True:
        try:
            parts.append(os.read(leader, 4096))
        except OSError:  # Linux's way to say that the other end is closed
            return b"".join(parts).decode()


def test_live_bar_on_a_terminal_keeps_messages_whole(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    leader, follower = pty.openpty()
    with ThreadPoolExecutor(1) as pool:  # reads along: a terminal holds little that is not read
        reading = pool.submit(read_to_the_end, leader)
        with os.fdopen(follower, "w") as terminal:
            with Console(100, file=terminal, memory=lambda: "RAM 1 MB") as live:
                live.began(40, None)
                live.logged(metrics(60))
                live.message("SIGTERM: saving at step 60")
                live.logged(metrics(100))
        output = reading.result()
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert "\nSIGTERM: saving at step 60" in text.replace("\r", "\n")
    last = text.replace("\r", "\n").rstrip("\n").splitlines()[-1]
    assert "100/100" in last
    assert "loss 0.5000 accuracy 75.0% RAM 1 MB" in last
    assert len(last) <= 80


def test_an_error_ends_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    with pytest.raises(ZeroDivisionError):
        with Console(100, file=io.StringIO(), live=True) as live:
            raise ZeroDivisionError
    assert live._bar is None


def test_memory_in_use_is_that_of_this_process_without_an_accelerator():
    kind, number, unit = console.memory_in_use().split()
    assert kind in ("RAM", "GPU")
    assert float(number) > 0
    assert unit in ("MB", "GB")


class Stream(io.StringIO):
    """A stream that fails as its `error` says, at what is written or at the flush."""

    error: int | None = None

    def flush(self):
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("live", [False, True])
def test_a_full_disk_or_a_lost_terminal_costs_the_text(live):
    stream = Stream()
    with Console(100, file=stream, live=live) as running:
        for stream.error in (errno.ENOSPC, errno.EIO):
            running.message("lost")
            running.logged(metrics(60))
        stream.error = None
        running.message("there again")
    assert running.has_reader and "there again" in stream.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_a_pipe_without_a_reader_is_told_and_the_last_words_go_to_standard_error(live, capsys):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, Console(100, file=stream, live=live) as running:
        running.message("read")
        assert running.has_reader
        os.close(reading)
        running.logged(metrics(60))
        running.message("not read")
        assert not running.has_reader
        running.finish(SUMMARY, "runs/x", ("command", "why"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # what the stream holds still
    running.last_words("SIGPIPE: saved checkpoint 60")
    assert "SIGPIPE: saved checkpoint 60" in capsys.readouterr().err


def test_finish_without_a_pace():
    plain = Plain()
    plain.finish(SUMMARY | {"seconds_per_step": None}, "runs/x", ("command", "why"))
    assert plain.lines()[1] == "done      fast, 100 steps in 1:05 min"
