"""NeuralSanitizer, the method: tune, reconstruct, preserve, transfer, verdict."""

from neuralsanitizer.detectors.neural_sanitizer.detector import NeuralSanitizer, kept_reference

__all__ = ["NeuralSanitizer", "kept_reference"]
