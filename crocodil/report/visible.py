"""Characters that must not reach a terminal or a page as they are."""

from __future__ import annotations

import re

# Left alone: newline and tab. Bidirectional controls can make a line read as what it is not; a lone surrogate, as a
# file name may have, has no encoding.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


_NAMES = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI "
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
).split()


def visible(text: str) -> str:
    """The text with every control character, but newline and tab, shown by name instead of obeyed: ‹ESC›."""
    return _HIDDEN.sub(_name, text)


def _name(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"‹{_NAMES[code] if code < len(_NAMES) else f'U+{code:04X}'}›"
