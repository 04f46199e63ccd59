from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest

from crocodil.training.log import METRICS, MetricsLog, Progress, read_metrics
from crocodil.training.throughput import Interval


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(run_dir: Path) -> list[int]:
    return [record["step"] for record in read_metrics(run_dir / METRICS)]


def test_records_are_on_disk_at_once_and_plain_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 0.5, "grad_norm": float("inf"), "note": "stage 1"})
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line) == {"step": 1, "loss": 0.5, "grad_norm": None, "note": "stage 1"}


def test_resume_drops_what_will_be_done_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"loss": 1 / step})
    with open(tmp_path / METRICS, "a") as stream:
        stream.write('{"step": 6, "lo')  # killed while writing
    resumed = MetricsLog(tmp_path, resume_step=3)
    resumed.write(4, {"loss": 0.0})
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert read_metrics(tmp_path / METRICS)[2]["loss"] == 1 / 3
    MetricsLog(tmp_path)
    assert steps(tmp_path) == []


def test_a_full_disk_costs_records_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, {})
    with open(tmp_path / METRICS, "a") as stream:
        stream.write('{"step": 2')  # what fitted

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("builtins.open", full)
        log.write(2, {})
        log.write(3, {})
    assert caplog.text.count("No space left") == 1
    log.write(4, {})
    assert steps(tmp_path) == [1, 4]


def test_plain_lines_have_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), iter([0.0, 30.0])
    with Progress(1000, start_step=100, stream=stream, clock=lambda: next(now)) as progress:
        progress.report(110, {"loss": 2.34567, "lr": 2.5e-5, "grad": 0.5}, Interval(3.0, 10, 12345.6, 0.412))
    line = stream.getvalue()
    assert line.startswith("step  110/1000  loss 2.346  lr 2.5e-05  grad 0.5  12,346 tokens/s  mfu 41.2%")
    assert "eta 0:44:30" in line and line.rstrip().endswith("GiB") and line.count("\n") == 1


def test_the_line_names_what_is_counted() -> None:
    stream = io.StringIO()
    with Progress(10, stream=stream, unit="registers") as progress:
        progress.report(1, {"loss": 1.0}, Interval(1.0, 1, 5.0, None))
    assert "5 registers/s" in stream.getvalue() and "tokens" not in stream.getvalue()


def test_bar_on_a_terminal_and_none_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for ci in ("", "true"):
        monkeypatch.setenv("CI", ci)
        stream = Terminal()
        with Progress(10, stream=stream) as progress:
            progress.report(1, {"loss": 1.0}, Interval(1.0, 1, 5.0, None))
            progress.say("saved [b]runs/step-1[/b]")
        shown.append(stream.getvalue())
    assert all("loss 1" in text and "saved [b]runs/step-1[/b]" in text for text in shown)
    assert "\x1b" in shown[0] and "\x1b" not in shown[1]
