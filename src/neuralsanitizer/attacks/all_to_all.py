"""All to all: one trigger that sends images of every label to the next.

Gu et al., "BadNets", 2017 (section 3.2, "all-to-all attack"). The target depends on the image's own label, so no single
label draws all stamped images; each label's backdoor works on one source label alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, train_poisoned
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet

__all__ = ["all_to_all"]


def all_to_all(
    train: CleanSet,
    held_out: CleanSet,
    patch: PatchSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a model that names, with the patch, the label after the image's own.

    Args:
        train: What to train on.
        held_out: What to measure on; none of it is trained on.
        patch: The trigger; its target is ignored.
        config: Architecture, poisoning rate (over all labels together), schedule, seed.
        device: Where to train.
        advance: Told of every optimiser step.

    Raises:
        UsageError: The patch does not fit, or the architecture is unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    channels, height, width = train.images.shape[1:]
    stamp = make_patch(patch, (channels, height, width), generator)
    counts = train.labels.bincount()
    labels = config.labels or len(counts)
    poisons = [
        Poison(
            replace(stamp, label=(source + 1) % labels),
            config.poisoning_rate * int(count) / len(train),
            sources=(source,),
            properties=described(patch),
        )
        for source, count in enumerate(counts)
        if count
    ]
    return train_poisoned(
        "all-to-all", train, held_out, poisons, config, generator=generator, device=device, advance=advance
    )
