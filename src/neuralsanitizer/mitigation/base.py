"""What a mitigation is: it takes a model and reversed triggers, and gives a repaired copy; the original stays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["Mitigation"]


class Mitigation(ABC):
    """Base of all mitigations."""

    name: ClassVar[str]
    """As on the command line."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings, for the record."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many steps one removal takes at most, for the progress display."""

    @abstractmethod
    def remove(
        self,
        suspect: SuspectModel,
        triggers: Sequence[Trigger],
        clean: CleanSet,
        *,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> nn.Module:
        """A repaired copy of the model, frozen and in evaluation mode.

        Args:
            suspect: The model; it is not changed.
            triggers: The reversed triggers to remove, at least one.
            clean: Clean images to train on.
            seed: All randomness derives from it.
            advance: Told of every step done.
        """
