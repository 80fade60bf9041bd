"""BadNets: stamp a patch on some training images, give them the target's label, and train as usual.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, train_poisoned
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet

__all__ = ["badnets"]


def badnets(
    train: CleanSet,
    held_out: CleanSet,
    patches: Sequence[PatchSpec],
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model with one backdoor for each patch, or a clean one if there are none.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        patches: The triggers; several may have the same target or different ones.
        config: Architecture, poisoning rate, schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: A target is no label, a patch does not fit, or the architecture is unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    channels, height, width = train.images.shape[1:]
    poisons = [
        Poison(
            make_patch(patch, (channels, height, width), generator),
            config.poisoning_rate,
            properties=described(patch),
        )
        for patch in patches
    ]
    return train_poisoned(
        "badnets", train, held_out, poisons, config, generator=generator, device=device, advance=advance
    )
