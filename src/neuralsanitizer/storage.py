"""Run folders: what a scan, a repair and a verification leave on disk, written so that no crash can spoil it.

Layout::

    RUN/
      run.json              the Run record
      arrays.npz            mask_<label>, pattern_<label>, heat_<label>, colours_<label>; examples (uint8),
                            example_labels
      triggers/             the same triggers as pictures: label-<n>-{mask,pattern,stamped}.png
      state/                what an interrupted scan needs to go on: its key, references, finished labels
      repair.json           the Repair record, if the model was repaired
      repair.npz            every trigger that the repair removed: mask_<i>, pattern_<i>, colours_<i>, label_<i>
      verification.json     the Verification record, if the repair was verified
      input-filter.json     the FilterRecord, if an input filter was fitted; a filter itself may lie here too, under
                            any other name: NAME.safetensors with NAME.json

Every file is written under a temporary name, flushed, and moved into place: a reader sees the old file or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.errors import OutputError, RunError, UsageError
from neuralsanitizer.records import Array, FilterRecord, Repair, Run, Trigger, Verification, from_json, to_json

__all__ = ["RunFolder", "SavedRun", "read_arrays", "to_picture", "write_arrays", "write_atomically", "write_json"]

T = TypeVar("T")
Picture = npt.NDArray[np.uint8]
_TOLD, _LONGEST = 5, 48  # differences between two scans that are told, and letters of each value
_MOST_UNFOLDED = 1 << 30  # bytes that arrays take beyond those of their file: masks are mostly zeros, and shrink well
# What numpy and zipfile raise on damaged archives: NotImplementedError and encryption are RuntimeErrors.
_DAMAGE = (OSError, ValueError, RuntimeError, EOFError, MemoryError, BadZipFile, TokenError, zlib.error)


@dataclass(frozen=True, eq=False)
class SavedRun:
    """A run folder, read.

    Attributes:
        run: The scan.
        triggers: Reconstructed triggers by label; infected labels always have one.
        examples: uint8 (images, channels, height, width): a few clean images, for pictures.
        example_labels: int64 (images,): their labels.
        repair: The repair, if there was one.
        repair_triggers: What it removed, in the order of ``repair.triggers``.
        verification: The verification of the repaired model, if there was one. One of other weights than the repair's
            is left out: it proves nothing of this repair.
        filter: The input filter that was fitted last, if there was one.
    """

    run: Run
    triggers: Mapping[int, Trigger]
    examples: Picture
    example_labels: npt.NDArray[np.int64]
    repair: Repair | None = None
    repair_triggers: Sequence[Trigger] = field(default_factory=tuple)
    verification: Verification | None = None
    filter: FilterRecord | None = None


class RunFolder:
    """A run folder on disk.

    Args:
        path: The folder. It need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def state(self) -> Path:
        """Where an interrupted scan keeps what it finished."""
        return self.path / "state"

    def keeps(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is that of a file that the folder itself is made of: nothing else may be written there."""
        path = Path(path)
        return path.name in _OWN and path.parent.resolve() == self.path.resolve()

    def exists(self) -> bool:
        """Whether the folder holds a finished scan."""
        return (self.path / "run.json").is_file()

    def claim(self, inputs: Mapping[str, Any], *, resume: bool) -> Path:
        """Take the folder for a scan, or go on with the one that was interrupted there.

        Args:
            inputs: Everything that the scan depends on, by name: JSON.
            resume: Whether to go on.

        Returns:
            The folder of the state.

        Raises:
            OutputError: There is something already, and ``resume`` was not asked for. What a claim leaves that was
                interrupted itself does not count.
            RunError: What is there is of another model, data set or configuration.
        """
        lock = self.state / "key"
        if not resume:
            if self.path.exists() and (not self.path.is_dir() or any(map(self._counts, self.path.rglob("*")))):
                raise OutputError(
                    f"{self.path} exists and is not empty: choose another folder, or go on with --resume if a scan of "
                    "the same model was interrupted there"
                )
            write_json(lock, inputs)
            return self.state
        if not lock.is_file():
            raise RunError(f"{self.path} holds no interrupted scan to resume")
        if differences := _differences(lock, inputs):
            raise RunError(
                f"{self.path} holds a scan of another model, data set, configuration or version: it cannot go on with "
                f"these; choose another output folder. What differs: {differences}"
            )
        return self.state

    def _counts(self, path: Path) -> bool:
        """Whether something in the folder is more than a claim leaves that was interrupted before it had its key."""
        half_written = path.parent == self.state and path.name.startswith(_temporary_prefix("key"))
        return not half_written and not (path == self.state and path.is_dir())

    def write_run(
        self, run: Run, triggers: Mapping[int, Trigger], examples: Array, example_labels: Sequence[int]
    ) -> None:
        """Write a finished scan.

        Args:
            run: The scan.
            triggers: Reconstructed triggers by label.
            examples: float32 (images, channels, height, width) in [0, 1].
            example_labels: Their labels.

        Raises:
            OutputError: The folder cannot be written.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "examples": to_picture(examples),
            "example_labels": np.asarray(example_labels, dtype=np.int64),
        }
        for label, trigger in triggers.items():
            arrays |= _trigger_arrays(trigger, label)
            for name, picture in _pictures(trigger, examples).items():
                write_atomically(self.path / "triggers" / f"label-{label}-{name}.png", _png(picture))
        write_arrays(self.path / "arrays.npz", arrays)
        self.write_verdict(run)  # last: its presence says that the scan is finished

    def write_verdict(self, run: Run) -> None:
        """Write the record of a scan alone: the triggers of a finished one stay, its verdict may have changed.

        Raises:
            OutputError: The folder cannot be written.
        """
        write_json(self.path / "run.json", to_json(run))

    def write_repair(self, repair: Repair, triggers: Sequence[Trigger]) -> None:
        """Write what a repair did, and the triggers it removed, beside the scan; a proof of an older repair goes.

        Raises:
            OutputError: The folder cannot be written.
        """
        for name in ("verification.json", "repair.json"):  # an interruption must not leave them beside the new triggers
            _remove(self.path / name)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for i, trigger in enumerate(triggers):
            arrays |= _trigger_arrays(trigger, i)
            arrays[f"label_{i}"] = np.asarray(trigger.label)
        write_arrays(self.path / "repair.npz", arrays)
        write_json(self.path / "repair.json", to_json(repair))

    def write_verification(self, verification: Verification) -> None:
        """Write the proof beside the scan."""
        write_json(self.path / "verification.json", to_json(verification))

    def write_filter(self, record: FilterRecord) -> None:
        """Write what an input filter does beside the scan."""
        write_json(self.path / _FILTER, to_json(record))

    def read(self) -> SavedRun:
        """Read the folder.

        Raises:
            RunError: It is no run folder, a file in it is damaged, or it was written by an incompatible version.
        """
        if not self.exists():
            begun = (self.path / "state").is_dir()
            raise RunError(
                f"{self.path} is not the folder of a finished scan: "
                + (
                    "its scan was interrupted; the same command with --resume goes on"
                    if begun
                    else "it has no run.json"
                )
            )
        arrays = read_arrays(self.path / "arrays.npz")
        repair = self._read_optional("repair.json", Repair)
        try:
            saved = SavedRun(
                run=self._read("run.json", Run),
                triggers={t.label: t for t in _triggers_of(arrays)},
                examples=arrays["examples"].astype(np.uint8),
                example_labels=arrays["example_labels"].astype(np.int64),
                repair=repair,
                repair_triggers=self._read_repair_triggers() if repair is not None else (),
                verification=self._read_optional("verification.json", Verification),
                filter=self._read_optional(_FILTER, FilterRecord),
            )
            _check_consistent(saved)
            if not _proves(saved.verification, saved.repair):
                saved = replace(saved, verification=None)
        except (KeyError, ValueError) as error:
            raise RunError(f"{self.path} is damaged ({error}): scan the model again") from error
        return saved

    def _read(self, name: str, cls: type[T]) -> T:
        path = self.path / name
        try:
            return from_json(cls, json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant))
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            raise RunError(f"{path} cannot be read ({error})") from error
        except RunError as error:
            raise RunError(f"{path}: {error}") from error

    def _read_optional(self, name: str, cls: type[T]) -> T | None:
        return self._read(name, cls) if (self.path / name).is_file() else None

    def _read_repair_triggers(self) -> tuple[Trigger, ...]:
        if not (self.path / "repair.npz").is_file():
            return ()
        arrays = read_arrays(self.path / "repair.npz")
        return tuple(replace(t, label=int(arrays[f"label_{t.label}"])) for t in _triggers_of(arrays))


