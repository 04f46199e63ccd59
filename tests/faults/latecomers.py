"""Programs that tests run in the nursery: a rank that is late; their arguments are in sys.argv."""

from __future__ import annotations

import os


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
