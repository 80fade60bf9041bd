"""Bounds on what a network of unknown origin may take: its first runs ask for no amount of memory or time at will.

A graph of a few bytes can stand for tensors of terabytes, and code of the user's own may wait for ever. Once a network
answered a few images within these bounds, a scan costs in proportion to that.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from neuralsanitizer.errors import ModelError, TimeLimitError

__all__ = ["MOST_ELEMENTS", "MOST_ELEMENTS_IN_ALL", "MOST_SECONDS", "bounded", "in_time"]

MOST_SECONDS = 60.0
"""Chosen, not measured: by far more than a network of the registry takes for two images."""
MOST_ELEMENTS = 2**28
"""Of the result of one operation, a GiB as float32. Two images have 6.4 million in the first layer of ``vgg16``: 64
channels of 224x224."""
MOST_ELEMENTS_IN_ALL = 2**31
"""Of all results of a run, were none of them freed: 8 GiB, as much as the largest file that is read."""


@contextmanager
def bounded(what: str, in_all: int = MOST_ELEMENTS_IN_ALL) -> Iterator[None]:
    """Within, no operation gives more than :data:`MOST_ELEMENTS`, and all is over after :data:`MOST_SECONDS`.

    Args:
        what: Is done, for messages.
        in_all: Elements that all operations together may give.

    Raises:
        ModelError: Operations would give more. They are not begun.
        TimeLimitError: It takes longer. Operations that have begun are waited for.
    """
    with in_time(what), _Bounds(what, in_all):
        yield


@contextmanager
def in_time(what: str) -> Iterator[None]:
    """Within, Python code is interrupted after :data:`MOST_SECONDS`: in the main thread of a system with alarms.

    Raises:
        TimeLimitError: It takes longer.
    """

    def late(*_: object) -> NoReturn:
        raise _too_late(what)

    free = (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL  # an alarm that somebody else set stays theirs
    )
    if not free:
        yield
        return
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS, 1.0)  # again and again: code may catch what it raises
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _too_late(what: str) -> TimeLimitError:
    return TimeLimitError(f"{what} takes longer than {MOST_SECONDS:g} s: it is given up")


class _Bounds(TorchDispatchMode):
    """Asks of every operation how large its result will be before it is begun."""

    def __init__(self, what: str, in_all: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._what = what
        self._in_all = in_all
        self._made = 0
        self._end = time.monotonic() + MOST_SECONDS

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operation of torch's, whose type is not public
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever it gives
        if time.monotonic() > self._end:
            raise _too_late(self._what)
        size = _size_of_result(func, args, kwargs or {})
        self._made += size
        if size > MOST_ELEMENTS:
            raise ModelError(f"{self._what} asks for {size:,} values in one operation; {MOST_ELEMENTS:,} are allowed")
        if self._made > self._in_all:
            raise ModelError(f"{self._what} asks for more than {self._in_all:,} values in all")
        return func(*args, **(kwargs or {}))


def _size_of_result(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:  # noqa: ANN401
    """How many new elements an operation will make; 0 where nobody can tell, and of views."""
    schema = func._schema  # noqa: SLF001 - torch has no other name for it
    if any(result.alias_info is not None for result in schema.returns):
        return 0
    options = dict(tree_map(_shadow, dict(kwargs)))
    if any(argument.name == "device" for argument in schema.arguments):
        options["device"] = torch.device("meta")
    try:
        result = func(*tree_map(_shadow, args), **options)
    except Exception:  # noqa: BLE001 - depends on values, or is wrong: then the operation itself says so
        return 0
    return sum(math.prod(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))


def _shadow(value: Any) -> Any:  # noqa: ANN401 - an argument of any operation
    """A tensor's shape without its memory; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
