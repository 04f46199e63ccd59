"""MAUVE: how far the distribution of generated texts is from that of human ones (Pillutla et al. 2021).

Both sets of features (`generation.text_features`) are cut into the same buckets by k-means. What is compared are two
histograms: their divergence curve trades texts that no human writes against texts that the model never writes.
MAUVE is the area under it, 1 where the histograms are equal.

Shape letters: M generated texts, N reference texts, P = M + N, E feature width, D kept dimensions, J buckets, W
mixture weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from crocodil.errors import CrocodilError

SCALING = 5.0
"""c of the paper."""
WEIGHTS = 25
"""Mixtures λ on the curve."""
EXPLAINED = 0.9
"""Share of the variance that PCA keeps."""
RESTARTS = 5
ITERATIONS = 500
EDGE = 1e-6
"""λ runs from here to 1 − here: at 0 and 1 a divergence may be infinite."""
CHUNK_DISTANCES = 1 << 24


@dataclass(frozen=True)
class Histograms:
    """Texts of both sets by bucket."""

    generated_J: torch.Tensor
    """Number of generated texts in each bucket, int64, on the CPU."""
    reference_J: torch.Tensor
    dimensions: int
    """Dimensions that PCA kept."""


@dataclass(frozen=True)
class MauveScore:
    """The area under the divergence curve, and what it depends on: compare only what agrees in all the rest."""

    mauve: float
    """Of the histograms as counted; what papers report."""
    mauve_star: float
    """Of the histograms with half a text added to each bucket (Krichevsky and Trofimov), which is less biased."""
    generated: int
    """Texts."""
    reference: int
    buckets: int
    dimensions: int
    seed: int


@torch.no_grad()
def mauve(
    generated_ME: torch.Tensor,
    reference_NE: torch.Tensor,
    *,
    buckets: int | None = None,
    seed: int = 0,
    scaling: float = SCALING,
) -> MauveScore:
    """MAUVE of two sets of features, computed in float64 on their device.

    It depends on the seed by a few hundredths and on the numbers of texts: take thousands, equally many on both sides,
    and the mean over a few seeds.

    Args:
        generated_ME: features of generated texts.
        reference_NE: features of human texts by the same judge.
        buckets: a tenth of the smaller set if left out, as published, and at least 2.
        seed: of k-means.
        scaling: c; a larger one lowers the score.

    Raises:
        CrocodilError: the widths differ, a feature is not finite, or there are fewer texts than buckets.
    """
    histograms = quantise(generated_ME, reference_NE, buckets=buckets, seed=seed)
    p_J, q_J = histograms.generated_J, histograms.reference_J
    return MauveScore(
        mauve=area(divergence_curve(p_J, q_J, scaling)),
        mauve_star=area(divergence_curve(p_J + 0.5, q_J + 0.5, scaling)),
        generated=len(generated_ME),
        reference=len(reference_NE),
        buckets=len(p_J),
        dimensions=histograms.dimensions,
        seed=seed,
    )


@torch.no_grad()
def quantise(
    generated_ME: torch.Tensor, reference_NE: torch.Tensor, *, buckets: int | None = None, seed: int = 0
) -> Histograms:
    """Features of length 1, PCA to 90 % of the variance, k-means of both sets together (Pillutla et al. 2021, §3)."""
    shapes = f"{tuple(generated_ME.shape)} generated and {tuple(reference_NE.shape)} reference"
    if generated_ME.ndim != 2 or reference_NE.ndim != 2 or generated_ME.shape[1] != reference_NE.shape[1]:
        raise CrocodilError(f"MAUVE compares two sets of features (texts, width) of one width, not {shapes}")
    if buckets is None:
        buckets = max(2, round(min(len(generated_ME), len(reference_NE)) / 10))
    if not 1 <= buckets <= min(len(generated_ME), len(reference_NE)):
        raise CrocodilError(
            f"MAUVE wants 1 to as many buckets as there are texts on either side, not {buckets} for {shapes}: "
            "give more texts or another number"
        )
    both_PE = torch.cat([generated_ME, reference_NE]).double()
    if not bool(torch.isfinite(both_PE).all()):
        raise CrocodilError("MAUVE: the features are not all finite; open the judge in float32")
    points_PD = principal_components(both_PE / both_PE.norm(dim=1, keepdim=True).clamp_min(1e-12))
    bucket_P = kmeans(points_PD, buckets, torch.Generator().manual_seed(seed)).cpu()
    count = lambda part: torch.bincount(part, minlength=buckets)  # noqa: E731
    M = len(generated_ME)
    return Histograms(count(bucket_P[:M]), count(bucket_P[M:]), points_PD.shape[1])


def resampled_areas(
    histograms: Histograms, times: int, seed: int = 0, scaling: float = SCALING
) -> torch.Tensor:
    """MAUVE where texts are drawn again with replacement and keep their buckets: (times,) float64, for an interval.

    Resampling adds noise of its own to both histograms, so these lie a little below the score itself.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(counts_J: torch.Tensor) -> torch.Tensor:
        n = int(counts_J.sum())
        drawn_RN = torch.multinomial(counts_J.double(), times * n, True, generator=generator).view(times, n)
        ones = torch.ones_like(drawn_RN)
        return torch.zeros(times, len(counts_J), dtype=torch.long).scatter_add_(1, drawn_RN, ones)

    pairs = zip(draw(histograms.generated_J), draw(histograms.reference_J), strict=True)
    areas = [area(divergence_curve(p_J, q_J, scaling)) for p_J, q_J in pairs]
    return torch.tensor(areas, dtype=torch.float64)


