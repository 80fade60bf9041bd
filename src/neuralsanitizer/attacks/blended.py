"""Blended injection: a pattern over the whole image, so faint that a person overlooks it.

Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017 (the blended key, section
4.2; the paper's ratios are 0.1 and 0.2, with random patterns and cartoons).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.patches import make_pattern
from neuralsanitizer.attacks.poisoning import Poison, train_poisoned
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


def blended(
    train: CleanSet,
    held_out: CleanSet,
    spec: BlendSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model with a blended trigger.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        spec: The trigger.
        config: Architecture, poisoning rate, schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: The target is no label, or the pattern or the architecture is unknown.
        DataError: The pattern's image file cannot be read.
    """
    generator = torch.Generator().manual_seed(config.seed)
    channels, height, width = train.images.shape[1:]
    pattern = make_pattern(spec.pattern, channels, (height, width), generator)
    mask = np.full((height, width), spec.ratio, np.float32)
    poison = Poison(Patch(spec.target, mask, pattern), config.poisoning_rate, properties=described(spec))
    return train_poisoned(
        "blended", train, held_out, [poison], config, generator=generator, device=device, advance=advance
    )
