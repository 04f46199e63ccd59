"""What can be scored: any function from prompts to answers; here, a crocodil model as one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from crocodil.errors import CrocodilError
from crocodil.model import Model

Sampler = Callable[[Sequence[str], int, int], Sequence[Sequence[str | None]]]
"""(prompts, n, seed) to n answers for each prompt, without the prompt; None where there is no answer. The same arguments
should give the same answers, or else a run that goes on differs from one that was never stopped."""

TAKEN = {"n", "prompt", "template", "seed"}
PEEKS = 1024
"""Values of a tensor that `identity` looks at."""


def crocodil_sampler(model: Model, **options: Any) -> Sampler:
    """A model's continuations of prompts; answer i to a prompt is that of seed + i.

    A prompt that does not fit the window has no answers, which counts as not passed.

    Args:
        options: of `crocodil.synthesis.generate`: method, nfe, length, temperature, …

    Raises:
        CrocodilError: options that are the sampler's own.
    """
    if wrong := sorted(TAKEN & options.keys()):
        raise CrocodilError(f"{wrong[0]} is what the sampler is asked for; leave it out")
    length = model.resolve_length(options.get("length"))

    def sample(prompts: Sequence[str], n: int, seed: int) -> list[list[str | None]]:
        answers: list[list[str | None]] = []
        for prompt in prompts:
            # BOS and one position to write
            if len(model.vocabulary.encode(prompt, limit=length)) + 2 > length:
                answers.append([None] * n)
                continue
            texts = [one.text for one in model.generate(n, prompt=prompt, seed=seed, **options)]
            answers.append([_behind(prompt, text) for text in texts])
        return answers

    return sample


def identity(model: Model, **options: Any) -> str:
    """A name for a model and how it is asked, which changes when its weights do: for `passk.score`'s label."""
    digest = hashlib.blake2b(model.fingerprint.encode(), digest_size=8)
    modules: list[torch.nn.Module] = [model.augmented or model.demasker]
    modules += [one.denoiser for one in (model.denoisers.unconditional, model.denoisers.conditional) if one]
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            # training moves every weight, so a few of each tensor tell
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // PEEKS)]
            digest.update(some.float().cpu().contiguous().numpy().tobytes())
    return f"{model.name} {digest.hexdigest()} {sorted(options.items())}"


def _behind(prompt: str, text: str) -> str:
    if not text.startswith(prompt):
        raise CrocodilError(
            f"a text does not begin with its prompt {prompt[:40]!r}: is the tokenizer byte-exact?"
        )
    return text[len(prompt) :]
