"""What a pickle would build, told from its operations before anybody follows them.

``torch.load(..., weights_only=True)`` calls nothing that a file names, but it builds what the file describes: a few
bytes describe tuples in tuples that take for ever to be hashed, or that overflow the stack.
"""

from __future__ import annotations

import pickletools
import struct
from io import BytesIO
from typing import Any, NamedTuple

from neuralsanitizer.errors import ModelError

__all__ = ["check_pickles"]

_MOST_OPERATIONS = 1_000_000  # a checkpoint has some thirty a tensor
_MOST_PARTS = 20_000_000  # of one object, what is shared counted as often as it is named
_DEEPEST = 1000


class _Built(NamedTuple):
    """An object: its parts in all, and how deep they lie in each other."""

    parts: int = 1
    depth: int = 0


_LEAF = _Built()
_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"}


def _effect(operation: Any) -> tuple[bool, int, int]:  # noqa: ANN401 - of pickletools
    """Whether an operation takes all down to a mark, how many objects then or instead, and how many it gives."""
    before = operation.stack_before
    to_mark = pickletools.markobject in before
    below = before.index(pickletools.markobject) if to_mark else len(before)
    return to_mark, below, len(operation.stack_after)


_EFFECTS = {operation.name: _effect(operation) for operation in pickletools.opcodes}
_PLAIN = {kind for kind, effect in _EFFECTS.items() if effect == (False, 0, 1)}  # a text, a number, an empty list


def check_pickles(content: bytes, name: str, count: int = 1) -> None:
    """Follow the operations of pickles that lie behind each other, without their values.

    Args:
        content: Begins with them.
        name: Of the file, for messages.
        count: Of pickles; fewer are right too if nothing follows them.

    Raises:
        ModelError: They are damaged, or build more than weights need.
    """
    stream, operations = BytesIO(content), 0
    try:
        while count and stream.tell() < len(content):
            operations = _follow(stream, name, operations)
            count -= 1
    except (ValueError, IndexError, KeyError, EOFError, struct.error) as error:
        raise ModelError(f"{name} is damaged: its pickle ends too early, or makes no sense") from error


def _follow(stream: BytesIO, name: str, operations: int) -> int:
    """One pickle; gives the number of operations so far."""
    stack: list[_Built | None] = []  # None: a mark
    memo: dict[Any, _Built] = {}
    for operation, argument, _ in pickletools.genops(stream):
        operations += 1
        if operations > _MOST_OPERATIONS:
            raise ModelError(f"{name} is no state_dict: its pickle has more operations than {_MOST_OPERATIONS:,}")
        kind = operation.name
        if kind in {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            top = stack[-1]
            if top is not None:
                memo[len(memo) if kind == "MEMOIZE" else argument] = top
        elif kind in {"GET", "BINGET", "LONG_BINGET"}:
            stack.append(memo[argument])
        elif kind == "MARK":
            stack.append(None)
        elif kind == "DUP":
            stack.append(stack[-1])
        elif kind == "GLOBAL" and str(argument).endswith(" bytearray"):  # torch would fill one of any size
            raise ModelError(f"{name} is no state_dict: its pickle asks for a bytearray")
        elif kind in _PLAIN:
            stack.append(_LEAF)
        else:
            _build(kind, stack, name)
    return operations


def _build(kind: str, stack: list[_Built | None], name: str) -> None:
    """Take from the stack what an operation takes, and put there what it makes of it."""
    to_mark, below, gives = _EFFECTS[kind]
    taken: list[_Built | None] = []
    if to_mark:
        while (top := stack.pop()) is not None:
            taken.append(top)
    taken += [stack.pop() for _ in range(below)]
    parts = [one for one in taken if one is not None]
    depth = max((one.depth for one in parts), default=-1) + 1
    if kind in _FILLING:  # what is filled was taken last, and is no deeper than it or what is put into it
        depth = max(parts[-1].depth, max((one.depth for one in parts[:-1]), default=-1) + 1)
    made = _Built(1 + sum(one.parts for one in parts), depth)
    if made.parts > _MOST_PARTS or made.depth > _DEEPEST:
        raise ModelError(f"{name} is no state_dict: its pickle builds objects in objects without end")
    stack.extend([made] * gives)
