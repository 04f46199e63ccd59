"""crocodil: texts as continuous registers, and back, with a guided masked diffusion language model.

    >>> import crocodil
    >>> registers = crocodil.encode("def double(x):\\n    return 2 * x\\n")
    >>> crocodil.decode(registers)[0]
    'def double(x):\\n    return 2 * x\\n'

The functions here use the bundled nano model unless another is given; `crocodil.load` gives one to keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crocodil.errors import CrocodilError

if TYPE_CHECKING:
    from crocodil.model import Model
    from crocodil.registers.registers import Registers
    from crocodil.synthesis import Generated

__version__ = "0.1.0"
__all__ = [
    "CrocodilError", "Generated", "Model", "Registers", "autoencode", "decode", "encode", "generate", "interpolate",
    "load", "vary",
]  # fmt: skip


def load(
    path_or_repo: str = "bundled",
    device: str | None = None,
    denoisers: Sequence[str | Path] = (),
    adapters: str | Path | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a model: the bundled one, a folder, or a hub id. See `crocodil.model.load`."""
    from crocodil.model import load

    return load(path_or_repo, device, denoisers, adapters, dtype)


@lru_cache(maxsize=2)
def _default(name: str = "bundled") -> Model:
    return load(name)


def _chosen(model: Model | None, name: str = "bundled") -> Model:
    if model is None:
        return _default(name)
    if not callable(getattr(model, "encode", None)) or isinstance(model, str):
        raise CrocodilError(f"model must be a loaded model, as crocodil.load gives it, not {model!r}")
    return model


def encode(
    texts: str | Sequence[str],
    k: int | None = None,
    *,
    truncate: bool = False,
    split: bool = False,
    model: Model | None = None,
) -> Registers:
    """Write texts into registers, (windows, k, D), each of norm √D. See `Model.encode`."""
    return _chosen(model).encode(texts, k, truncate=truncate, split=split)


def decode(registers: Registers, *, model: Model | None = None, **decoding: Any) -> list[str]:
    """Write registers back into text; options nfe, block_size, length, temperature, …: see `Model.decode`."""
    return _chosen(model).decode(registers, **decoding)


def autoencode(
    texts: str | Sequence[str],
    k: int | None = None,
    *,
    truncate: bool = False,
    model: Model | None = None,
    **decoding: Any,
) -> list[str]:
    """Encode and decode (CRoCoDiL Alg. 6); long texts go window by window. See `Model.autoencode`."""
    return _chosen(model).autoencode(texts, k, truncate=truncate, **decoding)


def interpolate(
    a: str,
    b: str,
    alphas: Iterable[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    k: int | None = None,
    *,
    model: Model | None = None,
    **decoding: Any,
) -> list[str]:
    """Texts on the way from a to b in register space (App. D, Fig. 8). See `Model.interpolate`."""
    return _chosen(model).interpolate(a, b, alphas, k, **decoding)


def generate(n: int = 1, *, model: Model | None = None, **options: Any) -> list[Generated]:
    """New texts out of noise (CRoCoDiL Alg. 2, 3); options method, nfe, length, prompt, template, …: see
    `crocodil.synthesis.generate`. With method "cadd" the bundled model is the one with token latents, `bundled/cadd`."""
    name = "bundled/cadd" if options.get("method") == "cadd" else "bundled"
    return _chosen(model, name).generate(n, **options)


def vary(
    text: str, strength: float = 0.5, n: int = 1, *, model: Model | None = None, **options: Any
) -> list[Generated]:
    """Texts near a given one: registers noised to level `strength`, denoised, decoded. See `crocodil.synthesis.vary`."""
    return _chosen(model).vary(text, strength, n, **options)


def __getattr__(name: str) -> Any:
    # torch is imported with the first thing that needs it, so that `crocodil --help` does not wait for it
    if name == "Model":
        from crocodil.model import Model

        return Model
    if name == "Registers":
        from crocodil.registers.registers import Registers

        return Registers
    if name == "Generated":
        from crocodil.synthesis import Generated

        return Generated
    raise AttributeError(f"module 'crocodil' has no attribute {name!r}")
