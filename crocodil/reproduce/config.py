"""What is measured, and on how many texts. The defaults are the paper's; where it names no number, ours stand here.

`presets/nano.yaml` makes everything small enough for two CPU cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crocodil.errors import CrocodilError
from crocodil.training.config import load_config
from crocodil.training.limits import LEAST_WINDOW, require_at_least

PRESETS = Path(__file__).parent / "presets"
SOURCES = ("programs", "comments", "manual", "descriptions", "headers", "javascript")
"""Kinds of text that every installation has, see `measures/sources.py`."""


@dataclass(frozen=True)
class Synthesis:
    """How texts are written out of noise."""

    texts: int = 1000
    """The paper does not say how many."""
    temperature: float = 1.0
    latent_steps: int = 128
    refresh_steps: int = 32
    fill: bool = True
    """No text ends before its window does, so that all have one length."""


@dataclass(frozen=True)
class Table:
    """Tables 1 and 2: the autoencoder."""

    length: int
    windows: int = 1000
    """The paper does not say how many."""
    ks: tuple[int | None, ...] = (None,)
    """Numbers of registers; None is all of them."""


@dataclass(frozen=True)
class MaskedTokens:
    """Fig. 4 and Eq. 6: by masking level."""

    windows: int = 1000
    length: int | None = None
    """The model's window if left out."""
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ks: tuple[int, ...] = (0, 8, 64, 128)
    """0 is the unguided demasker. More than the model has are left out."""


@dataclass(frozen=True)
class IndependenceGap:
    """Eq. 6: how far tokens that are drawn at once are from independent."""

    windows: int = 500
    levels: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    ks: tuple[int, ...] = (0, 8, 64, 128)
    draws: int = 4
    """Points of the integral for each window and level."""


@dataclass(frozen=True)
class Noise:
    """Fig. 7: with noise on the registers."""

    windows: int = 1000
    sigmas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    t: float = 0.9


@dataclass(frozen=True)
class Generation:
    """Fig. 6 and Fig. 12: texts against NFE."""

    lengths: tuple[int, ...]
    ks: tuple[int, ...]
    """Registers, one number for each length."""
    nfes: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    remasking: Literal["low_confidence", "random"] = "low_confidence"


@dataclass(frozen=True)
class Interpolation:
    """Fig. 8: between pairs of texts."""

    pairs: int = 1000
    length: int = 256
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ks: tuple[int | None, ...] = (None,)
    """Registers; None is all of them. The paper does not say."""
    nfe: int = 64


@dataclass(frozen=True)
class Psnr:
    """Fig. 9: denoised registers against the noise level."""

    windows: int = 1000
    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    visible: tuple[float, ...] = (0.5,)
    """Shares of the text that the conditional denoiser sees."""
    ks: tuple[int, ...] = (128,)


@dataclass(frozen=True)
class Coverage:
    """PRDC of App. E."""

    samples: int = 5000
    ks: tuple[int, ...] = (128,)
    visible: float = 0.5


@dataclass(frozen=True)
class Ablation:
    """Fig. 11: number of registers, time of the refresh, block offsets."""

    length: int = 512
    nfe: int = 32
    ks: tuple[int, ...] = (8, 16, 32, 64)
    refreshes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    k: int = 8
    """Registers where they are not what changes."""
    remasking: Literal["low_confidence", "random"] = "low_confidence"


@dataclass(frozen=True)
class Toy:
    """App. B: two sentences."""

    draws: int = 10_000
    steps: int = 300
    """Training steps of the toy's encoder, demasker and denoiser."""


@dataclass(frozen=True)
class Structure:
    """App. C: without nested dropout, and with LayerNorm instead of √D scaling."""

    windows: int = 1000
    t: float = 1.0
    nfe: int = 16
    """Of texts out of noise."""


@dataclass(frozen=True)
class Examples:
    """Texts to look at (Fig. 5, 13 – 18)."""

    nfes: tuple[int, ...] = (4, 8, 16, 64)
    nfe: int = 64
    length: int = 256
    texts: int = 2


