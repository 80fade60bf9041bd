"""What a mitigation is: it takes a model and reversed triggers, and gives a repaired copy; the original stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import PrunedShare, Trigger

__all__ = ["Mitigation", "Removal"]


@dataclass(frozen=True, eq=False)
class Removal:
    """What one removal gives.

    Attributes:
        module: The repaired copy.
        curve: Of pruning: attack success and accuracy by the share of neurons pruned.
    """

    module: nn.Module
    curve: tuple[PrunedShare, ...] = ()


class Mitigation(ABC):
    """Base of all mitigations."""

    name: ClassVar[str]
    """As on the command line."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings, for the record."""

    @abstractmethod
    def steps(self, images: int) -> int:
        """How many steps one removal takes at most, for the progress display.

        Args:
            images: Number of clean images.
        """

    @abstractmethod
    def remove(
        self,
        suspect: SuspectModel,
        triggers: Sequence[Trigger],
        clean: CleanSet,
        *,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Removal:
        """A repaired copy of the model, frozen and in evaluation mode.

        Args:
            suspect: The model; it is not changed.
            triggers: The reversed triggers to remove, at least one.
            clean: Clean images to train on.
            seed: All randomness derives from it.
            advance: Told of every step done.
        """
