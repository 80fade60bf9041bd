"""How large would a label's trigger be on a model that has no backdoor?

A potential trigger is small or large only in comparison. Other labels are no yardstick: some are natural goals of small
patches, and all may be infected. So each label is compared with itself: a clean reference takes the suspect's place,
the same reconstruction runs against the other references, and the mask it needs is the label's size without a backdoor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from neuralsanitizer.config import ReconstructConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import reconstruct
from neuralsanitizer.models.handle import SuspectModel

__all__ = ["clean_sizes", "stand_ins"]

StandIn = tuple[SuspectModel, tuple[SuspectModel, ...]]
"""A reference in the suspect's place, and the references that guide its reconstruction."""


def stand_ins(guides: Sequence[SuspectModel], tests: Sequence[SuspectModel], count: int) -> tuple[StandIn, ...]:
    """References to take the suspect's place, each with guides of its own.

    A test reference is guided by the guides, a guide by the other guides and a test reference: as many as guide the
    suspect's reconstruction, wherever there are enough.

    Args:
        guides: The scan's guides.
        tests: Its test references.
        count: How many stand-ins are wanted; there may be fewer.
    """
    of_tests = [(test, tuple(guides)) for test in tests]
    of_guides = [(one, (*(g for g in guides if g is not one), *tests[:1])) for one in guides]
    turns = [pair for pairs in zip(of_tests, of_guides, strict=False) for pair in pairs]
    return tuple((model, guiding) for model, guiding in turns[:count] if guiding)


def clean_sizes(
    models: Sequence[StandIn],
    clean: CleanSet,
    labels: Sequence[int],
    *,
    config: ReconstructConfig,
    seed: int,
    advance: Callable[[int], None] | None = None,
) -> tuple[float, ...]:
    """Mask size in pixels that each label needs on models without a backdoor: the mean over the stand-ins.

    A label that never reaches the goal there counts with the mask it ended with: it would need more.

    Args:
        models: From :func:`stand_ins`, at least one.
        clean: Images to stamp.
        labels: Which labels.
        config: Settings of the suspect's own reconstruction.
        seed: The scan's seed: the stand-ins start from the suspect's masks and patterns, and see the same images.
        advance: Told of every label and step done.
    """
    sizes = [
        [r.trigger.size for r in reconstruct(model, guides, clean, labels, config=config, seed=seed, advance=advance)]
        for model, guides in models
    ]
    return tuple(fmean(column) for column in zip(*sizes, strict=True))
