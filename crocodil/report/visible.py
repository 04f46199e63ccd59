"""Characters that must not reach a terminal or a page as they are."""

from __future__ import annotations

import re

# Left alone: newline and tab. Bidirectional controls can make a line read as what it is not.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with every control character, but newline and tab, shown as a sign instead of obeyed."""
    return _HIDDEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"
