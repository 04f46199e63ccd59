"""P5: cross-entropy of masked positions with its gradients, at LLaDA's vocabulary.

Two ways to compare with: logits at every position, masked afterwards; and the masked positions gathered first, then
one cross-entropy over them.

T positions, R masked ones among them, E width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from crocodil.demasker.loss import cross_entropy, row_weights
from recipes.benchmarks.harness import Bench, Benchmark, Row, assert_close, compare, ratio_of_bytes
from recipes.benchmarks.memory import peak_bytes

LOSS_APART, GRADIENT_APART = 1e-6, 1e-5


@dataclass(frozen=True)
class Case:
    """One text, part of it masked, and a head."""

    hidden_TE: Tensor
    weight_VE: Tensor
    targets_T: Tensor
    is_masked_T: Tensor
    weights_R: Tensor
    """1 / (n t) of every masked position (Eq. 5)."""

    def every_position(self) -> Tensor:
        """Logits everywhere, the loss of unmasked positions thrown away."""
        entropy_T = F.cross_entropy(
            F.linear(self.hidden_TE, self.weight_VE), self.targets_T, reduction="none"
        )
        return self._descend((entropy_T[self.is_masked_T] * self.weights_R).sum())

    def gathered(self) -> Tensor:
        """Masked positions first, all of them at once."""
        hidden_RE, targets_R = self.hidden_TE[self.is_masked_T], self.targets_T[self.is_masked_T]
        entropy_R = F.cross_entropy(F.linear(hidden_RE, self.weight_VE), targets_R, reduction="none")
        return self._descend((entropy_R * self.weights_R).sum())

    def ours(self) -> Tensor:
        """Masked positions, a chunk at a time."""
        hidden_RE, targets_R = self.hidden_TE[self.is_masked_T], self.targets_T[self.is_masked_T]
        return self._descend(cross_entropy(hidden_RE, self.weight_VE, targets_R, self.weights_R).total)

    def _descend(self, loss: Tensor) -> Tensor:
        self.hidden_TE.grad = self.weight_VE.grad = None
        loss.backward()
        return loss.detach()


def case_of(positions: int, d_model: int, vocab_size: int, share: float, device: torch.device | str) -> Case:
    """Hidden states of unit scale, as the final norm leaves them, and a fresh head."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, d_model, generator=generator)
    weight = torch.randn(vocab_size, d_model, generator=generator).div_(d_model**0.5)
    targets = torch.randint(0, vocab_size, (positions,), generator=generator)
    is_masked = torch.zeros(positions, dtype=torch.bool)
    is_masked[torch.randperm(positions, generator=generator)[: round(share * positions)]] = True
    return Case(
        hidden.to(device).requires_grad_(),
        weight.to(device).requires_grad_(),
        targets.to(device),
        is_masked.to(device),
        row_weights(is_masked, [positions], torch.tensor([share])).to(device),
    )


def job(
    side: str, positions: int, d_model: int, vocab_size: int, share: float, device: str
) -> Callable[[], object]:
    """What is run for its peak memory, in a process of its own."""
    case = case_of(positions, d_model, vocab_size, share, device)
    return {"every position": case.every_position, "gathered": case.gathered, "ours": case.ours}[side]


def check(case: Case) -> None:
    """The same loss and the same gradients, all three ways."""
    wanted = case.every_position().clone()
    hidden, weight = case.hidden_TE.grad.clone(), case.weight_VE.grad.clone()
    for name, side in (("gathered", case.gathered), ("ours", case.ours)):
        assert_close(f"loss, {name}", wanted, side(), relative=LOSS_APART)
        assert_close(
            f"gradient of the hidden states, {name}", hidden, case.hidden_TE.grad, relative=GRADIENT_APART
        )
        assert_close(f"gradient of the head, {name}", weight, case.weight_VE.grad, relative=GRADIENT_APART)


def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.loss
    for share in sizes.shares:
        case = case_of(sizes.positions, sizes.d_model, sizes.vocab_size, share, bench.device)
        check(case)
        # floor and aim are the plan's; at p = 1 gathering gathers everything and chunks can only save memory
        floor, aim = (1.8, 2.4) if share < 1 else (0.95, None)
        yield compare(case.every_position, case.ours, bench).row(
            f"p = {share:g}, logits everywhere", floor, aim
        )
        if share < 1:
            yield compare(case.gathered, case.ours, bench).row(f"p = {share:g}, gathered, at once")
        del case

        def peak(side: str, share: float = share) -> int:
            return peak_bytes(
                job,
                side=side,
                positions=sizes.positions,
                d_model=sizes.d_model,
                vocab_size=sizes.vocab_size,
                share=share,
                device=str(bench.device),
            )

        mine = peak("ours")
        yield ratio_of_bytes(
            f"p = {share:g}, logits everywhere",
            theirs=[peak("every position"), peak("every position")],
            ours=mine,
            floor=4.0,
            aim=8.0,
        )
        if share < 1:
            yield ratio_of_bytes(
                f"p = {share:g}, gathered, at once", [peak("gathered"), peak("gathered")], mine
            )


BENCHMARK = Benchmark(
    "P5",
    "cross-entropy of masked positions, with gradients",
    "logits at every position; masked positions gathered, then one cross-entropy",
    "loss within 1e-6, gradients of hidden states and head within 1e-5, relative",
    measure,
)
