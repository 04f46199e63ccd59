"""What the numbers of a recipe may be: refused before anything is read, not at the step that meets them."""

from __future__ import annotations

import math
from typing import Any

from crocodil.errors import CrocodilError

LEAST_WINDOW = 3
"""BOS, one token, EOS."""


def require_at_least(least: int, config: Any, *names: str, section: str = "") -> None:
    """Refuse a field of `config` that is below `least`, infinite or no number.

    Args:
        section: of the recipe, with its dot, for the message.
    """
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:
            raise CrocodilError(f"{section}{name} is {value}; give {least} or more")


def check_path(name: str, path: str) -> None:
    """Refuse a path that names nothing: an empty one would be the folder one happens to be in."""
    try:
        is_good = bool(path.strip()) and "\0" not in path and bool(path.encode())
    except UnicodeEncodeError:  # half of a character
        is_good = False
    if not is_good:
        raise CrocodilError(f"{name} is {path!r:.80}; give a folder, in UTF-8")


def check_batch(batch_size: int, ranks: int) -> None:
    """Refuse a global batch that cannot be shared out evenly."""
    if batch_size % ranks:
        raise CrocodilError(f"batch_size {batch_size} must be a multiple of the {ranks} ranks")


def check_rows(recipe: Any) -> None:
    """Check windows, and the rows they are packed into."""
    require_at_least(1, recipe, "row_tokens")
    lengths = recipe.data.lengths
    if not lengths or min(lengths) < LEAST_WINDOW:
        raise CrocodilError(f"data.lengths is {list(lengths)}; give windows of {LEAST_WINDOW} tokens or more")
    if recipe.row_tokens < max(lengths):
        raise CrocodilError(
            f"row_tokens is {recipe.row_tokens}, the longest of data.lengths {max(lengths)}; a row must hold it"
        )
