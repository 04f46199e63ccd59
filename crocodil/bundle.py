"""A model as a folder: `encoder/`, `demasker/`, `tokenizer/` and an index, each part loadable by itself.

    config.json      what the parts are and that they belong together
    tokenizer/       the one vocabulary
    demasker/        LLaDA in the released layout, and guide.safetensors (START, END, P) beside it
    encoder/         a sentence-transformers folder, and registers.safetensors (the suffix embeddings) beside it
    README.md        model card

Only safetensors and JSON are read; nothing is unpickled and no code of the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crocodil.demasker.llada import LLaDA
from crocodil.demasker.weights import save_llada
from crocodil.text.vocabulary import Vocabulary

FORMAT = 1
INDEX = "config.json"


def save_unguided(folder: Path, llada: LLaDA, vocabulary: Vocabulary) -> None:
    """Write a demasker without registers into an empty folder (a temporary one that is published as a whole)."""
    save_llada(llada, folder / "demasker")
    vocabulary.save(folder / "tokenizer")
    _write_json(folder / INDEX, {"format": FORMAT, "kind": "unguided", "vocabulary": vocabulary.fingerprint})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
