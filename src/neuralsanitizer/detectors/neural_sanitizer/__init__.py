"""NeuralSanitizer, the method: tune, reconstruct, preserve, transfer, verdict."""

from neuralsanitizer.detectors.neural_sanitizer.detector import NeuralSanitizer

__all__ = ["NeuralSanitizer"]
