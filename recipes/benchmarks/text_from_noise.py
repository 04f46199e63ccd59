"""P3: a text out of noise with few demasking steps under registers, against the base sampler's one token a step.

Ours is `Model.generate` as anyone calls it: DDIM, half of the steps, a look at what is written, DDIM under that
condition, the other half. The base is the same demasker without registers, the same call with another method.

N text positions, K registers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from crocodil.denoiser.weights import TrainedDenoiser, save_denoiser
from crocodil.sampler.demask import Step
from crocodil.text.corpus import load_documents
from crocodil.text.vocabulary import Vocabulary, train_bpe
from recipes.benchmarks.harness import Bench, Benchmark, Row, Unequal, compare
from recipes.benchmarks.networks import denoiser, guided_demasker, register_encoder
from recipes.benchmarks.sizes import SynthesisSizes

if TYPE_CHECKING:
    from crocodil.model import Model

OURS, BASE = "conwithindisc", "mdm"
PAPER_RATIO = 400e6 / 8e9
"""Price of a denoiser's step in evaluations of the demasker, by parameters."""
LATENT_AIM = 2.8
"""Evaluations that both draws of registers together may last."""
FILE_BYTES = 20_000
"""Larger files are passed over when the tokenizer is trained."""


def vocabulary_of(sizes: SynthesisSizes) -> Vocabulary:
    """A tokenizer of at most as many tokens as the demasker has rows, trained on files of the interpreter."""
    documents = islice(load_documents("stdlib", max_bytes=FILE_BYTES), sizes.vocabulary_texts)
    return train_bpe([document.text for document in documents], sizes.network.vocab_size)


def model_of(
    sizes: SynthesisSizes, vocabulary: Vocabulary, K: int, folder: Path, device: torch.device
) -> Model:
    """A model with both denoisers, which it finds in `folder` as in any other case."""
    from crocodil.autoencoder import Autoencoder
    from crocodil.model import Model

    shape = sizes.denoiser
    encoder = register_encoder(vocabulary, K, shape.D, sizes.encoder_layers)
    demasker = guided_demasker(sizes.network, K, sizes.length, device, shape.D)
    folders = {False: folder / "unconditional", True: folder / "conditional"}
    model = Model(
        Autoencoder(encoder.to(device), demasker),
        vocabulary,
        sizes.length,
        given_denoisers=tuple(folders.values()),
    )
    for conditional, path in folders.items():
        path.mkdir(parents=True)
        made = denoiser(shape, K, "cpu", conditional)
        save_denoiser(path, TrainedDenoiser(made, model.fingerprint, largest_offset=0.2))
    return model


def options_of(sizes: SynthesisSizes, method: str, K: int) -> dict[str, Any]:
    """What `generate` is called with; no text ends before its window does."""
    options = {"method": method, "min_length": sizes.length}
    if method == BASE:
        return options | {"nfe": sizes.base_steps}
    return options | {
        "nfe": sizes.nfe,
        "k": K,
        "latent_steps": sizes.latent_steps,
        "refresh_steps": sizes.refresh_steps,
    }


def check(model: Model, sizes: SynthesisSizes, K: int) -> None:
    """Both sides write the whole window, and every network is asked as often as the row says."""
    wanted = {
        OURS: {
            "demasker": sizes.nfe,
            "unconditional denoiser": sizes.latent_steps,
            "encoder": 1,
            "conditional denoiser": sizes.refresh_steps,
        },
        BASE: {"demasker": sizes.base_steps},
    }
    for method, calls in wanted.items():
        found, last = _calls(model, options_of(sizes, method, K))
        if found != calls:
            raise Unequal(f"{method}: {dict(found)} calls, wanted {calls}")
        if bool(last.is_masked_BN.any()):
            raise Unequal(
                f"{method}: {int(last.is_masked_BN.sum())} of {sizes.length} positions are not written"
            )


def _calls(model: Model, options: dict[str, Any]) -> tuple[Counter[str], Step]:
    """How often each network is asked for one text, and how the text stands after its last step."""
    denoisers = model.denoisers
    assert denoisers.unconditional is not None and denoisers.conditional is not None
    networks = {
        "demasker": model.autoencoder.demasker.projection,  # once in every evaluation, without registers too
        "encoder": model.autoencoder.encoder,
        "unconditional denoiser": denoisers.unconditional.denoiser,
        "conditional denoiser": denoisers.conditional.denoiser,
    }
    calls: Counter[str] = Counter()
    steps: list[Step] = []
    hooks = [
        network.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, network in networks.items()
    ]
    try:
        model.generate(**options, on_step=steps.append)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, steps[-1]


def measure(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes.synthesis
    N = sizes.length
    latent = PAPER_RATIO * (sizes.latent_steps + sizes.refresh_steps)
    vocabulary = vocabulary_of(sizes)
    with TemporaryDirectory() as folder:
        models = {
            K: model_of(sizes, vocabulary, K, Path(folder, str(K)), bench.device) for K in sizes.registers
        }
        for K, model in models.items():
            check(model, sizes, K)
        for K, model in models.items():
            base, ours = (partial(model.generate, **options_of(sizes, method, K)) for method in (BASE, OURS))
            first = K == sizes.registers[0]
            yield compare(base, ours, bench).row(
                f"N = {N}, {sizes.nfe} steps, K = {K}, one refresh; {sizes.base_steps} of the base's {N} steps timed",
                floor=N / (sizes.nfe + latent) if first else None,
                aim=0.9 * N / (sizes.nfe + LATENT_AIM) if first else None,
                ideal=_ideal(model, sizes, K),
                times=N / sizes.base_steps,
            )


def _ideal(model: Model, sizes: SynthesisSizes, K: int) -> float:
    """Operations of the base's N steps over those of ours."""
    from crocodil.metrics.cost import demasker_flops, denoiser_flops, encoder_flops  # imports transformers

    denoisers, N = model.denoisers, sizes.length
    assert denoisers.unconditional is not None and denoisers.conditional is not None
    config = model.autoencoder.demasker.llada.config
    # a step asks for what is still masked: all of the window at first, one share of it at last
    base = sum(demasker_flops(config, [N], [0], masked) for masked in range(1, N + 1))
    steps = sum(demasker_flops(config, [N], [K + 2], N - N * done // sizes.nfe) for done in range(sizes.nfe))
    latent = sizes.latent_steps * denoiser_flops(denoisers.unconditional.config, 1, K)
    latent += sizes.refresh_steps * denoiser_flops(denoisers.conditional.config, 1, K)
    look = encoder_flops(model.autoencoder.encoder.backbone.config, [N], [K])
    return base / (steps + latent + look)


BENCHMARK = Benchmark(
    "P3",
    "a text out of noise",
    "the base sampler, one token a step, same demasker",
    "the whole window is written, by as many evaluations, DDIM steps and refreshes as the row says",
    measure,
)
