"""One rank of a training of a few steps, measured: what stays between steps, and the most there was. It prints JSON.

Run by `accelerate launch`; the first argument says how, in JSON.
"""

from __future__ import annotations

import gc
import json
import sys

import torch

from crocodil import adapters
from crocodil.adapters import LoraSettings
from crocodil.joint import family
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.engine import Engine
from crocodil.training.loop import LoopConfig
from crocodil.training.optimisation import OptimiserConfig
from tests.plan.live import K, Live, batch_of, encoder_config, llada_config, network

WIDTHS = {"llada": {"width": 128, "mlp": 384}, "encoder": {"width": 64, "channels": 32, "mlp": 192}}
LORA = LoraSettings(rank=8)
RESULT = "MEASURED "


def main() -> None:
    asked = json.loads(sys.argv[1])
    ranks = accelerator(LoopConfig(run=asked["run"], precision="bf16"))
    module = network(llada_config(**WIDTHS["llada"]), encoder_config(**WIDTHS["encoder"]))
    module.demasker.llada.recompute = True
    module.encoder.recompute()
    lengths, micro_steps = asked["lengths"], asked["micro_steps"]
    if asked["lora"]:
        adapters.inject(module, LORA, 0, torch.bfloat16)

    def learns(name: str) -> bool:
        in_stage = asked["stage"] == 1 or family(name) == "guide"
        return in_stage and (not asked["lora"] or adapters.trainable(name))

    with Live(resizing=True) as live:
        for parameter in module.parameters():
            live.add(parameter)
        for buffer in module.buffers():
            live.ignore(buffer)
        engine = Engine(ranks, module, OptimiserConfig(), 10, trainable=learns, family=family)
        for step in range(2):
            batches = [batch_of(lengths, K, WIDTHS["encoder"]["width"]) for _ in range(micro_steps)]
            live.restart()
            for losses in engine.accumulate(batches, len(lengths) * micro_steps * ranks.num_processes, step):
                assert losses.total.isfinite()
            peak = live.peak
            engine.update()
            del losses, batches
            gc.collect()
    if ranks.is_main_process:
        print(RESULT + json.dumps({"between": live.now, "peak": peak}))
    leave(ranks)


if __name__ == "__main__":
    main()
