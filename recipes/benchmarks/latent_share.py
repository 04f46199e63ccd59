"""P4: what it takes to draw registers out of noise by DDIM, in evaluations of the demasker on as many texts.

The denoiser has a twentieth of the demasker's parameters, so the paper counts 128 steps as 6.4 evaluations. It sees K
positions where the demasker sees N + K + 2, and a small network may spend its time between operations.

B batch, N text positions, K registers, D register width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crocodil.demasker.guided import GuidedDemasker
from crocodil.denoiser.dit import Denoiser
from crocodil.denoiser.schedule import offsets, signal, times
from crocodil.sampler.ddim import ddim
from recipes.benchmarks.harness import Bench, Benchmark, Row, assert_close, compare
from recipes.benchmarks.networks import denoiser, guided_demasker
from recipes.benchmarks.sizes import LatentSizes

APART = 1e-5
# by number of texts, at the first K: (floor, aim, aim on a GPU)
TARGETS = {1: (4.0, 1.5, 2.1), 8: (0.8, 0.35, 0.1)}


@dataclass(frozen=True)
class Case:
    """Texts that are all mask, noise for their registers, and both networks."""

    demasker: GuidedDemasker
    denoiser: Denoiser
    masked_BN: Tensor
    noise_BKD: Tensor

    def evaluation(self) -> Tensor:
        """One evaluation of the demasker: logits at every position, all of which are masked."""
        return self.demasker.logits(self.masked_BN, torch.ones_like(self.masked_BN).bool(), self.noise_BKD)

    def draw(self, steps: int) -> Tensor:
        """Registers (B, K, D) out of the noise."""
        shift_K = offsets(self.noise_BKD.shape[1])
        return ddim(self.denoiser, self.noise_BKD, signal, shift_K, steps=steps).registers_BKD

    def draw_plainly(self, steps: int) -> Tensor:
        """The same as the equation is printed: one sample after another, step by step, in float64."""
        shift_K = offsets(self.noise_BKD.shape[1])
        end = -float(shift_K.max())
        out = []
        for noise_KD in self.noise_BKD:
            x = noise_KD.double()[None]
            for step in range(steps):
                bases = [1 + (end - 1) * done / steps for done in (step, step + 1)]
                now, then = (times(torch.tensor([base]), shift_K).to(x.device) for base in bases)
                clean = self.denoiser(x.float(), now).double()
                share, next_share = signal(now)[..., None], signal(then)[..., None]
                noise = (x - share.sqrt() * clean) / (1 - share).sqrt().clamp_min(1e-12)
                moved = next_share.sqrt() * clean + (1 - next_share).sqrt() * noise
                x = torch.where((then == now)[..., None], x, moved)
            out.append(x[0])
        return torch.stack(out)


def case_of(sizes: LatentSizes, B: int, K: int, device: torch.device | str) -> Case:
    demasker = guided_demasker(sizes.network, K, sizes.length, device, sizes.denoiser.D)
    noise = torch.randn(B, K, sizes.denoiser.D, generator=torch.Generator().manual_seed(0))
    masked = torch.full((B, sizes.length), demasker.llada.config.mask_token_id)
    return Case(demasker, denoiser(sizes.denoiser, K, device), masked.to(device), noise.to(device))


@torch.no_grad()
def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.latent
    for K in sizes.registers:
        case = case_of(sizes, 2, K, bench.device)
        steps = sizes.checked_steps
        assert_close(
            f"registers, K = {K}", case.draw_plainly(steps), case.draw(steps).double(), relative=APART
        )
    for K in sizes.registers:
        for B in sizes.batches:
            case = case_of(sizes, B, K, bench.device)
            floor, aim, aim_gpu = TARGETS.get(B, (None,) * 3) if K == sizes.registers[0] else (None,) * 3
            yield compare(case.evaluation, lambda case=case: case.draw(sizes.steps), bench).evaluations(
                f"{sizes.steps} steps, K = {K}, N = {sizes.length}, B = {B}",
                floor,
                aim_gpu if bench.device.type == "cuda" else aim,
                _ideal(case, sizes.steps),
            )


def _ideal(case: Case, steps: int) -> float:
    """Operations of all steps over those of one evaluation."""
    from crocodil.metrics.cost import demasker_flops, denoiser_flops  # imports transformers

    (B, N), k = case.masked_BN.shape, case.noise_BKD.shape[1]
    evaluation = demasker_flops(case.demasker.llada.config, [N] * B, [k + 2] * B, B * N)
    return steps * denoiser_flops(case.denoiser.config, B, k) / evaluation


BENCHMARK = Benchmark(
    "P4",
    "registers out of noise by DDIM",
    "one evaluation of the demasker on as many texts",
    "registers within 1e-5, relative, of those by the equation, one sample after another in float64",
    measure,
)
