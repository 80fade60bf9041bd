"""Where finished parts of a job are kept, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from neuralsanitizer.errors import RunError
from neuralsanitizer.storage import read_arrays, write_arrays

__all__ = ["FolderStore", "MemoryStore", "Part", "ReadThroughStore", "Store"]

_META = "meta.json"


class Part(NamedTuple):
    """A finished part: arrays, and facts that JSON can hold."""

    arrays: Mapping[str, npt.NDArray[Any]]
    meta: Any


class Store(Protocol):
    """Keeps parts by key."""

    @property
    def outlives(self) -> bool:
        """Whether what it keeps is there after the process."""

    def get(self, key: str) -> Part | None:
        """The part, or ``None`` if it is missing or damaged: then it is computed again."""

    def put(self, key: str, part: Part) -> None:
        """Keep a part; a crash during the call leaves it missing, never half written."""


class MemoryStore:
    """Keeps parts for as long as it lives."""

    outlives = False

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def get(self, key: str) -> Part | None:
        """The part, or ``None``."""
        return self._parts.get(key)

    def put(self, key: str, part: Part) -> None:
        """Keep a part."""
        self._parts[key] = part


class ReadThroughStore:
    """Finds some parts in another store, which it never writes to, and keeps the rest in memory.

    Args:
        source: Where parts are looked up.
        prefix: Keys that may be looked up there.
    """

    outlives = False

    def __init__(self, source: Store, prefix: str) -> None:
        self._source, self._prefix, self._own = source, prefix, MemoryStore()

    def get(self, key: str) -> Part | None:
        """The part, from either store, or ``None``."""
        return self._own.get(key) or (self._source.get(key) if key.startswith(self._prefix) else None)

    def put(self, key: str, part: Part) -> None:
        """Keep a part in memory."""
        self._own.put(key, part)


class FolderStore:
    """Keeps each part as one ``.npz`` file of a folder.

    Args:
        folder: Made when the first part is kept.
    """

    outlives = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Part | None:
        """The part, or ``None`` if its file is missing or damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            arrays = read_arrays(path)
            meta = json.loads(bytes(arrays.pop(_META)).decode("utf-8"))
        except (RunError, KeyError, ValueError, RecursionError):
            return None
        return Part(arrays, meta)

    def put(self, key: str, part: Part) -> None:
        """Write the part's file, atomically.

        Raises:
            OutputError: It cannot be written.
        """
        meta = np.frombuffer(json.dumps(part.meta, allow_nan=False).encode("utf-8"), dtype=np.uint8)
        write_arrays(self._path(key), {**part.arrays, _META: meta})

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
