"""Read, split and tokenise the texts of a training before GPUs are rented for it.

    python recipes/prepare_texts.py --config recipes/configs/llada-8b-texts.yaml

One process, on all cores. When it was stopped, however that was, the same command goes on behind the last piece. A
training with the same `data` (its `lengths`, `short_fraction` and `cache` apart) and the same vocabulary opens what this
has written; the folder `data.cache` may be copied to where it trains, and the source need not be there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from crocodil.bundle import resolve
from crocodil.demasker.llada import LLaDAConfig
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.shards import read_json
from crocodil.text.data import DataConfig, Texts
from crocodil.text.prepare import prepared
from crocodil.text.vocabulary import Vocabulary
from crocodil.training.config import parse_arguments


@dataclass(frozen=True)
class TextsRecipe:
    """Which texts, in whose tokens."""

    demasker: str = "bundled"
    """Whose vocabulary: a LLaDA checkpoint (config.json and its tokenizer suffice), or any model folder of ours."""
    data: DataConfig = field(default_factory=lambda: DataConfig(streaming=True))
    """As in the configuration of the training."""
    verify: bool = False
    """Compare every byte that is there with its digest, and make again what is damaged."""

    def __post_init__(self) -> None:
        if not self.data.streaming:
            raise CrocodilError("data.streaming is false; texts that fit into memory need no preparation")


def main() -> None:
    config = parse_arguments(TextsRecipe, None, __doc__ or "").config
    vocabulary, source = open_vocabulary(config.demasker), config.data.text_source
    prepared(source, vocabulary, config.data.cache, verify=config.verify)
    folder = Path(config.data.cache) / source.name(vocabulary)
    for name, windows in zip(
        ("train on", "hold out"), Texts(config.data).windows(vocabulary, seed=0), strict=True
    ):
        size = (windows.tokens.ids_T.nbytes + windows.tokens.offsets.nbytes) / 2**30
        texts, tokens = len(windows.tokens), len(windows.tokens.ids_T)
        print(f"to {name}: {texts:,} texts, {tokens:,} tokens, {len(windows):,} windows, {size:,.2f} GiB")
    print(f"vocabulary {vocabulary.fingerprint}, in {folder}")


def open_vocabulary(name: str) -> Vocabulary:
    """The vocabulary that a training with this demasker has. No weight is read."""
    folder = resolve(name, ["*.json"])
    if (folder / "tokenizer").is_dir():
        return Vocabulary.load(folder / "tokenizer")
    file = folder / "config.json"
    config = LLaDAConfig.from_dict(read_json(file), str(file))
    return Vocabulary.load(
        folder, eos_id=config.eos_token_id, mask_id=config.mask_token_id, size=config.vocab_size
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
