"""Run by test_placement on two ranks under ZeRO-3: how much memory of its own a rank takes while it reads a model.

loading.py FOLDER mapped|copied OUT
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from accelerate.utils import DistributedType

from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.demasker.weights import load_llada
from crocodil.training.accelerators import accelerator, leave
from crocodil.training.loop import LoopConfig
from crocodil.training.placement import placement_of
from crocodil.training.ranks import gather


def own_bytes() -> int:
    """Memory that is this process's alone: pages of files are not in it, since all processes share them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say RssAnon")


class Peak:
    """The most that `own_bytes` said in the body of a `with`."""

    def __enter__(self) -> Peak:
        self.most, self._over = own_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, own_bytes())


def main(folder: str, how: str, out: str) -> None:
    ranks = accelerator(LoopConfig(run=out, timeout=0, precision="no"))
    assert ranks.distributed_type == DistributedType.DEEPSPEED
    import crocodil.training.placement.zero3  # noqa: F401  (its imports are not what is measured)

    placement = placement_of(ranks)
    before = own_bytes()
    with Peak() as peak:
        model = UnguidedDemasker(load_llada(folder, mapped=how == "mapped"))
        placement.receive(ranks, model)
    held, most = own_bytes() - before, peak.most - before
    size = sum(p.ds_numel for p in model.parameters()) * 4
    whole = placement.whole(model.llada.model.transformer.wte.weight.requires_grad_(False))
    told = gather({"held": held, "most": most, "size": size, "sum": float(whole.double().sum())})
    if ranks.is_main_process:
        Path(out).write_text(json.dumps(told))
    leave(ranks)


if __name__ == "__main__":
    main(*sys.argv[1:])
