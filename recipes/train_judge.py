"""Train the judge: a small causal language model that scores generated texts (Gen-PPL) and gives their features (MAUVE).

    accelerate launch recipes/train_judge.py --config recipes/configs/nano-judge.yaml

It shares the texts of the generators and nothing else: another network (a plain Llama of transformers), another
vocabulary, so that it does not prefer what they find easy. The export opens with `AutoModelForCausalLM` and
`AutoTokenizer`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from crocodil.bundle import check_values
from crocodil.errors import CrocodilError, one_line_errors
from crocodil.metrics.cost import encoder_flops
from crocodil.shards import save_tensors
from crocodil.text.data import DataConfig, Texts
from crocodil.text.vocabulary import Vocabulary, train_bpe
from crocodil.text.windows import FRAME, Sample, pack
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.config import parse_arguments
from crocodil.training.deal import deal
from crocodil.training.engine import Engine
from crocodil.training.limits import check_batch, check_rows, require_at_least
from crocodil.training.loop import LoopConfig
from crocodil.training.ranks import total
from crocodil.training.run import Run, require_room
from crocodil.training.run_lock import run_lock
from crocodil.training.start import find_start

# Nothing else of its config is written, because other versions of transformers have other keys.
WRITTEN = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias",
    "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class JudgeShape:
    """Sizes of the judge; a Llama with tied embeddings otherwise."""

    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 576
    rope_theta: float = 1000.0
    vocabulary: int = 4096
    """Rows of the table; a byte-level BPE of this size is trained on the training texts."""

    def __post_init__(self) -> None:
        require_at_least(1, self, *(f.name for f in fields(self)), section="shape.")
        # rotary positions turn pairs of a head's channels
        if self.hidden_size % (2 * self.num_attention_heads):
            raise CrocodilError(
                f"shape: hidden_size {self.hidden_size} must be a multiple of 2 · num_attention_heads "
                f"{self.num_attention_heads}"
            )


@dataclass(frozen=True)
class JudgeRecipe(LoopConfig):
    """Everything that says what is trained. Where it runs is said in launch/."""

    run: str = "runs/judge"
    """Folder of checkpoints, metrics and the export."""
    shape: JudgeShape = field(default_factory=JudgeShape)
    data: DataConfig = field(default_factory=lambda: DataConfig(lengths=(256,)))
    """With the `source`, `held_out` and `split_seed` of the generators, whose held-out texts it must not know either."""
    batch_size: int = 32
    row_tokens: int = 4096
    """Window tokens of a micro-batch."""
    export_dtype: Literal["bfloat16", "float16", "float32"] = "float32"
    """Of the weights on disk; transformers opens them in float32 unless told otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rows(self)


@dataclass(frozen=True)
class WholeTexts:
    """`BOS text EOS` of B texts, one a row."""

    ids_BN: torch.Tensor
    """Filled up with EOS to the longest."""
    lengths_B: torch.Tensor
    """Tokens of each, BOS and one EOS included."""

    @staticmethod
    def of(samples: list[Sample], vocabulary: Vocabulary) -> WholeTexts:
        lengths = [len(sample.text_ids) + FRAME for sample in samples]
        rows = [[vocabulary.bos_id, *sample.text_ids, vocabulary.eos_id] for sample in samples]
        rows = [row + [vocabulary.eos_id] * (max(lengths) - len(row)) for row in rows]
        return WholeTexts(torch.tensor(rows), torch.tensor(lengths))

    def to(self, device: torch.device | str) -> WholeTexts:
        return WholeTexts(self.ids_BN.to(device), self.lengths_B.to(device))


class Surprise(NamedTuple):
    """What the judge says of B texts, a sum over their tokens: text and the first EOS, not BOS and not the tail."""

    total: torch.Tensor
    """Σ −log p(token | what stands before it) in nats, a scalar with gradient."""
    tokens: torch.Tensor
    """Number of tokens in the sum."""


