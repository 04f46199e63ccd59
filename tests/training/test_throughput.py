from __future__ import annotations

import pytest
import torch

from crocodil.training.throughput import Throughput, peak_flops


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_over_the_last_interval_without_pauses() -> None:
    clock = Clock()
    throughput = Throughput(peak=1000.0, clock=clock)
    for _ in range(2):
        throughput.add(count=50, flops=500.0)
        clock.now += 1.0
    with throughput.paused():
        clock.now += 60.0
    first = throughput.interval()
    assert (first.seconds, first.steps, first.per_second, first.mfu) == (2.0, 2, 50.0, 0.5)
    clock.now += 4.0
    throughput.add(count=4, flops=400.0)
    second = throughput.interval()
    assert (second.per_second, second.mfu) == (1.0, 0.1)


def test_unknown_peak_and_empty_interval() -> None:
    clock = Clock()
    throughput = Throughput(peak=None, clock=clock)
    assert throughput.interval().per_second == 0.0
    clock.now += 1.0
    throughput.add(1, 1.0)
    assert throughput.interval().mfu is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
    ],
)
def test_data_sheet_peaks(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), torch.bfloat16) == peak


def test_measured_peak_is_plausible_for_a_cpu() -> None:
    assert 1e9 < peak_flops(torch.device("cpu"), torch.float32) < 1e14
