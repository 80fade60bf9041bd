"""Outliers among the labels' mask sizes, after Neural Cleanse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

__all__ = ["anomaly_indices", "calibrated_threshold"]

_CONSISTENCY = 1.4826
"""Makes the MAD of a normal sample estimate its standard deviation: 1 / Phi^-1(3/4)."""


def anomaly_indices(norms: Sequence[float]) -> tuple[float, ...]:
    """One-sided anomaly index of each value: how many robust standard deviations it lies **below** the median.

    Args:
        norms: L1 norms of the labels' masks: the raw float masks, not rounded ones.

    Returns:
        ``(median - norm) / (1.4826 * MAD)``; negative above the median. With a MAD of 0 (most values equal) the index
        is infinite below the median and 0 elsewhere at it. Fewer than three values have no outliers: all 0.

    Source: Neural Cleanse, section IV-B, with a true median and the sign kept.

    >>> [round(i, 2) for i in anomaly_indices([10.0, 11.0, 12.0, 13.0, 1.0])]
    [0.67, 0.0, -0.67, -1.35, 6.74]
    """
    values = np.asarray(norms, dtype=np.float64)
    if len(values) < 3:
        return (0.0,) * len(values)
    median = float(np.median(values))
    spread = _CONSISTENCY * float(np.median(np.abs(values - median)))
    below = median - values
    if spread == 0:
        return tuple(math.inf if b > 0 else (-math.inf if b < 0 else 0.0) for b in below.tolist())
    return tuple((below / spread).tolist())


def calibrated_threshold(labels: int, false_alarm_rate: float = 0.05) -> float:
    """The index that the smallest of ``labels`` clean norms exceeds with probability ``false_alarm_rate``.

    The classic threshold of 2 is meant for one label. Over many, a clean model exceeds it almost surely (by our
    simulation with normal norms: 33 % of the time at 10 labels, 63 % at 43, nearly always at 1,000). This is the Sidak
    correction for normal norms with known spread; the MAD's own error makes it somewhat too low for few labels.

    Args:
        labels: How many labels enter the statistic, at least 1.
        false_alarm_rate: For the whole model, in (0, 1).

    >>> round(calibrated_threshold(10), 2)
    2.57
    """
    return NormalDist().inv_cdf((1 - false_alarm_rate) ** (1 / labels))
