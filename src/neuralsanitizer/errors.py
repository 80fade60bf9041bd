"""The one exception tree of the package.

Every error that a user can meet derives from :class:`NeuralSanitizerError`, carries the exit code that the command line
ends with, and says what was expected, what came, and what to do next::

    NeuralSanitizerError        5   (also: anything unforeseen)
    ├── UsageError              2   options or configuration that make no sense together
    │   └── MissingExtraError   2   an optional dependency is needed: names the extra that brings it
    ├── InputError              3   something the user gave us is unreadable, unsupported or refused
    │   ├── ModelError          3   a model file, its architecture, or its outputs
    │   ├── DataError           3   a clean set
    │   ├── RunError            3   a run folder: unreadable, of another version, of another model
    │   └── RefusedError        3   readable, but opening it would run code: refused on purpose
    ├── TimeLimitError          5   a network's first run, which does not end
    ├── RefusedInputError       1   a guarded model was asked about an input that bears a trigger
    └── OutputError             3   a result cannot be written: exists already, disk full, not a folder

``inconclusive`` is a verdict, not an error: it has no class here (exit code 4 is decided by the command line).
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "NeuralSanitizerError",
    "OutputError",
    "RefusedError",
    "RefusedInputError",
    "RunError",
    "TimeLimitError",
    "UsageError",
]


class NeuralSanitizerError(Exception):
    """Base of every error that the package raises on purpose."""

    exit_code: int = 5


class UsageError(NeuralSanitizerError):
    """Options or configuration values that are wrong, whatever the input is."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'neuralsanitizer[{extra}]'"
        )
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Pickled by what it was made of: workers hand it to the process that asked."""
        return type(self), (self.package, self.extra, self.purpose)


class InputError(NeuralSanitizerError):
    """An input is unreadable, unsupported or refused."""

    exit_code = 3


class ModelError(InputError):
    """A model file, the architecture it is loaded into, or what the model computes."""


class DataError(InputError):
    """A clean set."""


class RunError(InputError):
    """A run folder."""


class RefusedError(InputError):
    """The input is readable, but reading it would run code that came with it."""


class TimeLimitError(NeuralSanitizerError):
    """Something that should take seconds is given up after a minute: nothing says that it ever ends."""


class RefusedInputError(NeuralSanitizerError):
    """A guarded model refuses to answer.

    Attributes:
        rows: Which inputs of the batch bear a trigger.
    """

    exit_code = 1

    def __init__(self, rows: tuple[int, ...]) -> None:
        super().__init__(
            f"the filter found a trigger in {len(rows)} of the inputs (rows {', '.join(map(str, rows[:20]))}"
            f"{', ...' if len(rows) > 20 else ''}): leave them out, or guard the model without refuse=True to get "
            "answers with flags"
        )
        self.rows = rows

    def __reduce__(self) -> tuple[type[RefusedInputError], tuple[tuple[int, ...]]]:
        """Pickled by what it was made of: workers hand it to the process that asked."""
        return type(self), (self.rows,)


class OutputError(NeuralSanitizerError):
    """A result cannot be written where it was asked for."""

    exit_code = 3
