"""Could a model without a backdoor be sent to the label just as well?

That a patch works on the suspect proves nothing by itself: every network can be fooled by some patch, if it may be
large. So each label's mask is handed to clean references, one after the other in the suspect's place: with the mask
held, and the other references as guides, the best pattern is sought. A region in which a clean model is fooled too
says nothing about the suspect. A region in which only the suspect is fooled holds a trigger, be it small or large.

Each label is compared with itself, so nothing is assumed about other labels: all of them may be infected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["Fitted", "clean_successes", "stand_ins"]

StandIn = tuple[SuspectModel, tuple[SuspectModel, ...]]
"""A reference in the suspect's place, and the references that guide its reconstruction."""

Fitted = Callable[[SuspectModel, Sequence[SuspectModel], Sequence[Trigger], int], list[Trigger]]
"""Of a model, its guides, some triggers and a seed: the likes of the triggers that work best on the model."""


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
    pairs = [*of_tests, *of_guides]
    turns = [of[i] for i in range(len(pairs)) for of in (of_tests, of_guides) if i < len(of)]
    return tuple((model, guiding) for model, guiding in turns[:count] if guiding)


def clean_successes(
    models: Sequence[StandIn],
    held_out: CleanSet,
    triggers: Sequence[Trigger],
    fitted: Fitted,
    *,
    images: int,
    seed: int,
    settled: Callable[[int, tuple[float, ...]], bool] = lambda _, rates: False,  # noqa: ARG005
) -> list[tuple[float, ...]]:
    """Attack success that each trigger's like reaches on models without a backdoor, with the best one for each.

    Args:
        models: From :func:`stand_ins`.
        held_out: Images to measure on.
        triggers: Where the search starts, the likeliest to work.
        fitted: Searches for the likes of the triggers that work best on a stand-in: of patches, within the same masks.
        images: How many held-out images a trigger.
        seed: The scan's seed.
        settled: Of a trigger's position and its rates so far, whether further stand-ins can change nothing.

    Returns:
        One rate in [0, 1] a stand-in, for each trigger; fewer of what was settled before.
    """
    rates: list[tuple[float, ...]] = [() for _ in triggers]
    for turn, (model, guides) in enumerate(models):
        open_ = [i for i, known in enumerate(rates) if not settled(i, known)]
        if not open_:
            break
        likes = fitted(model, guides, [triggers[i] for i in open_], derive_seed(seed, "stand-in", turn))
        for i, trigger in zip(open_, likes, strict=True):
            rates[i] += success_rates([model], trigger, held_out, images, seed, fast=True)
    return rates
