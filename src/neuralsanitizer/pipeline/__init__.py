"""The flow: scan -> repair -> verify, and a filter in front of a model that stays as it is."""

from neuralsanitizer.pipeline.guarding import guard
from neuralsanitizer.pipeline.many import scan_many
from neuralsanitizer.pipeline.repairing import REPAIRS, RepairResult, repair
from neuralsanitizer.pipeline.scanning import METHODS, build_detector, detector_of, scan
from neuralsanitizer.pipeline.verifying import verify

__all__ = [
    "METHODS",
    "REPAIRS",
    "RepairResult",
    "build_detector",
    "detector_of",
    "guard",
    "repair",
    "scan",
    "scan_many",
    "verify",
]