@dataclass(frozen=True)
class Ablations:
    """Models that differ from another in one thing; a figure leaves out what is not named here, and says so."""

    reference: str | None = None
    """With register noise and nested dropout: recipes/configs/nano-ablation.yaml, or the model itself."""
    no_noise: str | None = None
    no_nested_dropout: str | None = None
    layer_norm: str | None = None
    offsets: str | None = None
    """An unconditional denoiser of the model's registers, with block offsets."""
    no_offsets: str | None = None


@dataclass(frozen=True)
class CaddModels:
    """Models of CADD's figures, each a folder that `crocodil.load` opens; a figure leaves out what is not named here, and
    says so. Those that are compared saw the same texts in the same order."""

    mdm: str | None = None
    """Masked diffusion, from scratch."""
    cadd: str | None = None
    """CADD, from scratch, for as many steps."""
    finetuned: str | None = None
    """CADD out of `mdm`."""
    mdm_more: str | None = None
    """`mdm`, trained on for as many steps as `finetuned`."""
    mdm_small: str | None = None
    """From here to `rho_root_E`, small ones: masked diffusion."""
    reference: str | None = None
    """CADD; what follows differs from it in one thing."""
    reweight: str | None = None
    concat: str | None = None
    vp: str | None = None
    mse_soft: str | None = None
    mse_hard: str | None = None
    rho_half: str | None = None
    rho_double: str | None = None
    rho_root_E: str | None = None
    """ρ = √E, where nothing is forgotten until near t = 1."""
    letters_mdm: str | None = None
    """Of texts of 27 characters."""
    letters_cadd: str | None = None
    both: str | None = None
    """Registers and latents in one demasker."""
    registers_only: str | None = None
    """The same model trained on for as many steps without latents."""
    digits_mdm: str | None = None
    """Of images."""
    digits_cadd: str | None = None


@dataclass(frozen=True)
class Pictures:
    """CADD Table 1: images out of noise."""

    images: int = 50_000
    nfes: tuple[int, ...] = (512,)
    hottest: float | None = 2.5
    """Temperature at t = 1, from which it falls to 0 as a cosine; null is 1 throughout."""
    corrector: float = 0.0
    """The paper has one, and does not say how strong."""
    estimates: tuple[Literal["hard", "soft", "drawn"], ...] = ("hard",)
    """Of the model with latents. The paper keeps to hard ones."""


@dataclass(frozen=True)
class Chains:
    """How texts are written by CADD's sampler (CADD App. B.2). None ends before its window does."""

    texts: int = 5000
    length: int | None = None
    """The model's window if left out."""
    temperature: float = 1.0
    estimate: Literal["hard", "soft", "drawn"] = "hard"


@dataclass(frozen=True)
class BySteps:
    """CADD Fig. 3 and 4: against the number of sampling steps T."""

    steps: tuple[int, ...] = (128, 256, 512, 1024, 4096)


@dataclass(frozen=True)
class ByDraws(BySteps):
    """CADD Fig. 5 and 6: the same for every K, chains of latents of a text."""

    draws: tuple[int, ...] = (1, 2, 3, 4)


@dataclass(frozen=True)
class Variants:
    """CADD Tables 8 to 10: models that differ in one thing."""

    steps: int = 1024
    """T; the paper does not say."""


@dataclass(frozen=True)
class Speed:
    """CADD Table 4: what a step costs."""

    batch: int = 1
    length: int | None = None
    rounds: int = 50
    """How often everything is timed, in alternation."""
    draws: tuple[int, ...] = (1, 2, 3, 4)
    steps: int = 8
    """Steps of sampling in a round."""


@dataclass(frozen=True)
class Likelihood:
    """CADD Tables 5 to 7."""

    windows: int = 1000
    samples: int = 128
    """Evaluations of a text, for each of the two numbers."""
    steps: int = 1024
    """T of the sampler whose bound it is."""
    sources: tuple[str, ...] = ()
    """Names of `measures/sources.py`, or corpora as in training."""


@dataclass(frozen=True)
class Planted:
    """CADD Table 12: a token's latent under another's mask."""

    windows: int = 1000
    """In each, one token."""
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    examples: int = 3
    """Programs that are shown."""
    steps: int = 1024
    """T of texts out of noise, of each ρ."""


