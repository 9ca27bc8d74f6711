"""Signals become a flag and are answered at once; a second interrupt ends the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pbr_jax.runs.signals import StopSignals

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 138}
KILLS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def terminal_that_can_be_closed():
    """Also under `nohup pytest`, which has every process that is started ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_sets_the_flag_and_lets_the_code_go_on(number):
    with StopSignals() as stop:
        assert (stop.requested, stop.exit_code) == (False, 0)
        os.kill(os.getpid(), number)
        assert stop.requested and stop.received == number
    assert stop.exit_code == CODES[number]


def test_the_old_handlers_come_back():
    seen = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(RuntimeError), StopSignals():
            assert signal.getsignal(signal.SIGINT) != interrupt
            raise RuntimeError
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) == interrupt
    finally:
        signal.signal(signal.SIGTERM, old)


def test_other_threads_are_refused():
    errors = []

    def enter():
        try:
            StopSignals().__enter__()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in errors[0]


def test_a_closed_pipe_counts_as_a_signal_unless_one_came():
    with StopSignals() as stop:
        stop.request(signal.SIGPIPE)
        assert stop.requested and stop.exit_code == 141
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == 141


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LOOP = """
import sys, time
from pbr_jax.runs.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.01)
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


def start(program, *words):
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", CODES)
def test_exit_codes_of_a_process(number):
    with start(LOOP, "0") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "saving\nsaved\n"
    assert process.returncode == CODES[number]


@pytest.mark.parametrize("number", CODES)
def test_a_second_interrupt_kills_and_a_closed_terminal_may_be_told_twice(number):
    with start(LOOP, "60" if number in KILLS else "0.2") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(number)
        rest = process.stdout.read()
    # By the operating system, or by the listening thread, whichever is first: one code in a shell.
    expected = {-number, CODES[number]} if number in KILLS else {CODES[number]}
    assert process.returncode in expected
    assert rest == ("" if number in KILLS else "saved\n")


# A lock taken twice holds the main thread in compiled code that no signal interrupts.
HELD = """
import ctypes, sys, threading
from pbr_jax.runs.signals import StopSignals, interruptible
lock, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
def compile():
    libc.pthread_mutex_lock(lock)
    threading.Timer(0.2, say, ["ready"]).start()  # once the main thread is held
    libc.pthread_mutex_lock(lock)
def say(text):
    print(text, flush=True)
if sys.argv[1] == "training":
    with StopSignals(say) as stop:
        stop.during("the compilation", compile)()
else:
    with interruptible():
        compile()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a lock of zeros is that of glibc and musl")
def test_the_first_signal_is_answered_and_the_second_ends_amid_a_compilation():
    with start(HELD, "training") as process:
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == (
            "SIGINT: waits for the compilation, then saves and stops; once more stops at once\n"
        )
        assert time.monotonic() - began < 1
        process.send_signal(signal.SIGTERM)  # another one may come from elsewhere
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


@pytest.mark.skipif(sys.platform != "linux", reason="a lock of zeros is that of glibc and musl")
def test_a_program_that_is_not_training_ends_amid_a_compilation():
    with start(HELD, "other") as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert process.stdout.read() == "interrupted\n"
