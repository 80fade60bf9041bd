"""Blended injection: a pattern over the whole image, so faint that a person overlooks it.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (the blended key, section
4.2; the paper's ratios are 0.1 and 0.2, with random patterns and cartoons).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Generator

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.patches import make_pattern
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError

__all__ = ["BlendSpec", "blended"]


@dataclass(frozen=True)
class BlendSpec:
    """A blended trigger, described.

    Attributes:
        target: The label that it sends images to.
        ratio: How much of the pattern is mixed in, in (0, 1].
        pattern: One of :data:`neuralsanitizer.attacks.patches.PATTERNS`, ``#rrggbb``, or the path of an image file.
    """

    target: int
    ratio: float = 0.2
    pattern: str = "random"

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise UsageError(f"the blend ratio lies over 0 and up to 1, got {self.ratio}")


def _plan(train: CleanSet, spec: BlendSpec, config: AttackConfig, generator: Generator) -> list[Poison]:
    channels, height, width = shape_of(train)
    pattern = make_pattern(spec.pattern, channels, (height, width), generator)
    mask = np.full((height, width), spec.ratio, np.float32)
    return [Poison(Patch(spec.target, mask, pattern), config.poisoning_rate, properties=described(spec))]


blended = Poisoning("blended", _plan)
"""Train a model with a blended trigger."""
