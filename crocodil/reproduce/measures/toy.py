"""App. B: two sentences, equally likely, (cat, meows) and (dog, barks). Whoever draws both words at once from their
marginals writes what nobody says half of the time; under a register that names the sentence, never.

The toy is the real thing made small: encoder, demasker and denoiser of the package, trained in seconds.

Shape letters: B texts, N = 3 positions (BOS and two words), K = 1 register, D register width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder, Batch
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.masking import MaskedTexts
from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.loss import DenoiserLoss, noisy
from crocodil.denoiser.schedule import offsets, signal
from crocodil.registers.encoder import fresh_encoder
from crocodil.registers.geometry import noise_std, normalise
from crocodil.reproduce.lab import Lab, Task
from crocodil.reproduce.store import Measured
from crocodil.sampler.ddim import ddim
from crocodil.sampler.demask import demask

WORDS = ("cat", "dog", "meows", "barks")
EOS, MASK, BOS = 4, 5, 6
"""Without BOS two masks would look alike from everywhere, and no position would know itself."""
SENTENCES = torch.tensor([[0, 2], [1, 3]])
D = 16
BATCH = 32
LATENT_STEPS = 32
METHODS = ("marginals", "mdm", "mdm in two steps", "autoencoder", "conthendisc")
"""The exact marginals; the demasker alone, both words at once and one after the other; registers of real sentences;
registers out of noise."""


class Toy(NamedTuple):
    """What was trained."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    registers_2KD: Tensor
    """Of the two sentences."""


@dataclass(frozen=True)
class Pairs(Task):
    """Pairs of words by every method, and Eq. 6 for the demasker with and without registers."""

    draws: int
    steps: int
    seed: int

    def run(self, lab: Lab) -> Measured:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(self.seed)
            toy = train(self.steps)
        random = torch.Generator().manual_seed(self.seed)
        drawn = {method: draw(toy, method, self.draws, random) for method in METHODS}
        impossible = {
            method: (~(pairs_B2[:, None] == SENTENCES).all(-1).any(-1)).double().tolist()
            for method, pairs_B2 in drawn.items()
        }
        shares = {
            method: [float((pairs_B2 == sentence).all(-1).double().mean()) for sentence in SENTENCES]
            for method, pairs_B2 in drawn.items()
        }
        gaps = {"mdm": gap(toy, guided=False), "autoencoder": gap(toy, guided=True)}
        return Measured({"impossible": impossible, "shares": shares, "gap": gaps})

    def weight(self, lab: Lab) -> float:
        return 500.0 * self.steps


def train(steps: int) -> Toy:
    """Encoder and demasker together, half of the texts without a register; then the denoiser on both registers."""
    encoder = fresh_encoder(
        7, 1, EOS, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, rope_theta=1000.0,
    )  # fmt: skip
    llada = LLaDA(
        LLaDAConfig(
            d_model=D, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden_size=32, vocab_size=7, embedding_size=7,
            max_sequence_length=8, mask_token_id=MASK, eos_token_id=EOS, rope_theta=1000.0,
        )
    ).initialise()  # fmt: skip
    autoencoder = Autoencoder(encoder, GuidedDemasker(llada, GuideConfig(1, D)).initialise())
    optimiser = torch.optim.AdamW(autoencoder.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = autoencoder(_batch()).total / BATCH
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    autoencoder.eval()
    with torch.no_grad():
        registers_2KD = encoder(SENTENCES.flatten(), Segments.of([2, 2]), [1, 1]).unflatten(0, (2, 1))
    denoiser = Denoiser(DenoiserConfig(1, D, 32, 2, 2))
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=3e-3, weight_decay=0.0)
    error = DenoiserLoss(denoiser)
    for _ in range(2 * steps):
        clean_BKD = registers_2KD[torch.randint(2, (BATCH,))]
        loss = (
            error(noisy(clean_BKD, torch.rand(BATCH), offsets(1), torch.randn_like(clean_BKD))).total / BATCH
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Toy(autoencoder, denoiser.eval(), registers_2KD)


def _batch() -> Batch:
    """Sentences with a random word or both of them masked, half with a noisy register, half with none."""
    text_B2 = SENTENCES[torch.randint(2, (BATCH,))]
    masks_B2 = torch.rand(BATCH, 2) < torch.rand(BATCH, 1)
    masks_B2 |= (torch.rand(BATCH) < 0.5)[:, None]
    k = tuple(torch.randint(2, (BATCH,)).tolist())
    window_B3, masks_B3 = _framed(text_B2), torch.cat([torch.zeros(BATCH, 1, dtype=torch.bool), masks_B2], 1)
    segments = Segments.of([3] * BATCH)
    texts = MaskedTexts(window_B3.flatten(), masks_B3.flatten(), torch.ones(BATCH), segments, MASK)
    noise_kD = noise_std(0.8) * torch.randn(sum(k), D)
    return Batch(texts, text_B2.flatten(), Segments.of([2] * BATCH), k, noise_kD)


def _framed(text_B2: Tensor) -> Tensor:
    return torch.cat([torch.full((len(text_B2), 1), BOS), text_B2], dim=1)


@torch.no_grad()
def draw(toy: Toy, method: str, count: int, random: torch.Generator) -> Tensor:
    """Pairs of words (B, 2)."""
    if method == "marginals":  # Eq. 8
        return torch.stack([torch.randint(2, (count,), generator=random) + at for at in (0, 2)], dim=1)
    z_BKD = None
    if method == "autoencoder":
        z_BKD = toy.registers_2KD[torch.randint(2, (count,), generator=random)]
    if method == "conthendisc":
        noise_BKD = torch.randn(count, 1, D, generator=random)
        made = ddim(toy.denoiser, noise_BKD, signal, offsets(1), steps=LATENT_STEPS)
        z_BKD = normalise(made.registers_BKD)
    return demask(
        lambda ids, rows: _word_logits(toy, ids, rows, z_BKD),
        _framed(torch.full((count, 2), MASK)),
        MASK,
        nfe=2 if method == "mdm in two steps" else 1,
        temperature=1.0,
        remasking="random",
        generator=random,
    ).ids[:, 1:]


@torch.no_grad()
def gap(toy: Toy, guided: bool) -> float:
    """Eq. 6 at two masks: the divergence of what is said from the demasker's product of marginals, in nats.

    Under a register the sentence is known and what is said is one pair.
    """
    total = 0.0
    for sentence_2, z_KD in zip(SENTENCES, toy.registers_2KD, strict=True):
        ids_13 = _framed(torch.full((1, 2), MASK))
        logits_2V = _word_logits(toy, ids_13, ids_13 == MASK, z_KD[None] if guided else None)
        independent = float(logits_2V.log_softmax(-1).gather(1, sentence_2[:, None]).sum())
        total += 0.5 * ((0.0 if guided else math.log(0.5)) - independent)
    return total


def _word_logits(toy: Toy, ids_BN: Tensor, rows_BN: Tensor, z_BKD: Tensor | None) -> Tensor:
    logits_RV = toy.autoencoder.demasker.logits(ids_BN, rows_BN, z_BKD)
    logits_RV[:, len(WORDS) :] = -math.inf
    return logits_RV
