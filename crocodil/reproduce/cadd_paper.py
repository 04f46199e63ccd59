"""What the second paper prints (CADD; a DiT of 168 M parameters on OpenWebText, U-Nets on 32 × 32 images).

Its figures have no numbers to copy; of them, only what the text says stands here.
"""

from __future__ import annotations

from typing import NamedTuple


class ImageScores(NamedTuple):
    """A line of Table 1; None where it prints a dash."""

    nfe: int | None
    fid: float
    inception_score: float | None


TABLE_1: dict[str, ImageScores] = {
    "CADD": ImageScores(512, 2.88, 10.04),
    "MDM": ImageScores(512, 4.66, 9.09),
    "MDM-Mixture": ImageScores(512, 4.80, 9.22),
    "MDM-Prime": ImageScores(512, 3.26, 9.67),
    "D3PM Absorb": ImageScores(1000, 30.97, 6.78),
    "D3PM Gauss.": ImageScores(1000, 7.34, 8.56),
    "CTDD-DG": ImageScores(1000, 7.86, 8.91),
    "Tau-LDR": ImageScores(1000, 3.74, 9.49),
    "Discrete FM": ImageScores(1024, 3.63, None),
    "Continuous FM": ImageScores(None, 6.35, None),
    "Bit Diffusion": ImageScores(None, 3.48, None),
    "StyleGAN+ADA": ImageScores(None, 3.26, 9.74),
    "DDPM": ImageScores(None, 3.17, 9.46),
}
"""CIFAR-10, 50,000 images."""

TABLE_11 = {64: 30.41, 256: 4.29, 512: 2.88}
"""CADD with the ADM network: NFE to FID."""


class Cost(NamedTuple):
    """A line of Table 4: one H100, float32, one text at a time."""

    tokens_per_second: int
    tflops: float
    tflops_per_second: float
    gigabytes: float


TRAINING = {"MDM": Cost(47_416, 0.29, 6.049, 1.362), "CADD": Cost(47_152, 0.291, 6.082, 1.492)}
SAMPLING = {
    1: Cost(47_373, 0.291, 6.082, 1.492),
    2: Cost(24_852, 0.581, 12.206, 3.511),
    3: Cost(15_768, 0.873, 18.310, 5.253),
    4: Cost(1_417, 1.162, 24.417, 7.470),
}
"""Table 4 by K. 1,417 tokens a second is as printed; the text says that the cost is linear, which would be 11,800."""
MISPRINTED = 4
"""The K whose tokens a second are those."""

TABLE_5 = {
    "AR": 1.23,
    "Plaid": 1.48,
    "BNF": 1.41,
    "RDLM": 1.32,
    "Multinomial Diffusion": 1.72,
    "D3PM Uniform": 1.61,
    "D3PM Absorb": 1.45,
    "SEDD Absorb": 1.39,
    "MDLM": 1.40,
    "MD4": 1.37,
    "CADD": 1.35,
}
"""Bits per character on Text8; of CADD the discrete term."""

TABLE_6: dict[str, tuple[float, float | None]] = {
    "Transformer (AR)": (22.8, 17.5),
    "D3PM Uniform": (137.9, None),
    "Diffusion-LM": (118.6, None),
    "SEDD Uniform": (40.3, 29.7),
    "UDLM": (36.7, 27.4),
    "DUO": (33.7, 25.2),
    "D3PM Absorb": (76.9, None),
    "DiffusionBert": (63.8, None),
    "SEDD Absorb": (32.7, 24.1),
    "MDLM": (31.8, 23.2),
    "CADD": (31.4, 23.1),
}
"""Test perplexities on LM1B and on OpenWebText, of models trained on them."""

TABLE_7: dict[str, dict[str, float]] = {
    "PTB": {"Transformer (AR)": 82.05, "DUO": 89.35, "MDLM": 95.26, "CADD": 93.33},
    "Wikitext": {"Transformer (AR)": 25.75, "DUO": 33.57, "MDLM": 32.83, "CADD": 31.84},
    "LM1B": {"Transformer (AR)": 51.25, "DUO": 73.86, "MDLM": 67.01, "CADD": 64.98},
    "Lambada": {"Transformer (AR)": 51.28, "DUO": 49.78, "MDLM": 47.52, "CADD": 46.81},
    "AG News": {"Transformer (AR)": 52.09, "DUO": 67.81, "MDLM": 61.15, "CADD": 62.80},
    "Pubmed": {"Transformer (AR)": 49.01, "DUO": 44.48, "MDLM": 41.89, "CADD": 42.62},
    "Arxiv": {"Transformer (AR)": 41.73, "DUO": 40.39, "MDLM": 37.37, "CADD": 37.52},
}
"""Zero-shot perplexities of models trained on OpenWebText: the lines that ours have a counterpart of, AR, and DUO."""

TABLE_8 = {"add": (0.24, 5.31), "concat": (0.21, 5.37), "reweight": (0.24, 5.30)}
"""Fusion to MAUVE and entropy."""

TABLE_9 = {"flow": (0.24, 2.88), "vp": (0.24, 3.16)}
"""Schedule to MAUVE of texts and FID of CIFAR-10."""

TABLE_10 = {
    ("CE", "soft"): 0.24,
    ("CE + MSE, soft", "soft"): 0.24,
    ("CE + MSE, hard", "soft"): 0.22,
    ("CE", "hard"): 0.18,
    ("CE + MSE, soft", "hard"): 0.24,
    ("CE + MSE, hard", "hard"): 0.24,
}
"""(training, estimate in sampling) to MAUVE. Tables 8 and 9 have 0.24 where this one has 0.18."""

TABLE_10_TOKENS = {"CE": 47_152, "CE + MSE, soft": 32_117, "CE + MSE, hard": 47_152}
"""Training tokens a second."""

TABLE_12 = {0.1: "model", 0.3: "model", 0.5: "vase", 0.7: "tank", 1.0: "and"}
"""t to what is predicted in "A [MASK] sits on the mat" where the latent is of "model"."""

GEN_PPL = {1024: 44.6, 4096: 35.3}
"""§5.1, the points of Fig. 3 that the text names: T to CADD's Gen-PPL. MAUVE, it says, rises by 0.3 between them."""
