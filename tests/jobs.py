"""What the tests of executors have done: importable by workers that are no forks."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from neuralsanitizer.detectors.base import CannotJudgeError
from neuralsanitizer.errors import MissingExtraError, RefusedInputError


def square(number):
    return number * number


def fail(number):
    if number == 3:
        raise ValueError("three is too many")
    return number


class LockedError(RuntimeError):
    """Cannot be pickled."""

    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class ExactingError(RuntimeError):
    """Can be pickled, but is not made anew from its message alone."""

    def __init__(self, what, why):
        super().__init__(f"{what} because of {why}")


ERRORS = {
    "locked": LockedError("no way out because of a lock"),
    "exacting": ExactingError("no way out", "its arguments"),
    "extra": MissingExtraError("ray", "ray", "no way out"),
    "refused": RefusedInputError((3, 5)),
    "unjudged": CannotJudgeError("no way out", ()),
}


def fail_with(name):
    raise ERRORS[name]


def unsendable(_):
    return threading.Lock()


@dataclass(frozen=True)
class Deadly:
    """Kills its own process at one number: the first time, or every time."""

    folder: Path
    number: int
    always: bool

    def __call__(self, number):
        if number == self.number:
            tries = len(list(self.folder.iterdir()))
            (self.folder / str(tries)).touch()
            if self.always or tries == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return number


def slow(number):
    time.sleep(60)
    return number
