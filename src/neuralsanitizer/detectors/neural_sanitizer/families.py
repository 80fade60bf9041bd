"""The kinds of triggers that are looked for: patches, and changes of colours. Each says how to find one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from neuralsanitizer.config import ColourConfig, NeuralSanitizerConfig
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import Context
from neuralsanitizer.detectors.neural_sanitizer.colours import reconstruct_colours
from neuralsanitizer.detectors.neural_sanitizer.preserve import preserve
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import fit_patterns, reconstruct
from neuralsanitizer.detectors.neural_sanitizer.verdict import CONTRAST
from neuralsanitizer.functional import kept_contrast, stamped_with
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["Colours", "Family", "Found", "Patches", "families_for"]

Found = tuple[Trigger, dict[str, float]]
"""A potential trigger, and what its search tells of it."""


class Family(ABC):
    """A kind of trigger.

    Attributes:
        noun: What many of them are called.
        steps: Optimiser steps that the search for one takes at most.
        steps_of_like: Steps that the search for its like on a clean model takes.
        stand_ins: How many references take the suspect's place in the comparison.
        looks_again: How often a label that is not clear is looked at again.
    """

    noun: ClassVar[str]
    steps: int
    steps_of_like: int
    stand_ins: int
    looks_again: int

    @abstractmethod
    def reconstruct(
        self,
        context: Context,
        guides: Sequence[SuspectModel],
        labels: Sequence[int],
        steps: int,
        *,
        again: bool = False,
    ) -> list[Found]:
        """Search for the trigger of each label that works on the suspect and leaves the guides unharmed.

        Args:
            context: The scan.
            guides: References to spare.
            labels: Whose triggers are sought.
            steps: Optimiser steps, at most.
            again: Whether the labels were looked at before, and are not clear.
        """

    @abstractmethod
    def likes(
        self,
        context: Context,
        model: SuspectModel,
        guides: Sequence[SuspectModel],
        triggers: Sequence[Trigger],
        seed: int,
    ) -> list[Trigger]:
        """Search for the like of each trigger that works best on another model, and leaves its guides unharmed."""

    def preserved(self, context: Context, trigger: Trigger) -> Trigger:
        """What of a trigger its label's evidence rests on; by default all of it."""
        del context
        return trigger


class Patches(Family):
    """Patches: a mask and a pattern."""

    noun = "triggers"

    def __init__(self, config: NeuralSanitizerConfig) -> None:
        self.config = config
        self.steps = config.reconstruct.steps
        self.steps_of_like = config.counterparts.steps
        self.stand_ins = config.counterparts.stand_ins
        self.looks_again = config.verdict.restarts

    def reconstruct(
        self,
        context: Context,
        guides: Sequence[SuspectModel],
        labels: Sequence[int],
        steps: int,
        *,
        again: bool = False,
    ) -> list[Found]:
        """Patches as small as can be; where labels are looked at again, the search goes on for longer."""
        size = self.config.reconstruct.size_again if again else self.config.reconstruct.size
        made = reconstruct(
            context.suspect,
            guides,
            context.clean,
            labels,
            config=replace(self.config.reconstruct, steps=steps, size=size),
            seed=context.seed,
            advance=context.progress.advance,
        )
        return [
            (one.trigger, {"reached_goal": float(one.reached_goal), "fitted_success": one.fitted_success})
            for one in made
        ]

    def likes(
        self,
        context: Context,
        model: SuspectModel,
        guides: Sequence[SuspectModel],
        triggers: Sequence[Trigger],
        seed: int,
    ) -> list[Trigger]:
        """The best patterns within the same masks."""
        likes = self.config.counterparts
        return fit_patterns(
            model,
            guides,
            context.clean,
            triggers,
            steps=self.steps_of_like,
            config=replace(self.config.reconstruct, images=likes.images),
            seed=seed,
            enough=likes.enough,
            advance=context.progress.advance,
        )

    def preserved(self, context: Context, trigger: Trigger) -> Trigger:
        """The critical features, if they are asked for."""
        return preserve(context.suspect, trigger, context.clean, self.config.preserve, context.seed)


class Colours(Family):
    """Changes of colours."""

    noun = "colours"
    looks_again = 0

    def __init__(self, config: NeuralSanitizerConfig, own: ColourConfig) -> None:
        self.constraint, self.own, self.enough = config.reconstruct, own, config.counterparts.enough
        self.steps, self.steps_of_like = own.steps, own.steps_of_like
        self.stand_ins = own.stand_ins

    def reconstruct(
        self,
        context: Context,
        guides: Sequence[SuspectModel],
        labels: Sequence[int],
        steps: int,
        *,
        again: bool = False,  # noqa: ARG002 - looks_again is 0
    ) -> list[Found]:
        """Changes of colours, from none at all."""
        seed = derive_seed(context.seed, "colours")
        found = self._search(context, context.suspect, guides, labels, (), steps, seed, None)
        images = context.held_out.images[:_IMAGES_TO_SEE]
        return [
            (one, {CONTRAST: float(kept_contrast(images, stamped_with(one, images)))} if self.own.flat else {})
            for one in found
        ]

    def likes(
        self,
        context: Context,
        model: SuspectModel,
        guides: Sequence[SuspectModel],
        triggers: Sequence[Trigger],
        seed: int,
    ) -> list[Trigger]:
        """The best changes, from those of the suspect."""
        labels = [trigger.label for trigger in triggers]
        return self._search(context, model, guides, labels, triggers, self.steps_of_like, seed, self.enough)

    def _search(
        self,
        context: Context,
        model: SuspectModel,
        guides: Sequence[SuspectModel],
        labels: Sequence[int],
        start: Sequence[Trigger],
        steps: int,
        seed: int,
        enough: float | None,
    ) -> list[Trigger]:
        return reconstruct_colours(
            model,
            guides,
            context.clean,
            labels,
            start=start,
            config=replace(self.own, steps=steps),
            constraint=self.constraint,
            seed=seed,
            enough=enough,
            advance=context.progress.advance,
        )


def families_for(suspect: SuspectModel, config: NeuralSanitizerConfig) -> tuple[Family, ...]:
    """What is looked for in a model: patches, and on images of three channels changes of colours."""
    patches = Patches(config)
    if config.colours is None or suspect.input_shape[0] != _RED_GREEN_BLUE:
        return (patches,)
    return patches, Colours(config, config.colours)


_RED_GREEN_BLUE = 3
_IMAGES_TO_SEE = 500  # that a change's contrast is measured on
