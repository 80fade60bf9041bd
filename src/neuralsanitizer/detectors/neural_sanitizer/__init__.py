"""detectors/neural_sanitizer."""
