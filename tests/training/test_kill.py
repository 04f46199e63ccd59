"""A writer killed without warning at odd moments: what is published stays whole."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from crocodil.training.checkpoints import checkpoint_step, damage, latest, prune
from crocodil.training.state import load_values, open_tensors

WRITER = """
import sys
from pathlib import Path
import torch
from crocodil.training.checkpoints import checkpoint_name, checkpoint_step, latest, prune, publishing
from crocodil.training.run_lock import run_lock
from crocodil.training.state import save_tensors, save_values
run_dir = Path(sys.argv[1])
with run_lock(run_dir):
    newest = latest(run_dir)
    step = checkpoint_step(newest) if newest else 0
    while True:
        step += 1
        with publishing(run_dir, checkpoint_name(step)) as directory:
            save_tensors(directory, {"weight": torch.full((100_000,), float(step))}, "state")
            save_values(directory, {"step": step}, "state")
        prune(run_dir, keep=2)
        print(step, flush=True)
"""


def test_a_killed_writer_never_costs_the_last_checkpoint(tmp_path: Path) -> None:
    draws, newest = random.Random(0), 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        reported = int(writer.stdout.readline())
        assert reported >= newest + 1  # it went on from where the killed one had got to
        time.sleep(draws.uniform(0.0, 0.1))
        writer.kill()
        reported = max([reported, *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
        found = latest(tmp_path)
        assert found is not None and checkpoint_step(found) in (reported, reported + 1)
        tensors = open_tensors(found, "state.safetensors")
        newest = load_values(found, "state")["step"]
        assert newest == checkpoint_step(found) and (tensors["weight"] == newest).all()
        visible = [path for path in tmp_path.iterdir() if path.is_dir() and not path.name.startswith(".")]
        assert all(damage(path) is None for path in visible)
    prune(tmp_path, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock", f"step-{newest:08d}"]
