"""What a report shows. Everything is measured before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A text to encode and the name it is shown under."""

    file: str
    text: str


@dataclass(frozen=True)
class Decoding:
    """How texts are encoded and decoded; what is left out is the model's choice."""

    nfe: tuple[int, ...]
    """Demasker evaluations for each window; every text is decoded once for each number."""
    k: int | None = None
    block_size: int | None = None
    length: int | None = None
    temperature: float = 0.0
    seed: int = 0
    truncate: bool = False
    """Cut a text that is longer than the window, instead of encoding it window by window."""


@dataclass(frozen=True)
class Reconstruction:
    """One text at one NFE."""

    file: str
    source: str
    """The text that was encoded: the file, or its beginning where it was truncated."""
    text: str
    cer: float
    nfe: int
    """Demasker evaluations for each window."""
    seconds: float
    """Wall time of encoding and decoding this text."""


@dataclass(frozen=True)
class GridRow:
    """One line of the table block size × NFE, over texts of one window each."""

    block_size: int
    nfe: int
    windows: int
    cer: float
    """Mean over windows, as in the paper."""
    corpus_cer: float
    """Edits over characters, all windows together."""
    exact: float
    """Share of windows that came back to the last character."""
    seconds: float
    """Wall time of decoding, divided by the windows."""
    paper_cer: float | None
    """The paper's value in the corresponding line of its Table 1."""


@dataclass(frozen=True)
class Token:
    """One position of a window."""

    text: str
    """Empty where the token stands for no text."""
    step: int
    """The step that revealed it, from 1; 0 where it was given."""
    kind: str
    """`text`, `start`, `end` (the first EOS), `tail` (what stands after it), or `masked` in the middle of a run."""


@dataclass(frozen=True)
class Demasking:
    """How one window was written."""

    file: str
    tokens: tuple[Token, ...]
    nfe: int
    block_size: int


@dataclass(frozen=True)
class Written:
    """One text out of noise. The three counts answer different questions and are never added."""

    text: str
    seed: int
    nfe: int
    """Demasker evaluations until the text was complete."""
    nfe_paper: float
    """The same, plus latent steps by the ratio of parameters, as the paper counts."""
    nfe_wall: float
    """The same, plus the time for registers in units of the measured time of a demasker evaluation."""
    seconds: float
    """Wall time of the batch that it was written in."""


@dataclass(frozen=True)
class Synthesis:
    """Texts out of noise, and how they were made."""

    method: str
    nfe: int
    """Demasker evaluations of a text at most."""
    latent_steps: int
    refresh_steps: int
    temperature: float
    refreshes: tuple[int, ...]
    """Steps after which registers were drawn anew."""
    texts: Sequence[Written]


@dataclass(frozen=True)
class ModelFacts:
    """What a model is."""

    name: str
    path: str
    window: int
    """Tokens of a window at most, BOS and EOS among them."""
    K: int
    """Registers of a window at most; 0 for a demasker without registers."""
    D: int
    """Width of a register."""
    vocabulary: int
    """Rows of the token table."""
    encoder_parameters: int
    demasker_parameters: int
    denoiser_parameters: Mapping[str, int]
    """Of each denoiser it has, by its kind: `unconditional`, `conditional`."""
    bytes: int
    """Size of the weights on disk."""
    fingerprint: str
    """Of the encoder: whose registers these are; empty without registers."""
    licence: str
    """As the model card states it, or empty."""
    trained_steps: int | None
    """Optimiser steps of the training that made it, where the folder says so."""


@dataclass(frozen=True)
class Report:
    """A page's worth."""

    title: str
    model: ModelFacts
    k: int
    """Registers that were exposed."""
    machine: str
    """What the times were taken on."""
    version: str
    """Of crocodil."""
    reconstructions: Sequence[Reconstruction] = ()
    """File by file, and NFE by NFE within a file."""
    grid: Sequence[GridRow] = ()
    grid_length: int = 0
    """Tokens of the grid's windows at most."""
    demasking: Demasking | None = None
    synthesis: Synthesis | None = None