class Judge(nn.Module):
    """A causal language model of transformers as a training module."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: WholeTexts) -> Surprise:
        """Sum and count of −log p. What fills a row up stands behind the text, where no scored token looks."""
        inputs_BN, targets_BN = texts.ids_BN[:, :-1], texts.ids_BN[:, 1:]
        places_N = torch.arange(inputs_BN.shape[1], device=inputs_BN.device)
        is_scored_BN = places_N < texts.lengths_B[:, None] - 1
        hidden_BNE = self.model.model(input_ids=inputs_BN, use_cache=False).last_hidden_state
        logits_RV = self.model.lm_head(hidden_BNE[is_scored_BN])
        nats = F.cross_entropy(logits_RV.float(), targets_BN[is_scored_BN], reduction="sum")
        return Surprise(nats, is_scored_BN.sum())


def main() -> None:
    arguments = parse_arguments(JudgeRecipe, None, __doc__ or "")
    config = arguments.config
    ranks = accelerator(config)
    with run_lock(Path(config.run)):
        train(config, ranks, arguments.resume)
    leave(ranks)


def train(config: JudgeRecipe, ranks: Accelerator, resume: str | None) -> None:
    torch.manual_seed(config.seed)

    check_batch(config.batch_size, ranks.num_processes)

    # Texts and vocabulary, both from the training side alone.
    texts = Texts(config.data)
    vocabulary = train_bpe(texts.sample(), config.shape.vocabulary)
    model = fresh_judge(config.shape, vocabulary, max(config.data.lengths))
    windows, held_out = texts.windows(vocabulary, config.seed)

    steps_per_epoch = windows.batches(config.batch_size)
    validation = [held_out.sample(int(i), 0) for i in held_out.order(0)[: config.validation_texts]]
    order = lru_cache(maxsize=2)(windows.order)
    values: dict[str, float] = {}

    # Engine, and where it goes on.
    corpus = windows.tokens.digest
    start = find_start(config, resume, corpus)
    engine = Engine(ranks, Judge(model), config.optimiser, config.steps, ema=config.ema)
    if start.checkpoint is not None:
        engine.load(start.checkpoint)
    with Run(config, ranks, start, corpus) as run:
        require_room(config, engine)
        run.say(f"{len(windows):,} training windows, {len(held_out):,} held out, from step {start.step}")
        for step in range(start.step, config.steps):
            # 1. The texts of this step, the same whatever the ranks: a pure function of (seed, step).
            epoch, batch = divmod(step, steps_per_epoch)
            chosen = order(epoch)[batch * config.batch_size : (batch + 1) * config.batch_size]
            samples = [windows.sample(int(i), epoch) for i in chosen]
            rows = deal(pack([s.length for s in samples], config.row_tokens), ranks.num_processes)

            # 2. This rank's share, forward and backward; every token of the global batch weighs the same.
            run.beat(step, "forward and backward")
            batches = [
                WholeTexts.of([samples[i] for i in row], vocabulary) for row in rows[ranks.process_index]
            ]
            scored = sum(len(sample.text_ids) + 1 for sample in samples)
            summed = torch.zeros((), dtype=torch.float64, device=ranks.device)
            for surprise in engine.accumulate(batches, scored, step, run.guard.ceiling):
                summed += surprise.total.detach()

            # 3. Step.
            run.beat(step, "update")
            update = engine.update()
            (nats,) = total([float(summed)], ranks.device)

            # 4. Tell.
            step += 1
            work = (scored, cost(model.config, samples))
            run.did(step, {"loss": nats / scored}, update, engine, work, [s.id for s in samples])

            # 5. Validate.
            if run.due(step, config.validate_every):
                with run.aside(step, "validation"), engine.averaged() as module:
                    values = validate(module, validation, vocabulary)
                    run.measured(step, values)

            # 6. Save.
            if run.save(engine, step):
                return

        def write(directory: Path, module: Judge) -> None:
            held_out = values or validate(module, validation, vocabulary)  # resumed when it was done
            made = {"recipe": "train_judge", "steps": run.start.step, "config": asdict(config)}
            found = {"corpus": corpus, "vocabulary": vocabulary.fingerprint, "held_out": held_out}
            save_judge(directory, module.model, vocabulary, config.export_dtype, made | found)

        run.export(engine, write)


def fresh_judge(shape: JudgeShape, vocabulary: Vocabulary, longest: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of these sizes, by torch's generator."""
    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        max_position_embeddings=longest,
        initializer_range=shape.hidden_size**-0.5,  # 0.02, the default, is meant for widths near 2500
        tie_word_embeddings=True,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        # no pad_token_id: the row of EOS would begin at zero and never be trained
    )
    return LlamaForCausalLM(config)


