"""Pure functions on tensors: no state, no randomness that is not passed in."""

from neuralsanitizer.functional.intervals import wilson
from neuralsanitizer.functional.losses import kept_contrast, pile_up, total_variation
from neuralsanitizer.functional.metrics import attack_success
from neuralsanitizer.functional.outliers import anomaly_indices, calibrated_threshold
from neuralsanitizer.functional.reinitialise import reinitialise_all, reinitialise_uniform, unit_variance
from neuralsanitizer.functional.stamping import mask_from_raw, raw_from_mask, recolour, stamp, stamped_with

__all__ = [
    "anomaly_indices",
    "attack_success",
    "calibrated_threshold",
    "kept_contrast",
    "mask_from_raw",
    "pile_up",
    "raw_from_mask",
    "recolour",
    "reinitialise_all",
    "reinitialise_uniform",
    "stamp",
    "stamped_with",
    "total_variation",
    "unit_variance",
    "wilson",
]
