"""Groups, noise and interpolation: their limits and their frequencies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from crocodil.errors import CrocodilError
from crocodil.registers.geometry import (
    NestedDropout,
    RegisterNoise,
    draw_k,
    group_ends,
    group_sizes,
    mix,
    noise_std,
    normalise,
)

DRAWS = 4000


def frequencies(K: int, config: NestedDropout) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw_k(K, config, generator) for _ in range(DRAWS))
    return {k: counts[k] / DRAWS for k in sorted(counts)}


def within_chance(found: dict[int, float], wanted: dict[int, float]) -> bool:
    """Every frequency within four standard deviations of its probability, and nothing else drawn."""
    return found.keys() == wanted.keys() and all(
        abs(found[k] - p) < 4 * math.sqrt(p * (1 - p) / DRAWS) + 1e-12 for k, p in wanted.items()
    )


@pytest.mark.parametrize("K", [1, 2, 4, 8, 64, 128])
def test_groups_fill_the_registers(K: int) -> None:
    sizes, ends = group_sizes(K), group_ends(K)
    assert sum(sizes) == K and len(sizes) == len(ends) == int(math.log2(K)) + 1
    assert ends[0] == 1 and ends[-1] == K and all(b == 2 * a for a, b in zip(ends, ends[1:], strict=False))
    assert tuple(sum(sizes[: i + 1]) for i in range(len(sizes))) == ends


def test_the_paper_s_own_numbers_of_registers_are_group_ends() -> None:
    assert group_sizes(128)[:5] == (1, 1, 2, 4, 8)
    assert {8, 16, 64, 128} <= set(group_ends(128))


@pytest.mark.parametrize("K", [0, -1, 3, 6, 100, 1 << 17, 1 << 40])
def test_other_numbers_of_registers_are_refused(K: int) -> None:
    for ask in (group_sizes, group_ends):
        with pytest.raises(CrocodilError, match=f"power of two.*not {K}$"):
            ask(K)


def test_k_is_uniform_among_group_ends() -> None:
    assert within_chance(frequencies(8, NestedDropout()), dict.fromkeys((1, 2, 4, 8), 1 / 4))


def test_k_is_uniform_over_all_numbers() -> None:
    assert within_chance(frequencies(8, NestedDropout("uniform")), dict.fromkeys(range(1, 9), 1 / 8))


def test_without_nested_dropout_every_register_shows() -> None:
    assert frequencies(8, NestedDropout("off")) == {8: 1.0}
    assert frequencies(1, NestedDropout()) == {1: 1.0}


def test_extra_chances_of_all_and_of_none() -> None:
    wanted = {0: 0.1, 1: 0.15, 2: 0.15, 4: 0.15, 8: 0.15 + 0.3}
    assert within_chance(frequencies(8, NestedDropout(keep_all=0.3, hide_all=0.1)), wanted)
    assert within_chance(frequencies(8, NestedDropout("off", hide_all=0.1)), {0: 0.1, 8: 0.9})
    assert frequencies(8, NestedDropout(hide_all=1.0)) == {0: 1.0}
    assert frequencies(8, NestedDropout(keep_all=1.0)) == {8: 1.0}


@pytest.mark.parametrize("share", [math.nan, math.inf, -0.1, 1.1])
@pytest.mark.parametrize("name", ["keep_all", "hide_all"])
def test_impossible_chances_are_refused(name: str, share: float) -> None:
    with pytest.raises(CrocodilError, match=f"{name} {share}.* must be 0 or more and add up to at most 1"):
        NestedDropout(**{name: share})  # type: ignore[arg-type]


def test_noise_std_from_cosine() -> None:
    assert noise_std(0.8) == pytest.approx(0.75)
    assert noise_std(1.0) == 0.0
    assert noise_std(math.sqrt(0.5)) == pytest.approx(1.0)


@pytest.mark.parametrize("cosine", [0.0, -0.5, 1.01, math.nan])
def test_impossible_cosines_are_refused(cosine: float) -> None:
    for make in (noise_std, RegisterNoise):
        with pytest.raises(CrocodilError, match=r"must be in \(0, 1\]"):
            make(cosine)


@pytest.mark.parametrize("cosine", [0.5, 0.8, 0.95])
def test_noise_leaves_the_cosine_it_was_asked_for(cosine: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = normalise(torch.randn(64, 4096, generator=generator))
    noisy = z + noise_std(cosine) * torch.randn(z.shape, generator=generator)
    assert torch.cosine_similarity(z, noisy).mean() == pytest.approx(cosine, abs=0.01)
    assert noisy.norm(dim=-1).mean() == pytest.approx(64 / cosine, rel=0.01)  # 1.25 √D for 0.8


def test_normalise_keeps_directions_and_brings_norms_to_sqrt_d() -> None:
    z = (
        torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e4])[:, None, None]
    )
    out = normalise(z)
    assert torch.allclose(out.norm(dim=-1), torch.tensor(4.0))
    assert torch.allclose(torch.cosine_similarity(z, out, dim=-1), torch.tensor(1.0))
    assert torch.allclose(normalise(out), out)
    half = normalise(z.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), out, rtol=0.02, atol=0.02)


def test_mix_starts_at_one_and_ends_at_the_other() -> None:
    a, b = normalise(torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(mix(a, b, 0.0), a) and torch.allclose(mix(a, b, 1.0), b)
    middle = mix(a, b, 0.5)
    assert torch.allclose(middle.norm(dim=-1), torch.tensor(4.0))
    assert torch.allclose(torch.cosine_similarity(middle, a), torch.cosine_similarity(middle, b))
    assert torch.allclose(mix(a, b, 0.25), mix(b, a, 0.75))
