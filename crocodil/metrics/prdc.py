"""Precision, recall, density and coverage of generated features (Naeem et al. 2020; CRoCoDiL App. E).

Every set is a union of balls, one around each of its points, with the distance to the point's k-th nearest neighbour
in the set as radius. The four numbers say which points of one set lie in which balls of the other.

Shape letters: M generated samples, N real samples, K registers, D feature width, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from crocodil.errors import CrocodilError

NEAREST = 5
CHUNK_DISTANCES = 1 << 24
"""Distances that exist at the same time: 128 MiB in float64."""
ROUNDING = 1e-12
"""Bound on the rounding of ‖a − b‖² as a share of ‖a‖² + ‖b‖², for widths up to 8192 in float64."""


@dataclass(frozen=True)
class PRDC:
    """All four are shares, but density, which exceeds 1 where generated samples crowd together."""

    precision: float
    """Generated samples that lie in a ball of a real one."""
    recall: float
    """Real samples that lie in a ball of a generated one."""
    density: float
    """Real balls that a generated sample lies in, on average, divided by k."""
    coverage: float
    """Real samples whose ball holds a generated one."""


@dataclass(frozen=True)
class RegisterPRDC:
    """The paper's number: every register is a space of its own, and the results are averaged."""

    mean: PRDC
    deviation: PRDC
    """Standard deviation over registers."""
    registers: tuple[PRDC, ...]


@torch.no_grad()
def prdc(generated_MD: torch.Tensor, real_ND: torch.Tensor, nearest_k: int = NEAREST) -> PRDC:
    """Compare two sets of features, Eq. 1–4 of Naeem et al.; on the features' device, in float64.

    A point is in a ball if its distance to the centre is *smaller* than the radius, as published. Distances that
    differ by no more than their rounding count as equal, so that duplicates give the exact result everywhere.

    Args:
        generated_MD: M features.
        real_ND: N features of the same width.
        nearest_k: which neighbour gives the radius; the point itself is not counted.

    Raises:
        CrocodilError: a set has no k-th neighbour, the widths differ, or a feature is not finite.
    """
    _check(generated_MD, real_ND, nearest_k, 2)
    centre_D = real_ND.double().mean(0)
    # distances do not change, and lose fewer digits to a mean that is far from zero
    generated, real = generated_MD.double() - centre_D, real_ND.double() - centre_D
    radii_M, radii_N = _squared_radii(generated, nearest_k), _squared_radii(real, nearest_k)
    M, N = len(generated), len(real)
    in_real = torch.zeros(M, dtype=torch.bool, device=real.device)
    in_generated, covered = in_real.new_zeros(N), in_real.new_zeros(N)
    balls = 0
    for rows, squared_CN, rounding_CN in _squared_distances(generated, real):
        upper_CN = squared_CN + rounding_CN
        in_ball_CN = upper_CN < radii_N
        in_real[rows] = in_ball_CN.any(1)
        balls += int(in_ball_CN.sum())
        covered |= in_ball_CN.any(0)
        in_generated |= (upper_CN < radii_M[rows, None]).any(0)
    share = lambda flags: float(flags.double().mean())  # noqa: E731
    return PRDC(share(in_real), share(in_generated), balls / (nearest_k * M), share(covered))


def prdc_of_registers(
    generated_MKD: torch.Tensor, real_NKD: torch.Tensor, nearest_k: int = NEAREST
) -> RegisterPRDC:
    """`prdc` of each of the K registers, and its mean and deviation over registers (CRoCoDiL App. E).

    Raises:
        CrocodilError: as `prdc`, or the numbers of registers differ.
    """
    _check(generated_MKD, real_NKD, nearest_k, 3)
    scores = tuple(
        prdc(generated_MKD[:, j], real_NKD[:, j], nearest_k) for j in range(generated_MKD.shape[1])
    )
    table = torch.tensor([[getattr(s, f.name) for f in fields(PRDC)] for s in scores], dtype=torch.float64)
    return RegisterPRDC(PRDC(*table.mean(0).tolist()), PRDC(*table.std(0, correction=0).tolist()), scores)


def _squared_radii(points_MD: torch.Tensor, nearest_k: int) -> torch.Tensor:
    """Squared distance of every point to its k-th nearest neighbour, less its rounding: (M,)."""
    radii = points_MD.new_empty(len(points_MD))
    for rows, squared_CM, rounding_CM in _squared_distances(points_MD, points_MD):
        # the nearest of all is the point itself, at distance 0
        radii[rows] = (squared_CM - rounding_CM).kthvalue(nearest_k + 1, dim=1).values
    return radii


def _squared_distances(
    a_MD: torch.Tensor, b_ND: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """‖a‖² + ‖b‖² − 2 ab and a bound on its rounding, chunk by chunk: (rows of a, (C, N), (C, N)).

    A matrix product is a hundred times faster than the differences; the bound pays for what it rounds away.
    """
    a_M, b_N = a_MD.square().sum(1), b_ND.square().sum(1)
    chunk = max(1, CHUNK_DISTANCES // len(b_ND))
    for start in range(0, len(a_MD), chunk):
        rows = slice(start, min(start + chunk, len(a_MD)))
        norms_CN = a_M[rows, None] + b_N
        yield rows, torch.addmm(norms_CN, a_MD[rows], b_ND.T, alpha=-2), ROUNDING * norms_CN


def _check(generated: torch.Tensor, real: torch.Tensor, nearest_k: int, axes: int) -> None:
    shapes = f"{tuple(generated.shape)} generated and {tuple(real.shape)} real"
    if generated.ndim != axes or real.ndim != axes or generated.shape[1:] != real.shape[1:]:
        wanted = "(samples, width)" if axes == 2 else "(samples, registers, width)"
        raise CrocodilError(f"PRDC compares two sets of features {wanted} of one width, not {shapes}")
    if nearest_k < 1 or min(len(generated), len(real)) <= nearest_k:
        raise CrocodilError(
            f"PRDC wants nearest_k = {nearest_k} neighbours, at least 1, of every sample; there are {shapes}: "
            "give more samples or another nearest_k"
        )
    for name, features in (("generated", generated), ("real", real)):
        if not bool(torch.isfinite(features).all()):
            raise CrocodilError(f"PRDC: the {name} features are not all finite; leave those samples out")
