from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from crocodil.training.signals import StopRequest

LOOP = """
import os, signal, time
from crocodil.training import signals
signals.ECHO_SECONDS = 0.05
with signals.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print(stop.requested, flush=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_only_asks(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.received is number
        os.kill(os.getpid(), number)  # the launcher's echo
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"
    assert done.returncode == -signal.SIGTERM


def test_handlers_come_back_after_an_exception() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError):
        with StopRequest():
            raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before
