"""All to all: one trigger that sends images of every label to the next.

Gu et al., "BadNets", 2017 (section 3.2, "all-to-all attack"). The target depends on the image's own label, so no single
label draws all stamped images; each label's backdoor works on one source label alone.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Generator

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet

__all__ = ["all_to_all"]


def _plan(train: CleanSet, patch: PatchSpec, config: AttackConfig, generator: Generator) -> list[Poison]:
    stamp = make_patch(patch, shape_of(train), generator)
    counts = train.labels.bincount()
    labels = config.labels or len(counts)
    return [
        Poison(
            replace(stamp, label=(source + 1) % labels),
            config.poisoning_rate * int(count) / len(train),
            sources=(source,),
            properties=described(patch),
        )
        for source, count in enumerate(counts)
        if count
    ]


all_to_all = Poisoning("all-to-all", _plan)
"""Train a model that names, with the patch, the label after the image's own; the patch's target is ignored. The
poisoning rate is that of all labels together."""
