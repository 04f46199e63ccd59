"""Peak memory of a piece of work, above what its inputs hold, each time in a fresh process.

On a GPU this is torch's own account. On a CPU it is the most pages the process ever held, as the kernel saw it; a
process that has already run something else would hide in its earlier peak what comes later. On Linux the peak is VmHWM
and not `ru_maxrss`: that one is inherited from the process that starts the new one, and would hide even more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def peak_bytes(job: Callable[..., Callable[[], object]], *, device: str, **arguments: object) -> int:
    """Run `job(device=…, **arguments)()` in a process of its own; bytes at its peak above those before it.

    Args:
        job: a function of a module; it makes the inputs and returns the work.
        arguments: what JSON can carry.

    Raises:
        RuntimeError: the process failed, with the last line that it wrote.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # glibc gives freed blocks of this size back at once, so the peak is of what is alive, not of what is kept
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    asked = json.dumps(
        {"module": job.__module__, "name": job.__name__, "arguments": arguments | {"device": device}}
    )
    done = subprocess.run(
        [sys.executable, "-m", "recipes.benchmarks.memory", asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [
            f"ended by signal {-done.returncode}, perhaps for lack of memory"
        ]
        raise RuntimeError(f"measuring the memory of {job.__module__} failed: {said[-1]}")
    return int(done.stdout.splitlines()[-1])


def measure_here(asked: str) -> int:
    """What the fresh process does."""
    request = json.loads(asked)
    job = getattr(importlib.import_module(request["module"]), request["name"])
    device = torch.device(request["arguments"]["device"])
    _wake(device)
    work = job(**request["arguments"])
    before = _start(device)
    result = work()  # kept, so that it counts
    after = _peak(device)
    del result
    return after - before


def _wake(device: torch.device) -> None:
    """Threads and libraries take memory once; let them take it before it counts."""
    a = torch.randn(256, 256, device=device, requires_grad=True)
    (a @ a).softmax(dim=-1).sum().backward()


def _start(device: torch.device) -> int:
    """Forget earlier peaks; bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # where the kernel does not let us forget, the earlier peak is the base, which is careful
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return next(
            int(line.split()[1]) * 1024
            for line in status.read_text(encoding="ascii", errors="replace").splitlines()
            if line.startswith("VmHWM:")
        )
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    print(measure_here(sys.argv[1]))
