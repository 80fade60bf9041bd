"""Clean sets: what they are, and the formats they are read from."""

from neuralsanitizer.data.bundled import BUNDLED
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.loading import load_clean_set

__all__ = ["BUNDLED", "CleanSet", "load_clean_set"]
