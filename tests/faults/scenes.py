"""Small programs that tests run in the nursery; their arguments are in sys.argv."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def hold_the_lock() -> None:
    """Hold a run's folder until a file appears. FOLDER FILE"""
    from crocodil.training.run_lock import run_lock

    folder, file = map(Path, sys.argv[1:])
    with run_lock(folder):
        file.with_suffix(".held").touch()
        while not file.exists():
            time.sleep(0.005)


def tokenise_after_forks() -> None:
    """Tokenise, then fork four processes that tokenise the same texts, twenty times. VOCABULARY"""
    from crocodil.text.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(Path(sys.argv[1]))
    texts = [f"def function_{i}(x):\n    return {i} * x\n" for i in range(400)]
    expected = vocabulary.encode_batch(texts)
    for _ in range(20):
        pids = []
        for _ in range(4):
            if (pid := os.fork()) == 0:
                os._exit(vocabulary.encode_batch(texts) != expected)
            pids.append(pid)
        assert not any(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
