"""P7: texts packed end to end, against texts padded to the longest of their batch, on lengths of real files.

Loss and gradients of a demasker under registers. The lengths are those of Python files installed beside the
interpreter, scaled down as the network is: 3.6 bytes a token, divided by `shrink`.

B texts, N positions of a text, T packed positions, K registers, S positions with prefix, E width.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crocodil.attention import Segments
from crocodil.demasker.guided import GuidedDemasker
from crocodil.demasker.loss import Losses, per_text, row_weights
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.rotary import two_axis_angles
from crocodil.errors import CrocodilError
from crocodil.text.windows import pack
from recipes.benchmarks.harness import Bench, Benchmark, Row, assert_close, compare, ratio_of_bytes
from recipes.benchmarks.memory import peak_bytes
from recipes.benchmarks.networks import guided_demasker
from recipes.benchmarks.sizes import Network, PackingSizes

BYTES_A_TOKEN = 3.6
LOSS_APART, GRADIENT_APART = 1e-5, 1e-5


def lengths_of_files(sizes: PackingSizes) -> list[int]:
    """Of all files that are short enough, sorted by length, so many at even distances, in random order."""
    roots = {os.path.realpath(sysconfig.get_paths()[kind]) for kind in ("stdlib", "purelib", "platlib")}
    files = {file for root in roots for file in Path(root).rglob("*.py")}  # a root may lie in another
    tokens = (int(file.stat().st_size / BYTES_A_TOKEN / sizes.shrink) for file in files if file.is_file())
    found = sorted(length for length in tokens if 1 <= length <= sizes.longest)
    if len(found) < sizes.texts:
        raise CrocodilError(
            f"this Python has {len(found)} source files of fitting length, P7 wants {sizes.texts}; install its "
            "standard library as source"
        )
    chosen = [found[(2 * index + 1) * len(found) // (2 * sizes.texts)] for index in range(sizes.texts)]
    order = torch.randperm(sizes.texts, generator=torch.Generator().manual_seed(0)).tolist()
    return [chosen[index] for index in order]


@dataclass(frozen=True)
class Text:
    """A text, partly masked, and its registers."""

    ids_N: Tensor
    is_masked_N: Tensor
    t: float
    registers_KD: Tensor


@dataclass(frozen=True)
class Case:
    """A demasker, texts, and which of them make a micro-batch: padded, and packed."""

    demasker: GuidedDemasker
    texts: list[Text]
    batches: list[list[int]]
    rows: list[list[int]]

    def padded(self) -> list[Losses]:
        """Loss and gradients, every batch as long as its longest text."""
        return self._descend(self._padded, self.batches)

    def packed(self) -> list[Losses]:
        """Loss and gradients, texts end to end in rows."""
        return self._descend(self._packed, self.rows)

    def _descend(self, forward: Callable[[list[Text]], Losses], parts: list[list[int]]) -> list[Losses]:
        # gradients stay where they are, so that peak memory is that of what lengths decide
        self.demasker.zero_grad(set_to_none=False)
        losses = []
        for part in parts:
            losses.append(forward([self.texts[index] for index in part]))
            losses[-1].total.backward()
        return losses

    def _packed(self, texts: list[Text]) -> Losses:
        registers_kD = torch.cat([text.registers_KD for text in texts])
        return self.demasker(self._masked(texts), registers_kD, [len(text.registers_KD) for text in texts])

    def _masked(self, texts: list[Text]) -> MaskedTexts:
        device = self.demasker.boundaries.device
        return MaskedTexts(
            torch.cat([text.ids_N for text in texts]),
            torch.cat([text.is_masked_N for text in texts]),
            torch.tensor([text.t for text in texts]),
            Segments.of([len(text.ids_N) for text in texts]),
            self.demasker.llada.config.mask_token_id,
        ).to(device)

    def _padded(self, texts: list[Text]) -> Losses:
        """A rectangle of ids, a mask over its padding, the head on masked positions as on the other side."""
        demasker, llada = self.demasker, self.demasker.llada
        masked = self._masked(texts)
        lengths_B = torch.tensor(masked.segments.lengths, device=masked.ids_T.device)
        registers_BKD = torch.stack([text.registers_KD for text in texts])
        B, K = registers_BKD.shape[:2]
        N = masked.segments.longest
        is_text_BN = torch.arange(N, device=lengths_B.device) < lengths_B[:, None]
        ids_BN = torch.zeros(B, N, dtype=torch.long, device=lengths_B.device)
        ids_BN[is_text_BN] = masked.visible_T
        start_E, end_E = demasker.boundaries
        x_BSE = torch.cat(
            [
                start_E.expand(B, 1, -1),
                demasker.projection(registers_BKD),
                end_E.expand(B, 1, -1),
                llada.embed(ids_BN),
            ],
            dim=1,
        )
        slots, positions = torch.arange(K + 2), torch.arange(N)
        angles_SC = two_axis_angles(
            torch.cat([torch.full_like(slots, -1), positions]),
            torch.cat([slots, torch.zeros_like(positions)]),
            torch.cat(
                [torch.ones_like(slots, dtype=torch.bool), torch.zeros_like(positions, dtype=torch.bool)]
            ),
            demasker.local_pairs,
            llada.config.channels,
            llada.config.rope_theta,
        ).to(x_BSE.device)
        visible_BS = torch.cat([is_text_BN.new_ones(B, K + 2), is_text_BN], dim=1)
        hidden_BSE = llada.run(x_BSE, angles_SC, None, visible_BS[:, None, None])
        hidden_TE = hidden_BSE[:, K + 2 :][is_text_BN]
        is_masked_T = masked.is_masked_T
        score = llada.score(
            hidden_TE[is_masked_T],
            masked.ids_T[is_masked_T],
            row_weights(is_masked_T, masked.segments.lengths, masked.t_B),
        )
        return per_text(score, is_masked_T, masked.segments.lengths)

    def positions(self) -> tuple[int, int]:
        """Of all batches and of all rows, prefixes included."""
        prefix = len(self.texts[0].registers_KD) + 2
        lengths = [len(text.ids_N) for text in self.texts]
        padded = sum(len(part) * (max(lengths[index] for index in part) + prefix) for part in self.batches)
        return padded, sum(lengths) + prefix * len(lengths)

    def flops(self, lengths: Sequence[int]) -> float:
        """Operations of one forward if the texts had these lengths."""
        from crocodil.metrics.cost import demasker_flops  # it imports transformers

        prefixes = [len(text.registers_KD) + 2 for text in self.texts]
        scored = sum(int(text.is_masked_N.sum()) for text in self.texts)
        return demasker_flops(self.demasker.llada.config, lengths, prefixes, scored)


def case_of(
    network: Network, K: int, lengths: Sequence[int], batch: int, row_tokens: int, device: str
) -> Case:
    """Random tokens of these lengths, levels uniform, in micro-batches by order and in rows by `pack`."""
    demasker = guided_demasker(network, K, max(lengths), device).train()
    generator = torch.Generator().manual_seed(0)
    texts = []
    for length in lengths:
        t = float(torch.rand((), generator=generator).clamp_min(0.1))
        ids = torch.randint(0, network.vocab_size - 1, (length,), generator=generator)
        is_masked = torch.rand(length, generator=generator) < t
        registers = torch.randn(K, network.d_model, generator=generator).to(device)
        texts.append(Text(ids, is_masked, t, registers))
    order = list(range(len(lengths)))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    return Case(demasker, texts, batches, pack(lengths, row_tokens))


def job(
    side: str, network: dict[str, Any], K: int, lengths: Sequence[int], device: str
) -> Callable[[], object]:
    """One micro-batch for its peak memory, in a process of its own; the gradients are there before."""
    case = case_of(Network(**network), K, lengths, len(lengths), sum(lengths), device)
    short = replace(case, texts=[case.texts[0]], batches=[[0]], rows=[[0]])
    short.packed()
    return {"padded": case.padded, "packed": case.packed}[side]


def check(case: Case) -> None:
    """The same loss of every text and the same gradients."""

    def of_texts(losses: list[Losses], parts: list[list[int]]) -> Tensor:
        by_text = torch.cat([part.entropy_B for part in losses])
        return by_text[torch.tensor([index for part in parts for index in part]).argsort().to(by_text.device)]

    theirs = case.padded()
    wanted = {name: parameter.grad.clone() for name, parameter in case.demasker.named_parameters()}
    ours = case.packed()
    assert_close(
        "loss of every text",
        of_texts(theirs, case.batches),
        of_texts(ours, case.rows),
        relative=LOSS_APART,
        largest=10 * LOSS_APART,
    )
    assert_close(
        "loss",
        torch.stack([part.total.detach() for part in theirs]).sum(),
        torch.stack([part.total.detach() for part in ours]).sum(),
        relative=LOSS_APART,
    )
    for name, parameter in case.demasker.named_parameters():
        assert_close(f"gradient of {name}", wanted[name], parameter.grad, relative=GRADIENT_APART)


def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.packing
    device = str(bench.device)
    lengths = lengths_of_files(sizes)
    case = case_of(sizes.network, sizes.registers, lengths, sizes.batch, sizes.row_tokens, device)
    check(case)
    padded, packed = case.positions()
    widened = [
        longest for part in case.batches for longest in [max(lengths[index] for index in part)] * len(part)
    ]
    yield compare(case.padded, case.packed, bench).row(
        f"{sizes.texts} files, {1 - packed / padded:.0%} padding in batches of {sizes.batch}",
        floor=1.7,
        aim=0.92 * padded / packed,
        ideal=case.flops(widened) / case.flops(lengths),
    )
    del case

    def peak(side: str) -> int:
        return peak_bytes(
            job,
            side=side,
            network=asdict(sizes.network),
            K=sizes.registers,
            lengths=lengths[: sizes.batch],
            device=device,
        )

    yield ratio_of_bytes(
        f"the first {sizes.batch} of them in one micro-batch",
        theirs=[peak("padded"), peak("padded")],
        ours=peak("packed"),
    )


BENCHMARK = Benchmark(
    "P7",
    "texts of real lengths in training",
    "batches padded to their longest text, with a mask",
    "loss of every text and every gradient within 1e-5, relative",
    measure,
)
