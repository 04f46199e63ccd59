"""How a global batch is laid out: packed into rows, rows dealt to ranks, as many on each."""

from __future__ import annotations

from collections.abc import Sequence

from crocodil.errors import CrocodilError


def deal(rows: Sequence[Sequence[int]], ranks: int) -> list[list[list[int]]]:
    """Give every rank the same number of micro-batches: `[rank][micro-step] -> texts`.

    Where rows run short, the longest rows are halved until there is one for everybody, because a rank without work
    would keep the others waiting in a collective.

    Raises:
        CrocodilError: fewer texts than ranks, or rows of single texts that are no multiple of the ranks.
    """
    dealt = [list(row) for row in rows]
    texts = sum(map(len, dealt))
    if texts < ranks:
        raise CrocodilError(f"a batch of {texts} texts cannot be dealt to {ranks} ranks; raise batch_size")
    while len(dealt) % ranks:
        longest = max(range(len(dealt)), key=lambda i: (len(dealt[i]), -i))
        row = dealt[longest]
        if len(row) < 2:  # every text has a row to itself, and still there are not enough for everybody
            raise CrocodilError(
                f"{texts} texts cannot be dealt evenly to {ranks} ranks; make batch_size a multiple of the ranks"
            )
        dealt[longest : longest + 1] = [row[0::2], row[1::2]]
    return [dealt[rank::ranks] for rank in range(ranks)]


def turns(rows: int, ranks: int) -> list[list[tuple[int, bool]]]:
    """Rows to evaluate, as many on every rank: `[rank][turn] -> (row, whether it counts)`.

    Where rows run short a rank does one again that does not count, because the others wait for it in a collective.
    """
    each = -(-rows // ranks)
    return [[(i % rows, i < rows) for i in range(rank, each * ranks, ranks)] for rank in range(ranks)]
