"""Text that came from outside (label names, file names), made harmless for terminals and pages."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["clean_text"]

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format (bidi, zero width), surrogates, line separators


def clean_text(text: str, limit: int = 200) -> str:
    r"""A text on one line, without escape sequences, control characters and marks that reorder or hide text.

    Args:
        text: Any text.
        limit: Longer texts are cut, and end in an ellipsis.

    >>> clean_text("a\x1b[31mb\u202ec\nd")
    'abc d'
    """
    spaced = re.sub(r"\s+", " ", _ESCAPES.sub("", text))
    visible = "".join(c for c in spaced if unicodedata.category(c) not in _HIDDEN).strip()
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"