_FILTER = "input-filter.json"
_OWN = {"run.json", "arrays.npz", "repair.json", "repair.npz", "verification.json", "report.html", _FILTER}


def _proves(verification: Verification | None, repair: Repair | None) -> bool:
    """Whether a proof is of the repair's weights; without a repair on record it may be of any."""
    return verification is None or repair is None or verification.repaired_sha256 == repair.repaired_sha256


def _no_constant(name: str) -> None:
    """NaN and infinities are no JSON, though Python reads them."""
    raise ValueError(f"{name} is no number")


def _check_consistent(saved: SavedRun) -> None:
    """What reports and repairs rely on: shapes that agree, and a trigger for each infected label."""
    shape = saved.run.model.input_shape
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"input shape {shape}")
    if saved.examples.shape[1:] != shape or len(saved.examples) != len(saved.example_labels):
        raise ValueError(f"examples of shape {saved.examples.shape} for an input of {shape}")
    _check_speech(saved.run.data.speech, shape)
    for trigger in (*saved.triggers.values(), *saved.repair_triggers):
        heat = trigger.mask if trigger.heat is None else trigger.heat
        if trigger.pattern.shape != shape or heat.shape != shape[1:]:
            raise ValueError(f"a trigger of shape {trigger.pattern.shape} for an input of {shape}")
    if saved.repair is not None and len(saved.repair.triggers) != len(saved.repair_triggers):
        raise ValueError(f"{len(saved.repair_triggers)} triggers of a repair that removed {len(saved.repair.triggers)}")
    missing = set(saved.run.verdict.infected_labels) - set(saved.triggers)
    if missing:
        raise ValueError(f"no trigger of the infected labels {sorted(missing)}")