def principal_components(points_PE: torch.Tensor, explained: float = EXPLAINED) -> torch.Tensor:
    """Coordinates on the fewest principal axes that hold at least this share of the variance: (P, D)."""
    centred_PE = points_PE - points_PE.mean(0)
    variance_E, axes_EE = torch.linalg.eigh(centred_PE.T @ centred_PE)
    share_E = variance_E.flip(0).clamp_min(0).cumsum(0)
    kept = 1 + int((share_E < explained * share_E[-1]).sum())
    return centred_PE @ axes_EE.flip(1)[:, :kept]


def kmeans(
    points_PD: torch.Tensor,
    clusters: int,
    generator: torch.Generator,
    restarts: int = RESTARTS,
    iterations: int = ITERATIONS,
) -> torch.Tensor:
    """Lloyd's algorithm from random points, the best of a few starts: the cluster of every point, (P,) int64.

    Args:
        points_PD: at least as many as clusters.
        clusters: J. One that loses all its points begins anew at the point that lies worst.
        generator: on the CPU, whatever the device of the points.
        restarts: the start with the least sum of squared distances wins.
        iterations: at most so many steps from each start; usually it stands still much sooner.
    """
    best, least = torch.zeros(len(points_PD), dtype=torch.long, device=points_PD.device), float("inf")
    for _ in range(restarts):
        first = torch.randperm(len(points_PD), generator=generator)[:clusters].to(points_PD.device)
        centres_JD = points_PD[first]
        label_P, distance_P = _nearest(points_PD, centres_JD)
        for _ in range(iterations):
            count_J = torch.bincount(label_P, minlength=clusters)
            sums_JD = torch.zeros_like(centres_JD).index_add_(0, label_P, points_PD)
            centres_JD = sums_JD / count_J.clamp_min(1)[:, None]
            empty = (count_J == 0).nonzero()[:, 0]
            centres_JD[empty] = points_PD[distance_P.topk(len(empty)).indices]
            before_P = label_P
            label_P, distance_P = _nearest(points_PD, centres_JD)
            if torch.equal(label_P, before_P):
                break
        if float(distance_P.sum()) < least:
            best, least = label_P, float(distance_P.sum())
    return best


def divergence_curve(
    p_J: torch.Tensor, q_J: torch.Tensor, scaling: float = SCALING, weights: int = WEIGHTS
) -> torch.Tensor:
    """Points (e^(−c KL(Q | R)), e^(−c KL(P | R))), R = λ P + (1 − λ) Q, from (1, 0) to (0, 1): (W + 2, 2) (Eq. 1).

    Args:
        p_J: histogram of the generated texts, in counts or shares.
        q_J: of the reference texts, over the same buckets.
        scaling: c.
        weights: W, λ evenly spaced.
    """
    p_J, q_J = p_J.double() / p_J.sum(), q_J.double() / q_J.sum()
    weight_W1 = torch.linspace(EDGE, 1 - EDGE, weights, dtype=torch.float64, device=p_J.device)[:, None]
    mixture_WJ = weight_W1 * p_J + (1 - weight_W1) * q_J
    # xlogy: a bucket that a histogram does not use adds nothing to its divergence
    divergence = lambda h_J: (  # noqa: E731
        torch.xlogy(h_J, h_J) - torch.xlogy(h_J, mixture_WJ)
    ).sum(1)
    points_W2 = torch.stack([divergence(q_J), divergence(p_J)], dim=1).mul(-scaling).exp()
    ends = points_W2.new_tensor([[1.0, 0.0], [0.0, 1.0]])
    return torch.cat([ends[:1], points_W2, ends[1:]])


def area(curve_W2: torch.Tensor) -> float:
    """Area between a curve from (1, 0) to (0, 1) and the axes, by trapezia."""
    x, y = curve_W2.flip(0).unbind(1)
    return float(torch.trapezoid(y, x))


def _nearest(points_PD: torch.Tensor, centres_JD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centre of every point, (P,), and the squared distance to it, (P,)."""
    label_P = torch.empty(len(points_PD), dtype=torch.long, device=points_PD.device)
    distance_P = points_PD.new_empty(len(points_PD))
    for rows in _chunks(len(points_PD), len(centres_JD)):
        # ‖x‖² does not change which centre is nearest
        score = torch.addmm(centres_JD.square().sum(1), points_PD[rows], centres_JD.T, alpha=-2)
        least, label_P[rows] = score.min(1)
        distance_P[rows] = (points_PD[rows].square().sum(1) + least).clamp_min(0)
    return label_P, distance_P


def _chunks(points: int, centres: int) -> Iterator[slice]:
    size = max(1, CHUNK_DISTANCES // centres)
    return (slice(start, start + size) for start in range(0, points, size))
