"""How long work tells what it is doing. The library only speaks to this interface; the command line draws it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NoProgress", "Progress"]


class Progress(Protocol):
    """Receives the stages of a job and how far each is."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins that will take ``total`` steps. It ends when the next begins."""

    def advance(self, steps: int = 1) -> None:
        """The current stage did ``steps`` more steps."""

    def note(self, message: str) -> None:
        """Something happened that a person should know of now."""


class NoProgress:
    """Says nothing."""

    def start(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advance(self, steps: int = 1) -> None:
        """Ignore it."""

    def note(self, message: str) -> None:
        """Ignore it."""
