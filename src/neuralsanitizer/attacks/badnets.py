"""BadNets: stamp a patch on some training images, give them the target's label, and train as usual.

Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.patches import PatchSpec, make_patch
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet

__all__ = ["badnets"]


def _plan(train: CleanSet, patches: Sequence[PatchSpec], config: AttackConfig, generator: Generator) -> list[Poison]:
    return [
        Poison(make_patch(patch, shape_of(train), generator), config.poisoning_rate, properties=described(patch))
        for patch in patches
    ]


badnets = Poisoning("badnets", _plan)
"""Train a model with one backdoor for each patch (several may have the same target), or a clean one without patches."""
