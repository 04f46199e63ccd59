"""PRDC against its definition in loops, and against the package of its authors."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.metrics import prdc as module
from crocodil.metrics.prdc import PRDC, prdc, prdc_of_registers


def definition(generated: np.ndarray, real: np.ndarray, k: int) -> PRDC:
    """Naeem et al. 2020, §3, word for word, with distances of plain differences."""
    distance = lambda a, b: float(np.sqrt(((a - b) ** 2).sum()))  # noqa: E731

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    generated_radii = [radius(generated, j) for j in range(len(generated))]
    apart = [[distance(x, y) for y in generated] for x in real]
    M, N = len(generated), len(real)
    in_ball = [[apart[i][j] < real_radii[i] for j in range(M)] for i in range(N)]
    return PRDC(
        sum(any(in_ball[i][j] for i in range(N)) for j in range(M)) / M,
        sum(any(apart[i][j] < generated_radii[j] for j in range(M)) for i in range(N)) / N,
        sum(in_ball[i][j] for i in range(N) for j in range(M)) / (k * M),
        sum(min(apart[i]) < real_radii[i] for i in range(N)) / N,
    )


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape)


def degenerate(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(generated, real) with ties, which is where a rounded distance would go wrong."""
    points = normal(5, 24, 6)
    far = 1e4 + normal(6, 24, 6)
    return {
        "all equal": (np.tile(points[:1], (12, 1)), np.tile(points[:1], (9, 1))),
        "all generated equal": (np.tile(points[:1], (12, 1)), points),
        "all real equal": (points, np.tile(points[:1], (12, 1))),
        "every sample twice": (np.tile(normal(7, 10, 6), (2, 1)), np.tile(points, (2, 1))),
        "every sample many times": (np.tile(normal(7, 4, 6), (9, 1)), np.tile(points[:5], (9, 1))),
        "copies of the real": (points.copy(), points),
        "some copies": (np.concatenate([points[:9], normal(8, 9, 6)]), points),
        "copies far from zero": (far.copy(), far),
        "a grid": (np.stack(np.meshgrid(*[np.arange(5.0)] * 2), -1).reshape(-1, 2), np.arange(24.0).reshape(12, 2) % 5),
        "zeros": (np.zeros((7, 3)), np.zeros((8, 3))),
        "an outlier": (points, np.concatenate([points + 0.1, np.full((1, 6), 1e3)])),
        "one wide": (normal(9, 12, 1), normal(10, 15, 1)),
    }[name]  # fmt: skip


def check(generated: np.ndarray, real: np.ndarray, k: int) -> None:
    ours = prdc(torch.from_numpy(generated), torch.from_numpy(real), k)
    assert astuple(ours) == pytest.approx(astuple(definition(generated, real, k)), abs=1e-9)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("M", "N", "D"), [(30, 40, 3), (40, 30, 20), (6, 6, 2)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_the_definition(M: int, N: int, D: int, shift: float, k: int) -> None:
    check(normal(0, M, D) * 0.8 + shift, normal(1, N, D), k)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(
    "name",
    [
        "all equal", "all generated equal", "all real equal", "every sample twice", "every sample many times",
        "copies of the real", "some copies", "copies far from zero", "a grid", "zeros", "an outlier", "one wide",
    ],
)  # fmt: skip
def test_ties_are_decided_as_the_definition_decides_them(name: str, k: int) -> None:
    check(*degenerate(name), k)


@pytest.mark.parametrize(
    ("seed", "M", "N", "D", "k", "shift", "scale", "published"),
    [
        (0, 200, 150, 8, 5, 0.0, 1.0, (0.93, 0.9466666666666667, 1.004, 1.0)),
        (1, 150, 200, 32, 3, 0.3, 0.7, (0.9866666666666667, 0.05, 5.082222222222222, 0.975)),
        (2, 60, 60, 4, 5, 1.0, 1.5, (0.7, 0.9333333333333333, 0.3566666666666667, 0.5833333333333334)),
    ],
)
def test_it_is_the_published_package_s(
    seed: int, M: int, N: int, D: int, k: int, shift: float, scale: float, published: tuple[float, ...]
) -> None:
    """Numbers of `compute_prdc` of prdc 0.2 with numpy 2.4.6 and scikit-learn 1.9.1."""
    random = np.random.RandomState(seed)
    generated, real = random.randn(M, D) * scale + shift, random.randn(N, D)
    ours = prdc(torch.from_numpy(generated), torch.from_numpy(real), k)
    assert astuple(ours) == pytest.approx(published, abs=1e-9)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = torch.from_numpy(normal(0, 37, 5)), torch.from_numpy(normal(1, 41, 5))
    whole = prdc(generated, real)
    monkeypatch.setattr(module, "CHUNK_DISTANCES", 100)
    assert prdc(generated, real) == whole


def test_low_precision_is_compared_in_float64() -> None:
    generated, real = torch.from_numpy(normal(0, 30, 9)).bfloat16(), torch.from_numpy(normal(1, 30, 9)).half()
    assert prdc(generated, real) == prdc(generated.double(), real.double())


def test_registers_are_spaces_of_their_own() -> None:
    generated, real = torch.from_numpy(normal(0, 20, 4, 6)), torch.from_numpy(normal(1, 25, 4, 6))
    generated[:, 2] += 100  # one register is wrong
    result = prdc_of_registers(generated, real)
    alone = [prdc(generated[:, j], real[:, j]) for j in range(4)]
    assert result.registers == tuple(alone)
    assert alone[2] == PRDC(0, 0, 0, 0) and alone[0].precision > 0
    table = np.array([astuple(score) for score in alone])
    assert astuple(result.mean) == pytest.approx(table.mean(0))
    assert astuple(result.deviation) == pytest.approx(table.std(0))


@pytest.mark.parametrize("samples", [(5, 30), (30, 5), (0, 30)])
def test_without_a_kth_neighbour_there_is_no_number(samples: tuple[int, int]) -> None:
    sets = [torch.zeros(n, 3) for n in samples]
    with pytest.raises(CrocodilError, match="nearest_k = 5 neighbours") as caught:
        prdc(*sets)
    assert "\n" not in str(caught.value)
    with pytest.raises(CrocodilError, match="at least 1"):
        prdc(torch.zeros(9, 3), torch.zeros(9, 3), 0)


def test_sets_that_do_not_compare_are_refused() -> None:
    with pytest.raises(CrocodilError, match="of one width"):
        prdc(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(CrocodilError, match="of one width"):
        prdc_of_registers(torch.zeros(9, 2, 3), torch.zeros(9, 4, 3))
    with pytest.raises(CrocodilError, match="generated features are not all finite"):
        prdc(torch.full((9, 3), torch.nan), torch.zeros(9, 3))
