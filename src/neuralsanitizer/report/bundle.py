"""Evidence: one zip with all that a scan left, and a manifest of hashes, to be kept, sent, signed, and checked later.

The same run folder always gives the same bytes: the manifest has no time of its own, and the archive none at all.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from neuralsanitizer.errors import RunError
from neuralsanitizer.report.files import FILE_NAMES, rendered
from neuralsanitizer.report.machine import run_json
from neuralsanitizer.storage import SavedRun

__all__ = ["MANIFEST", "bundle_of", "check_bundle"]

MANIFEST = "manifest.json"
_FORMAT = "neuralsanitizer-evidence/1"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_LARGEST = 512 * 1024**2  # bytes of one file
_MOST_FILES = 100
_RECORDS = (
    "run.json",
    "arrays.npz",
    "repair.json",
    "repair.npz",
    "verification.json",
    "input-filter.json",
)
"""What is taken of a run folder; pages are made anew from these."""


def bundle_of(saved: SavedRun, folder: Path) -> bytes:
    """The zip of a run folder.

    Args:
        saved: The run.
        folder: Where it was read from.

    Raises:
        RunError: A file of it cannot be read.
    """
    files = {name: rendered(saved, format_).encode() for format_, name in FILE_NAMES.items()}
    files["report.json"] = (json.dumps(run_json(saved), indent=2, allow_nan=False) + "\n").encode()
    try:
        files |= {name: (folder / name).read_bytes() for name in _RECORDS if (folder / name).is_file()}
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror or error}") from error
    run = saved.run
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "verdict": run.verdict.finding.value,
        "scanned": run.created,
        "method": run.method,
        "preset": run.preset,
        "seed": run.seed,
        "model": {"name": run.model.name, "sha256": run.model.sha256},
        "clean_set": {"name": run.data.name, "sha256": run.data.sha256},
        "versions": {
            "neuralsanitizer": run.environment.neuralsanitizer,
            "python": run.environment.python,
            "torch": run.environment.torch,
            "numpy": run.environment.numpy,
        },
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    if saved.repair is not None:
        manifest["repaired_model"] = {"sha256": saved.repair.repaired_sha256}
    if saved.verification is not None:
        manifest["verdict_after_repair"] = saved.verification.finding.value
    files[MANIFEST] = (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode()
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda one: (one != MANIFEST, one)):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name], zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def check_bundle(path: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there, and as they were.

    This tells damage and changes of single files. Who made the bundle only a signature of the whole file tells.

    Args:
        path: The zip.

    Raises:
        RunError: It cannot be read, is no bundle, or a file was changed, left out or added; the message names it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(names) > _MOST_FILES or len(set(names)) < len(names) or MANIFEST not in names:
                raise RunError(f"{path} is no bundle: it has no {MANIFEST}, or too many files, or two of one name")
            large = [entry.filename for entry in entries if entry.file_size > _LARGEST]
            if large:
                raise RunError(f"{path}: {large[0]} is larger than {_LARGEST // 1024**2} MiB")
            manifest = json.loads(_read(archive, MANIFEST))
            listed = manifest.get("files") if isinstance(manifest, dict) else None
            if not isinstance(listed, dict) or manifest.get("format") != _FORMAT:
                raise RunError(f"{path} is no bundle of a known format: its {MANIFEST} is not one of {_FORMAT}")
            stray = sorted(set(listed) ^ (set(names) - {MANIFEST}))
            if stray:
                raise RunError(f"{path}: {stray[0]} was {'left out' if stray[0] in listed else 'added'}")
            for name, digest in listed.items():
                if hashlib.sha256(_read(archive, name)).hexdigest() != digest:
                    raise RunError(f"{path}: {name} was changed")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RuntimeError,
        RecursionError,
        EOFError,
        zlib.error,
    ) as error:
        raise RunError(f"{path} is damaged, or no bundle ({error})") from error
    return dict(manifest)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of an archive, whose header may claim less than there is."""
    with archive.open(name) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise RunError(f"{name} is larger than {_LARGEST // 1024**2} MiB")
    return content
