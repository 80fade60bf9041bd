"""Intervals of rates."""

from __future__ import annotations

import math

__all__ = ["wilson"]

_NORMAL_95 = 1.96  # two-sided


def wilson(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate: right for small counts too, where the usual one has no width.

    Args:
        count: How many it happened in.
        total: Of how many; 0 leaves everything open.

    Returns:
        Its ends, in [0, 1].

    >>> tuple(round(x, 3) for x in wilson(0, 100))
    (0.0, 0.037)
    """
    if not total:
        return 0.0, 1.0
    z = _NORMAL_95
    middle = (count + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(count * (total - count) / total + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)
