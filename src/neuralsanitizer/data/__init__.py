"""Clean sets: what they are, and the formats they are read from."""

from neuralsanitizer.data.bundled import BUNDLED
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.loading import Inputs, load_clean_set, load_inputs

__all__ = ["BUNDLED", "CleanSet", "Inputs", "load_clean_set", "load_inputs"]
