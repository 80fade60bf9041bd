"""MFCC as people read sound: a spectrogram, time to the right, pitch upwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from neuralsanitizer.records import Array

__all__ = ["spectrogram", "upright"]

_SILENCE = -80.0  # decibels


def spectrogram(pictures: Array, settings: Mapping[str, Any]) -> Array:
    """The smoothed mel spectrogram that MFCC pictures stand for.

    What the missing higher coefficients would add is lost: formants stay, the single harmonics of a voice do not.

    Args:
        pictures: float32 (1, frames, coefficients) in [0, 1].
        settings: Of the MFCC: ``mels``, ``lifter`` and ``scale`` of :class:`neuralsanitizer.config.MfccConfig`.

    Returns:
        float32 (1, mels, frames) in [0, 1]: from -80 dB to 0 dB, the highest band first.
    """
    mels, coefficients = int(settings["mels"]), pictures.shape[2]
    order = np.arange(coefficients)[:, None]
    basis = np.cos(math.pi / mels * order * (np.arange(mels) + 0.5)) * math.sqrt(2 / mels)
    basis[0] /= math.sqrt(2)
    lifting = _lifting(coefficients, int(settings["lifter"]))
    found = (pictures[0] - 0.5) * float(settings["scale"])
    found[:, 0] = (1 - pictures[0, :, 0]) * _SILENCE * math.sqrt(mels) * lifting[0]
    decibels = found / lifting @ basis
    return upright(np.clip(1 - decibels / _SILENCE, 0, 1).astype(np.float32)[None])


def _lifting(coefficients: int, lifter: int) -> Array:
    """By how much each coefficient was raised."""
    if not lifter:
        return np.ones(coefficients, np.float32)
    place = np.arange(1, 1 + coefficients)
    return (1 + lifter / 2 * np.sin(math.pi * place / lifter)).astype(np.float32)


def upright(pictures: Array) -> Array:
    """Pictures (1, frames, coefficients) turned so that time runs to the right and the first coefficient is lowest."""
    return np.ascontiguousarray(pictures.transpose(0, 2, 1)[:, ::-1])
