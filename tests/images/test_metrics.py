"""FID and IS against closed forms, invariances and scipy; and that the classifier of digits is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from crocodil.errors import CrocodilError
from crocodil.images.data import ImagesConfig, digits, held_out_rows
from crocodil.images.metrics import (
    Extractor,
    Gaussian,
    Seen,
    digits_extractor,
    extract,
    fit,
    frechet_distance,
    inception_score,
)

F = 12


def normal(n: int, seed: int, width: int = F) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing + seed


def gaussian(mean: list[float], variances: list[float]) -> Gaussian:
    return Gaussian(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64).diag(), 9
    )


def orthogonal(seed: int, width: int = F) -> Tensor:
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q


def test_of_axis_aligned_gaussians_it_is_the_closed_form() -> None:
    """Σ (μ₁ − μ₂)² + (σ₁ − σ₂)², where the two covariances commute."""
    one, other = gaussian([1, 2, 3], [4, 9, 0]), gaussian([0, 2, 5], [1, 25, 16])
    assert frechet_distance(one, other) == pytest.approx(1 + 4 + 1 + 4 + 16, abs=1e-12)
    assert frechet_distance(one, one) == 0


def test_it_is_a_distance_of_fits() -> None:
    one, other = fit(normal(300, 1)), fit(normal(300, 2))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9 * float(one.covariance_FF.trace()))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-10)
    assert frechet_distance(one, other) > 1


def test_a_shift_counts_by_its_square_alone() -> None:
    features = normal(300, 1)
    shift = torch.linspace(-1, 1, F, dtype=torch.float64)
    moved = frechet_distance(fit(features), fit(features + shift))
    assert moved == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_scaling_by_s_costs_the_trace_times_the_square_of_s_minus_1() -> None:
    features = normal(300, 1) - normal(300, 1).mean(0)
    one, other = fit(features), fit(1.5 * features)
    assert frechet_distance(one, other) == pytest.approx(0.25 * float(one.covariance_FF.trace()), rel=1e-9)


def test_turning_both_changes_nothing() -> None:
    a, b, turn = normal(300, 1), normal(400, 2), orthogonal(3)
    assert frechet_distance(fit(a @ turn), fit(b @ turn)) == pytest.approx(
        frechet_distance(fit(a), fit(b)), rel=1e-10
    )


@pytest.mark.parametrize("n", [400, 8])
def test_it_is_what_scipy_s_square_root_gives(n: int) -> None:
    """At n = 8 both covariances are singular, and the usual formula is only about right."""
    linalg = pytest.importorskip("scipy.linalg")
    one, other = fit(normal(n, 1)), fit(normal(n, 2))
    product = (one.covariance_FF @ other.covariance_FF).numpy()
    usual = (one.mean_F - other.mean_F).square().sum() + one.covariance_FF.trace()
    usual = float(usual + other.covariance_FF.trace() - 2 * np.trace(linalg.sqrtm(product)).real)
    assert frechet_distance(one, other) == pytest.approx(usual, rel=1e-10 if n == 400 else 1e-4)


def test_of_fewer_images_than_features_it_is_still_exact() -> None:
    """Rank 4 in 12 features: the closed form of what lies in that space, turned, without noise of zero eigenvalues."""
    turn = orthogonal(0)
    variances = [4.0, 1.0, 9.0, 16.0] + [0.0] * (F - 4)
    others = [1.0, 1.0, 4.0, 0.0] + [0.0] * (F - 4)
    parts = [gaussian([0.0] * F, v) for v in (variances, others)]
    one, other = (Gaussian(g.mean_F @ turn, turn.T @ g.covariance_FF @ turn, g.n) for g in parts)
    assert frechet_distance(one, other) == pytest.approx(1 + 0 + 1 + 16, rel=1e-12)


def test_fits_are_unbiased_and_in_float64() -> None:
    features = normal(50, 4)
    found = fit(features.float())
    assert found.mean_F.dtype == found.covariance_FF.dtype == torch.float64 and found.n == 50
    assert np.allclose(found.covariance_FF.numpy(), np.cov(features.float().double().numpy().T))
    single = fit(features[:, :1])
    assert single.covariance_FF.shape == (1, 1)


def test_features_that_do_not_compare_are_refused() -> None:
    with pytest.raises(CrocodilError, match="two images or more"):
        fit(normal(1, 0))
    with pytest.raises(CrocodilError, match="not all finite"):
        fit(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(CrocodilError, match="width 12 do not compare with features of width 3"):
        frechet_distance(fit(normal(9, 0)), fit(normal(9, 0, 3)))


def test_sure_and_various_predictions_score_the_number_of_classes() -> None:
    sure = torch.eye(7).repeat(20, 1)
    score = inception_score(sure, parts=10)
    assert score.mean.value == pytest.approx(7, rel=1e-12)
    assert score.deviation == pytest.approx(0, abs=1e-12) and score.mean.n == 10
    assert score.mean.low == pytest.approx(7) and score.mean.high == pytest.approx(7)


def test_what_says_nothing_scores_1() -> None:
    assert inception_score(torch.full((40, 5), 0.2)).mean.value == pytest.approx(1, rel=1e-12)
    one_class = torch.eye(5)[:1].repeat(40, 1)
    assert inception_score(one_class).mean.value == pytest.approx(1, rel=1e-12)


def test_the_score_is_its_definition_part_by_part() -> None:
    """exp(mean KL(p(y|x) ‖ p(y))), Salimans et al. 2016, in loops."""
    p = torch.rand(63, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = (p / p.sum(1, keepdim=True)).numpy()
    scores = []
    for part in range(3):
        rows = p[part * 21 : (part + 1) * 21]
        middle = rows.mean(0)
        divergences = [sum(q * math.log(q / m) for q, m in zip(row, middle, strict=True)) for row in rows]
        scores.append(math.exp(np.mean(divergences)))
    found = inception_score(torch.from_numpy(p), parts=3)
    assert found.mean.value == pytest.approx(np.mean(scores), rel=1e-10)
    assert found.deviation == pytest.approx(np.std(scores), rel=1e-8)
    assert found.mean.low is not None and found.mean.high is not None
    assert found.mean.low < found.mean.value < found.mean.high


def test_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(CrocodilError, match="9 images cannot be dealt out into 10 parts"):
        inception_score(torch.eye(9))
    with pytest.raises(CrocodilError, match="do not sum to 1"):
        inception_score(torch.ones(20, 3))
    with pytest.raises(CrocodilError, match="do not sum to 1"):
        inception_score(torch.full((20, 3), math.nan))


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    from crocodil.images import metrics

    images = torch.rand(37, 1, 2, 2)
    look: Extractor = lambda x: Seen(x.flatten(1).bfloat16(), x.flatten(1).softmax(1))  # noqa: E731
    whole = extract(images, look)
    monkeypatch.setattr(metrics, "CHUNK", 10)
    parts = extract(images, look)
    assert torch.equal(whole.features_BF, parts.features_BF) and whole.features_BF.dtype == torch.float64
    assert torch.equal(whole.probabilities_BP, parts.probabilities_BP)


@pytest.fixture(scope="module")
def look() -> Extractor:
    return digits_extractor()


def test_the_classifier_knows_digits_that_it_has_not_seen(look: Extractor) -> None:
    images, classes = digits()
    out = held_out_rows(images, ImagesConfig().held_out, 0)
    said = extract(images.pixels()[out], look).probabilities_BP
    assert (said.argmax(1) == classes[out]).double().mean() > 0.95
    assert said.sum(1).allclose(torch.ones(1, dtype=torch.float64)) and said.shape[1] == 10


def test_the_classifier_is_the_same_every_time(look: Extractor) -> None:
    images = digits()[0].pixels()[:20]
    again = digits_extractor()(images)
    assert torch.equal(again.features_BF, look(images).features_BF)
    other = digits_extractor(ImagesConfig(split_seed=1))(images)
    assert not torch.equal(other.features_BF, again.features_BF)


def test_real_digits_are_near_real_digits_and_noise_is_far(look: Extractor) -> None:
    pixels = digits()[0].pixels()
    halves = [fit(extract(part, look).features_BF) for part in (pixels[::2], pixels[1::2])]
    noise = torch.rand(900, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    # every pixel as often of each level as it should be, but of another digit than its neighbour
    rows = torch.rand(900, 64, generator=torch.Generator().manual_seed(0)).argsort(0)
    mixed = pixels[:900].flatten(1).gather(0, rows).reshape(900, 1, 8, 8)
    near = frechet_distance(*halves)
    far = [frechet_distance(fit(extract(images, look).features_BF), halves[0]) for images in (mixed, noise)]
    assert near * 10 < far[0] < far[1] / 2
    scores = [inception_score(extract(x, look).probabilities_BP).mean.value for x in (pixels, mixed)]
    assert scores[0] > 9 and scores[1] < 6


def test_the_classifier_refuses_what_is_no_digit(look: Extractor) -> None:
    with pytest.raises(CrocodilError, match="digits of 8 x 8"):
        look(torch.zeros(1, 3, 8, 8))