def cost(config: LlamaConfig, samples: list[Sample]) -> float:
    """FLOPs of forward and backward (three forwards) of these texts, what fills rows up left out."""
    lengths = [len(sample.text_ids) + 1 for sample in samples]
    head = 2 * config.hidden_size * config.vocab_size * sum(lengths)
    return 3 * (encoder_flops(config, lengths, [0] * len(lengths)) + head)  # the same layers as Qwen3's


def validate(module: Judge, samples: list[Sample], vocabulary: Vocabulary) -> dict[str, float]:
    """How surprising held-out texts are: for each token in nats and as perplexity, for each byte in bits.

    Only the last compares to a judge of another vocabulary.
    """
    device = next(module.parameters()).device
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(samples), 16):
            surprise = module(WholeTexts.of(samples[i : i + 16], vocabulary).to(device))
            nats, tokens = nats + float(surprise.total), tokens + int(surprise.tokens)
    size = sum(len(vocabulary.decode_bytes(sample.text_ids)) for sample in samples)
    return {
        "nats_per_token": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
    }


def save_judge(
    folder: Path, model: LlamaForCausalLM, vocabulary: Vocabulary, dtype: str, trained: dict[str, Any]
) -> None:
    """Write a folder that transformers opens, into an empty one (a temporary one that is published as a whole).

    Args:
        dtype: of the weights on disk.
        trained: how it was made, for the record: written to training.json and README.md.

    Raises:
        CrocodilError: see `check_values`.
    """
    check_values(model, getattr(torch, dtype))
    # the head is the embedding, and transformers ties them again
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_tensors(weights, folder, dtype=getattr(torch, dtype))
    config = {key: value for key, value in model.config.to_dict().items() if key in WRITTEN}
    # 16 bits are for the disk: a score is computed in float32
    write_json(folder / "config.json", config | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"})
    vocabulary.save(folder)
    # a text that spells a special token is plain text, as it was in training
    file = folder / "tokenizer_config.json"
    write_json(file, json.loads(file.read_text("utf-8")) | {"split_special_tokens": True})
    write_json(folder / "training.json", trained)
    (folder / "README.md").write_text(card(model, vocabulary, trained), encoding="utf-8")


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def card(model: LlamaForCausalLM, vocabulary: Vocabulary, trained: dict[str, Any]) -> str:
    """A model card: what it is, how it was made, how to use it, what it reaches on the texts held out."""
    config, held_out = model.config, trained["held_out"]
    window, millions = config.max_position_embeddings, sum(p.numel() for p in model.parameters()) / 1e6
    return f"""---
library_name: transformers
---

# A judge of generated texts

A small causal language model, held apart from the models whose texts it judges: their training texts, but a network
and a vocabulary of its own. It gives Gen-PPL and the features of MAUVE. Scores of another judge are not comparable.

| | |
| --- | --- |
| network | Llama, {config.num_hidden_layers} layers, width {config.hidden_size}, {millions:,.1f} M parameters |
| vocabulary | {vocabulary.size:,} tokens, fingerprint `{vocabulary.fingerprint}` |
| window | {window} tokens: BOS, up to {window - FRAME} of text, EOS |
| held-out texts | {held_out["nats_per_token"]:.3f} nats a token, {held_out["bits_per_byte"]:.3f} bits a byte |

`recipes/train_judge.py`, {trained["steps"]:,} optimiser steps; every setting is in `training.json`. BOS comes first in
every window, the first EOS after the text is scored, and the tokenizer adds neither by itself.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("PATH"), AutoModelForCausalLM.from_pretrained("PATH")
ids = [tokenizer.bos_token_id, *tokenizer.encode("def double(x):\\n    return 2 * x\\n"), tokenizer.eos_token_id]
ids = torch.tensor([ids])
nats_per_token = model(ids, labels=ids).loss  # of text and EOS
```
"""


if __name__ == "__main__":
    with one_line_errors():
        main()
