"""Programs that tests run in the nursery: a rank that is late, or slow; their arguments are in sys.argv."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cache_with_a_late_rank() -> None:
    """cache_registers.py, whose second rank looks which shards are missing when the first has written one already."""
    import recipes.cache_registers
    from crocodil.registers.cache import CacheWriter

    look = CacheWriter.missing
    looks = 0

    def late(writer: CacheWriter) -> list[int]:
        nonlocal looks
        looks += 1
        return look(writer)[1:] if looks == 1 else look(writer)

    if os.environ.get("RANK") == "1":
        CacheWriter.missing = late  # type: ignore[method-assign]
    recipes.cache_registers.main()


def cache_with_a_slow_rank() -> None:
    """The same, whose second rank takes a second to give `cache.json` its name, should it write one."""
    import recipes.cache_registers

    rename = os.replace

    def slow(source: str, target: str) -> None:
        if Path(target).name == "cache.json":
            time.sleep(1)
        rename(source, target)

    if os.environ.get("RANK") == "1":
        os.replace = slow  # type: ignore[assignment]
    recipes.cache_registers.main()
