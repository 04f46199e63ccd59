"""Sampling from an engine under ZeRO-3: weights gathered at every forward, or once for the whole sample (P12).

    DS_ACCELERATOR=cpu accelerate launch --config_file launch/zero3_cpu2.yaml recipes/benchmarks/gather_once.py \\
        '{"sizes": …, "pairs": 5}'

`stages.py` launches it and reads the line of JSON that rank 0 prints: seconds of one sample, in turn.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # accelerate runs it as a file

from crocodil.attention import Segments
from crocodil.demasker.llada import LLaDA
from crocodil.demasker.masking import MaskedTexts
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.sampler.demask import demask
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.engine import Engine
from crocodil.training.loop import LoopConfig
from crocodil.training.optimisation import OptimiserConfig
from recipes.benchmarks.anchor import PLAIN
from recipes.benchmarks.harness import Bench, Pairs, assert_equal, compare
from recipes.benchmarks.networks import config_of
from recipes.benchmarks.sizes import TINY, GatheringSizes, Network


def measure(sizes: GatheringSizes, pairs: int) -> Pairs:
    """Times of this rank; every rank samples the same text, because all take part in every gather."""
    ranks = accelerator(LoopConfig(precision="no"))
    module = UnguidedDemasker(
        LLaDA(config_of(sizes.network, sizes.length)).initialise(torch.Generator().manual_seed(0))
    )
    llada, mask_id = module.llada, module.llada.config.mask_token_id
    x_BN = torch.full((1, sizes.length), mask_id)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        return demask(
            lambda ids_BN, rows_BN: llada.head(llada.hidden(ids_BN)[rows_BN]), x_BN, mask_id, nfe=sizes.nfe
        ).ids

    def at_every_forward() -> torch.Tensor:
        with engine.averaged():
            return sample()

    def once() -> torch.Tensor:
        with engine.whole():
            return sample()

    def train() -> torch.Tensor:
        texts = MaskedTexts(
            x_BN[0] - 1,
            torch.ones(sizes.length, dtype=torch.bool),
            torch.ones(1),
            Segments.of([sizes.length]),
            mask_id,
        )
        (losses,) = engine.accumulate([texts], 1, 0)
        engine.update()
        return losses.total.detach()

    alone = sample()
    engine = Engine(ranks, module, OptimiserConfig(lr=0.0), 1)
    before = train()
    assert_equal("tokens, gathered at every forward", alone, at_every_forward())
    assert_equal("tokens, gathered once", alone, once())
    assert_equal("loss before and after a sample", before, train())
    # ranks must take as many turns, so none may settle by its own clock how often it repeats
    bench = Bench(replace(TINY, pairs=pairs, least_seconds=0.0), torch.device("cpu"), PLAIN)
    seconds = compare(at_every_forward, once, bench)
    if ranks.is_main_process:
        print(json.dumps({"theirs": seconds.theirs, "ours": seconds.ours}), flush=True)
    engine.close()
    leave(ranks)
    return seconds


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    network = Network(**asked["sizes"].pop("network"))
    measure(GatheringSizes(network, **asked["sizes"]), asked["pairs"])
