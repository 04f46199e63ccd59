"""Registers as a value: texts written into K ordered vectors, to slice, mix, save and load.

Shape letters: B texts, W windows of all texts together, K registers, D register width.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from crocodil.atomic import write_atomically
from crocodil.errors import CrocodilError
from crocodil.registers.geometry import mix, normalise

FORMAT = "crocodil-registers-1"


@dataclass(frozen=True, eq=False)
class Registers:
    """The registers of B texts. A text longer than the model's window has several windows, one after another.

    Registers are ordered: the first ones carry most, so `registers.first(8)` is a coarser description of the same
    texts. They belong to the encoder that wrote them; another model's decoder refuses them.
    """

    values_WKD: torch.Tensor
    """(W, K, D) float32, each register of norm √D."""
    windows: tuple[int, ...]
    """Windows of each of the B texts; they sum to W."""
    encoder: str
    """Fingerprint of the encoder."""

    def __post_init__(self) -> None:
        values = self.values_WKD
        if not isinstance(self.windows, tuple) or not isinstance(self.encoder, str):
            raise CrocodilError(
                "registers name the windows of each text in a tuple, and their encoder in a string"
            )
        if not isinstance(values, torch.Tensor) or values.ndim != 3:
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise CrocodilError(f"registers must be a tensor of shape (windows, K, D), not {shape}")
        if not all(type(n) is int and n > 0 for n in self.windows) or sum(self.windows) != len(values):
            raise CrocodilError(
                f"registers hold {len(values)} windows, the texts name {self.windows}; every window belongs to one text"
            )
        if not values.is_floating_point() or values.dtype.itemsize < 2:
            raise CrocodilError(f"registers must be floating point of 16 bits or more, not {values.dtype}")
        if not torch.isfinite(values.float()).all():
            raise CrocodilError(
                "registers contain NaN or infinity; encode the text again or mend what changed them"
            )

    def __len__(self) -> int:
        """B, the number of texts."""
        return len(self.windows)

    def __getitem__(self, texts: int | slice) -> Registers:
        """Some of the texts: `registers[0]`, `registers[2:5]`."""
        if not isinstance(texts, slice):
            texts = operator.index(texts)
        chosen = range(len(self))[texts if isinstance(texts, slice) else slice(texts, (texts + 1) or None)]
        if isinstance(texts, int) and len(chosen) != 1:
            raise IndexError(f"text {texts} of {len(self)}")
        starts = [sum(self.windows[:i]) for i in range(len(self) + 1)]
        rows = [row for i in chosen for row in range(starts[i], starts[i + 1])]
        return replace(self, values_WKD=self.values_WKD[rows], windows=tuple(self.windows[i] for i in chosen))

    @property
    def k(self) -> int:
        """Registers of a window."""
        return self.values_WKD.shape[1]

    @property
    def D(self) -> int:
        """Width of a register."""
        return self.values_WKD.shape[2]

    def first(self, k: int) -> Registers:
        """Only the first k registers of every window, 1 ≤ k ≤ K."""
        if type(k) is not int or not 1 <= k <= self.k:
            raise CrocodilError(
                f"k must be a whole number between 1 and the {self.k} registers at hand, not {k!r}"
            )
        return replace(self, values_WKD=self.values_WKD[:, :k])

    def normalised(self) -> Registers:
        """Every register brought (back) to norm √D."""
        values = self.values_WKD.double()  # whose squares neither vanish nor overflow
        if bool((values.norm(dim=-1) < 1e-100).any()):
            raise CrocodilError("a register of norm 0 has no direction and cannot be normalised")
        return replace(self, values_WKD=normalise(values).to(self.values_WKD.dtype))

    def mix(self, other: Registers, alpha: float) -> Registers:
        """(1 − α) self + α other, register by register, renormalised (App. D, Fig. 8)."""
        if not isinstance(other, Registers):
            raise CrocodilError(f"registers are mixed with registers, not with {type(other).__name__}")
        if self.encoder != other.encoder:
            raise CrocodilError("registers of two encoders cannot be mixed; encode both texts with one model")
        if self.values_WKD.shape != other.values_WKD.shape or self.windows != other.windows:
            raise CrocodilError(
                f"registers of shapes {tuple(self.values_WKD.shape)} and {tuple(other.values_WKD.shape)} cannot be "
                "mixed; take texts with as many windows and as many registers"
            )
        return replace(self, values_WKD=mix(self.values_WKD, other.values_WKD, alpha))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically."""
        from safetensors.torch import save

        about = {"format": FORMAT, "encoder": self.encoder, "windows": json.dumps(self.windows)}
        data = save({"values": self.values_WKD.detach().cpu().contiguous()}, metadata=about)
        write_atomically(Path(path), data)

    @staticmethod
    def load(path: str | Path) -> Registers:
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT or list(file.keys()) != ["values"]:
                    raise CrocodilError("it holds no crocodil registers")
                return Registers(
                    file.get_tensor("values"), tuple(json.loads(about["windows"])), about["encoder"]
                )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise CrocodilError(
                f"{path} cannot be read as registers ({error}); give a file that Registers.save wrote"
            ) from None


def concatenate(parts: Sequence[Registers]) -> Registers:
    """Texts of several records in one, in order; all from one encoder with as many registers."""
    if not parts:
        raise CrocodilError("no registers to concatenate")
    if len({(p.encoder, p.k, p.D) for p in parts}) > 1:
        raise CrocodilError("registers of different encoders, numbers or widths cannot be put together")
    return Registers(
        torch.cat([p.values_WKD for p in parts]), tuple(w for p in parts for w in p.windows), parts[0].encoder
    )