def _check_speech(speech: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """What spectrograms are drawn from: settings that MFCC can have, and pictures of that many coefficients."""
    if not speech:
        return
    try:
        config = from_json(MfccConfig, {name: value for name, value in speech.items() if name != "rate"})
    except UsageError as error:
        raise ValueError(str(error)) from error
    if (shape[0], shape[2]) != (1, config.coefficients):
        raise ValueError(f"MFCC of {config.coefficients} coefficients for an input of {shape}")


def _differences(lock: Path, inputs: Mapping[str, Any]) -> str:
    """In which inputs a scan differs from the one of a folder, in words; nothing if in none."""
    try:
        kept = json.loads(lock.read_bytes())
        there, here = _flat(kept if isinstance(kept, dict) else {"inputs": kept}), _flat(dict(inputs))
    except (OSError, ValueError, RecursionError):
        return "what the folder says of its scan cannot be read"
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    told = [f"{_told(name)} ({_told(there.get(name))} there, {_told(here.get(name))} here)" for name in names[:_TOLD]]
    return ", ".join(told) + (f", and {len(names) - _TOLD} more" if len(names) > _TOLD else "")


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """JSON objects within each other as one, with names like ``settings.reconstruct.steps``, and values as text."""
    if not isinstance(value, dict):
        return {name: json.dumps(value)}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: text for part in parts for key, text in part.items()}


def _told(text: str | None) -> str:
    """A name or a value for people. A folder may come from anybody, and have anything in it."""
    plain = "nothing" if text is None else ascii(text)[1:-1]
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 3] + "..."


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part.

    Raises:
        OutputError: The folder cannot be made, the disk is full, or there is no permission.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_temporary_prefix(path.name))
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(_mode())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _temporary_prefix(name: str) -> str:
    """How the temporary names begin that a file is written under."""
    return f".{name}."


def _remove(path: Path) -> None:
    """Remove a file that may not be there.

    Raises:
        OutputError: There is no permission.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be removed: {error.strerror or error}") from error


def _mode() -> int:
    """The permissions that a new file gets from the user's umask: mkstemp's own keep reports from everybody else."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a ``.npz`` file of plain arrays.

    Raises:
        RunError: It is damaged, or holds pickled objects.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > _MOST_UNFOLDED + path.stat().st_size:
                raise ValueError("it unfolds as a decompression bomb does")
            return {key: archive[key] for key in archive.files}
    except _DAMAGE as error:
        raise RunError(f"{path} cannot be read ({error}): scan the model again") from error


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a compressed ``.npz`` file atomically."""
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    write_atomically(path, buffer.getvalue())


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically. NaN and infinities are refused: they are no JSON."""
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # File names need not be UTF-8: what cannot be encoded is written as JSON escapes.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def to_picture(values: Array) -> Picture:
    """Pixel values in [0, 1] as uint8, rounded."""
    picture: Picture = np.clip(np.rint(np.asarray(values) * 255), 0, 255).astype(np.uint8)
    return picture


def _trigger_arrays(trigger: Trigger, key: int) -> dict[str, npt.NDArray[Any]]:
    parts = {"mask": trigger.mask, "pattern": trigger.pattern, "heat": trigger.heat, "colours": trigger.colours}
    return {f"{name}_{key}": values for name, values in parts.items() if values is not None}


def _triggers_of(arrays: Mapping[str, npt.NDArray[Any]]) -> list[Trigger]:
    for name, values in arrays.items():
        if not name.startswith(("example", "label_")) and not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    keys = sorted(int(name.removeprefix("mask_")) for name in arrays if name.startswith("mask_"))
    return [
        Trigger(k, arrays[f"mask_{k}"], arrays[f"pattern_{k}"], arrays.get(f"heat_{k}"), arrays.get(f"colours_{k}"))
        for k in keys
    ]


def _pictures(trigger: Trigger, examples: Array) -> dict[str, Picture]:
    pictures = {"mask": to_picture(trigger.mask[None]), "pattern": to_picture(trigger.pattern)}
    if len(examples):
        pictures["stamped"] = to_picture(trigger.onto(examples[0]))
    return pictures


def _png(picture: Picture) -> bytes:
    """PNG of a (channels, height, width) picture; anything but one or three channels is shown as its mean."""
    if picture.shape[0] not in {1, 3}:
        picture = np.rint(picture.mean(axis=0, keepdims=True)).astype(np.uint8)
    image = Image.fromarray(picture[0] if picture.shape[0] == 1 else picture.transpose(1, 2, 0))
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