@dataclass(frozen=True)
class Together:
    """Registers and latents in one demasker."""

    windows: int = 1000
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    k: int = 8
    steps: int = 64


@dataclass(frozen=True)
class ReproduceConfig:
    """Everything that says what is measured."""

    source: str = "bundled"
    """Held-out texts: `bundled`, or a corpus as in training, of which the held-out side is taken."""
    judge: str = "openai-community/gpt2-large"
    """A causal language model, for Gen-PPL and MAUVE; `bundled/judge` is a small one. The paper does not name its own."""
    judge_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    scorer: str = "neulab/codebert-python"
    """An encoder for BERTScore; this one, left to itself, with the settings of CodeBERTScore."""
    scorer_layer: int | None = None
    """Hidden state that stands for a token; the last if left out."""
    part: int = 32
    """Texts of a piece of work: what a killed sweep may lose."""
    seed: int = 0
    mauve_seeds: int = 5
    synthesis: Synthesis = field(default_factory=Synthesis)
    table1: Table = field(default_factory=lambda: Table(256))
    table2: Table = field(default_factory=lambda: Table(512))
    fig4: MaskedTokens = field(default_factory=MaskedTokens)
    fig6: Generation = field(default_factory=lambda: Generation((512, 1024), (8, 16)))
    fig7: Noise = field(default_factory=Noise)
    fig8: Interpolation = field(default_factory=Interpolation)
    fig9: Psnr = field(default_factory=Psnr)
    fig11: Ablation = field(default_factory=Ablation)
    fig12: Generation = field(default_factory=lambda: Generation((256,), (8,)))
    prdc: Coverage = field(default_factory=Coverage)
    eq6: IndependenceGap = field(default_factory=IndependenceGap)
    appendix_b: Toy = field(default_factory=Toy)
    appendix_c: Structure = field(default_factory=Structure)
    examples: Examples = field(default_factory=Examples)
    ablations: Ablations = field(default_factory=Ablations)
    chains: Chains = field(default_factory=Chains)
    cadd_fig3: BySteps = field(default_factory=BySteps)
    cadd_fig4: BySteps = field(default_factory=BySteps)
    cadd_fig5: ByDraws = field(default_factory=ByDraws)
    cadd_fig6: ByDraws = field(default_factory=ByDraws)
    cadd_table1: Pictures = field(default_factory=Pictures)
    cadd_table4: Speed = field(default_factory=Speed)
    cadd_table5: Likelihood = field(default_factory=lambda: Likelihood(sources=("letters",)))
    cadd_table7: Likelihood = field(default_factory=lambda: Likelihood(sources=SOURCES))
    cadd_table8: Variants = field(default_factory=Variants)
    cadd_table9: Variants = field(default_factory=Variants)
    cadd_table10: Variants = field(default_factory=Variants)
    cadd_table12: Planted = field(default_factory=Planted)
    cadd_both: Together = field(default_factory=Together)
    cadd: CaddModels = field(default_factory=CaddModels)

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be measured with, before anything is opened."""
        require_at_least(1, self, "part", "mauve_seeds")
        if self.mauve_seeds > 1000:
            raise CrocodilError(f"mauve_seeds is {self.mauve_seeds}; give at most 1000")
        if not 0 <= self.seed < 2**63:  # torch takes 64 bits
            raise CrocodilError(f"seed is {self.seed}; give 0 or more, below 2**63")
        for section, least in LEAST.items():
            require_at_least(1, getattr(self, section), *least, section=f"{section}.")
            for name in least:
                if getattr(getattr(self, section), name) > MOST_TEXTS:
                    raise CrocodilError(f"{section}.{name} is beyond any use; give at most {MOST_TEXTS:,}")
        for section, names in RANGES.items():
            for name, (low, high) in names.items():
                values = getattr(getattr(self, section), name)
                values = values if isinstance(values, tuple) else (values,)
                if not values or not all(value is None or low <= value <= high for value in values):
                    told = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
                    raise CrocodilError(f"{section}.{name} is {values}; give numbers {told}, one at least")


MOST_TEXTS = 10_000_000
LEAST: dict[str, tuple[str, ...]] = {
    "synthesis": ("texts", "latent_steps", "refresh_steps"),
    "table1": ("windows",),
    "table2": ("windows",),
    "fig4": ("windows",),
    "fig7": ("windows",),
    "fig8": ("pairs", "nfe"),
    "fig9": ("windows",),
    "fig11": ("nfe", "k"),
    "eq6": ("windows", "draws"),
    "appendix_b": ("draws",),
    "appendix_c": ("windows", "nfe"),
    "examples": ("nfe",),
    "chains": ("texts",),
    "cadd_table1": ("images",),
    "cadd_table4": ("batch", "rounds", "steps"),
    "cadd_table5": ("windows", "samples", "steps"),
    "cadd_table7": ("windows", "samples", "steps"),
    "cadd_table8": ("steps",),
    "cadd_table9": ("steps",),
    "cadd_table10": ("steps",),
    "cadd_table12": ("windows", "steps"),
    "cadd_both": ("windows", "k", "steps"),
}
"""What must be 1 or more."""
MASKED = (1e-3, 1.0)
LENGTH = (LEAST_WINDOW, math.inf)
MOST_STEPS = 1_000_000
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "synthesis": {"temperature": (0, 1e6)},
    "table1": {"length": LENGTH, "ks": (1, math.inf)},
    "table2": {"length": LENGTH, "ks": (1, math.inf)},
    "fig4": {"length": LENGTH, "levels": MASKED, "ks": (0, math.inf)},
    "fig6": {"lengths": LENGTH, "ks": (1, math.inf), "nfes": (1, math.inf)},
    "fig7": {"sigmas": (0, 1e6), "t": MASKED},
    "fig8": {"length": LENGTH, "alphas": (-1e3, 1e3), "ks": (1, math.inf)},
    "fig9": {"levels": (0, 1), "visible": (0, 1), "ks": (1, math.inf)},
    "fig11": {"length": LENGTH, "ks": (1, math.inf), "refreshes": (0, 0.999)},
    "fig12": {"lengths": LENGTH, "ks": (1, math.inf), "nfes": (1, math.inf)},
    "prdc": {"samples": (6, math.inf), "ks": (1, math.inf), "visible": (0, 1)},
    "eq6": {"levels": MASKED, "ks": (0, math.inf)},
    "appendix_b": {"steps": (0, 1e6)},
    "appendix_c": {"t": MASKED},
    "examples": {"texts": (1, 100), "nfes": (1, math.inf), "length": LENGTH},
    "chains": {"length": LENGTH, "temperature": (0, 1e6)},
    "cadd_fig3": {"steps": (1, MOST_STEPS)},
    "cadd_fig4": {"steps": (1, MOST_STEPS)},
    "cadd_fig5": {"steps": (1, MOST_STEPS), "draws": (1, 1000)},
    "cadd_fig6": {"steps": (1, MOST_STEPS), "draws": (1, 1000)},
    "cadd_table1": {
        "images": (10, math.inf),
        "nfes": (1, MOST_STEPS),
        "hottest": (0, 1e6),
        "corrector": (0, 1e6),
    },
    "cadd_table4": {"length": LENGTH, "draws": (1, 1000)},
    "cadd_table12": {"levels": MASKED, "examples": (0, 100)},
    "cadd_both": {"levels": MASKED},
}
"""Least and most of single numbers, and of those in lists, which must not be empty."""


def preset(name: str, overrides: tuple[str, ...] = ()) -> ReproduceConfig:
    """`paper` (the defaults), `nano`, or a YAML file.

    Raises:
        CrocodilError: no such preset or file, or a key or value that the configuration does not have.
    """
    # a figure's name has a dash where its section has none
    overrides = tuple(
        "=".join([key.replace("-", "_"), *rest]) for key, *rest in (one.split("=", 1) for one in overrides)
    )
    if name == "paper":
        return load_config(ReproduceConfig, None, overrides)
    file = PRESETS / f"{name}.yaml"
    if not file.is_file() and not Path(name).is_file():
        raise CrocodilError(f"no preset {name!r}: give paper, nano or a YAML file")
    return load_config(ReproduceConfig, str(file) if file.is_file() else name, overrides)
