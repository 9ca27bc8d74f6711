"""Signals become a flag; a second one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pbr_jax.runs.signals import StopSignals

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


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


LOOP = """
import sys, time
from pbr_jax.runs.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("twice", [False, True])
def test_exit_codes_of_a_process(number, twice):
    command = [sys.executable, "-c", LOOP, "60" if twice else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "saving\n"
        if twice:
            process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == (-number if twice else CODES[number])
    assert rest == ("" if twice else "saved\n")
