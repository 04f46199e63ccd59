from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crocodil.errors import CrocodilError
from crocodil.training.run_lock import LOCK, STALE_SECONDS, run_lock

HOLD = """
import sys, time
from pathlib import Path
from crocodil.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(run_dir: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def written_by_another_host(run_dir: Path, seconds_ago: float) -> None:
    owner = {"host": "elsewhere", "pid": 12, "started": "2020-01-01T00:00:00+00:00"}
    (run_dir / LOCK).write_text(json.dumps(owner))
    then = time.time() - seconds_ago
    os.utime(run_dir / LOCK, (then, then))


def test_another_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(CrocodilError) as caught:
            with run_lock(tmp_path):
                pass
        assert f"process {process.pid} on {socket.gethostname()} since 20" in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid  # nobody tidied up
        with run_lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_held_once_in_one_process_and_free_afterwards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        with run_lock(tmp_path / "run"):
            with pytest.raises(CrocodilError, match="already in use by this process"):
                with run_lock(tmp_path / "run"):
                    pass
            raise RuntimeError
    with run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / LOCK).read_text() == ""


def test_an_owner_on_another_host_lives_while_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by_another_host(tmp_path, seconds_ago=STALE_SECONDS / 2)
    polls = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            os.utime(tmp_path / LOCK)

    monkeypatch.setattr("crocodil.training.run_lock.time.sleep", sleep)
    with pytest.raises(CrocodilError, match="process 12 on elsewhere since 2020"):
        with run_lock(tmp_path):
            pass
    assert len(polls) == 3
    written_by_another_host(tmp_path, seconds_ago=STALE_SECONDS * 2)
    with run_lock(tmp_path):
        assert len(polls) == 3


@pytest.mark.parametrize("seconds_ago", [0.3, -1000.0])
def test_an_owner_that_died_elsewhere_just_now_is_waited_for(
    seconds_ago: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a scheduler meets it that starts a job anew at once; also where its clock was ahead."""
    monkeypatch.setattr("crocodil.training.run_lock.STALE_SECONDS", 0.5)
    monkeypatch.setattr("crocodil.training.run_lock.POLL_SECONDS", 0.02)
    written_by_another_host(tmp_path, seconds_ago)
    began = time.monotonic()
    with run_lock(tmp_path):
        assert time.monotonic() - began >= 0.5 - max(seconds_ago, 0) - 0.1
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert "process 12 on elsewhere held it just now; waiting up to" in caplog.text


def test_heartbeat_renews_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the file system: this machine's, which may be another one, says 1970."""
    monkeypatch.setattr("crocodil.training.run_lock.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("crocodil.training.run_lock.time.time", lambda: 0.0)
    with run_lock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK).stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1


@pytest.mark.parametrize("text", ['{"host": "else', "[" * 4096, "[1]", "7"])
def test_a_lock_that_says_nothing_does_not_block(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with run_lock(tmp_path):
        pass


def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CrocodilError, match="file: the run directory cannot be written"):
        with run_lock(tmp_path / "file"):
            pass
