"""The records that flow between the stages, and how they are written down.

Every arrow of the pipeline carries one of these frozen dataclasses::

    SuspectModel -> [Reference] -> [Trigger] -> TransferMatrix -> [LabelFinding] -> Verdict -> Run
                                                              Run -> Repair -> Verification

All but :class:`Trigger` are plain data: :func:`to_json` and :func:`from_json` turn them into JSON objects and back, by
field name and type. Arrays (masks, patterns, heat maps, example images) live beside the JSON in ``.npz`` files; see
:mod:`neuralsanitizer.storage` for the layout of a run folder.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cache
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt

from neuralsanitizer.errors import RunError

__all__ = [
    "SCHEMA_VERSION",
    "Array",
    "DataRecord",
    "EnvironmentRecord",
    "FilterRecord",
    "FilteredLabel",
    "Finding",
    "IndexEntry",
    "LabelFinding",
    "ModelRecord",
    "PrunedShare",
    "ReferenceRecord",
    "Repair",
    "RepairAttempt",
    "RepairedTrigger",
    "RocPoint",
    "Run",
    "SelfCheck",
    "TransferMatrix",
    "Trigger",
    "TriggerOutline",
    "Verdict",
    "Verification",
    "colour_chart",
    "from_json",
    "recoloured",
    "to_json",
]

SCHEMA_VERSION = "1.2"
"""Version of the JSON that a run folder holds. The first number changes when an old reader would misread it."""

Array = npt.NDArray[np.float32]
T = TypeVar("T")


class Finding(StrEnum):
    """What was found of a label or of a model."""

    INFECTED = "infected"
    CLEAN = "clean"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, eq=False)
class Trigger:
    """A reconstructed trigger: where it covers the image, and with what; or how it changes the colours.

    Stamping an image ``x`` (channels, height, width; pixel values scaled to [0, 1]) gives
    ``x * (1 - mask) + pattern * mask``; with ``colours``, each pixel's channels become
    ``colours[:, :-1] @ x + colours[:, -1]``, cut to [0, 1].

    Attributes:
        label: The label that stamped images are sent to.
        mask: float32 (height, width) in [0, 1], shared by all channels.
        pattern: float32 (channels, height, width) in [0, 1].
        heat: float32 (height, width) in [0, 1]: how much each pixel contributes to ``label`` (mean Grad-CAM over
            stamped images, scaled to its maximum), or ``None`` where it was not computed.
        colours: float32 (channels, channels + 1): an affine change of every pixel's colour, or ``None`` of a patch.
            The mask is then 1 everywhere, and the pattern what becomes of :func:`colour_chart`.
    """

    label: int
    mask: Array
    pattern: Array
    heat: Array | None = None
    colours: Array | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.pattern.ndim != 3 or self.pattern.shape[1:] != self.mask.shape:
            shapes = f"{self.mask.shape} and {self.pattern.shape}"
            raise ValueError(f"mask (H, W) and pattern (C, H, W) expected, got {shapes}")
        channels = self.pattern.shape[0]
        if self.colours is not None and self.colours.shape != (channels, channels + 1):
            raise ValueError(f"colours ({channels}, {channels + 1}) expected, got {self.colours.shape}")

    @classmethod
    def of_colours(cls, label: int, colours: Array, size: tuple[int, int]) -> Self:
        """A change of colours.

        Args:
            label: The label that changed images are sent to.
            colours: float32 (channels, channels + 1).
            size: (height, width) of the images.
        """
        chart = recoloured(colour_chart(len(colours), size), colours)
        return cls(label, np.ones(size, np.float32), chart, colours=colours)

    @property
    def family(self) -> str:
        """``patch`` or ``colours``."""
        return "patch" if self.colours is None else "colours"

    @property
    def outline(self) -> TriggerOutline:
        """The trigger without its arrays."""
        return TriggerOutline(self.label, self.size, self.family)

    def onto(self, images: Array) -> Array:
        """Stamped copies of images, float32 (..., channels, height, width) in [0, 1]."""
        if self.colours is not None:
            return recoloured(images, self.colours)
        covered: Array = images * (1 - self.mask) + self.pattern * self.mask
        return covered

    @property
    def size(self) -> float:
        """Number of pixels that the mask covers: the sum of its values (its L1 norm)."""
        return float(self.mask.sum())

    def __repr__(self) -> str:
        channels, height, width = self.pattern.shape
        what = "a change of colours" if self.colours is not None else f"size={self.size:.1f} of {height * width} pixels"
        return f"Trigger(label={self.label}, {what}, channels={channels})"


@dataclass(frozen=True)
class TriggerOutline:
    """What is remembered of a trigger whose arrays are not: of many labels they would fill the memory.

    Attributes:
        label: The label that stamped images are sent to.
        size: Number of pixels that the mask covers.
        family: ``patch`` or ``colours``.
    """

    label: int
    size: float
    family: str


def recoloured(images: Array, colours: Array) -> Array:
    """Images (..., channels, height, width) in [0, 1] with every pixel's colour changed, cut to [0, 1]."""
    moved = np.einsum("dc,...chw->...dhw", colours[:, :-1], images) + colours[:, -1, None, None]
    result: Array = np.clip(moved, 0, 1).astype(np.float32)
    return result


def colour_chart(channels: int, size: tuple[int, int]) -> Array:
    """A picture of many colours, float32 (channels, height, width) in [0, 1]: what a change of colours is shown on.

    The first channel grows from left to right, the second from top to bottom, all others against the first.
    """
    height, width = size
    across = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), size)
    down = np.broadcast_to(np.linspace(0, 1, height, dtype=np.float32)[:, None], size)
    return np.stack([across, down, *[1 - across] * channels][:channels])


@dataclass(frozen=True)
class TransferMatrix:
    """Attack success of each label's trigger on each test reference.

    Attributes:
        references: Names of the test references, one a column.
        rates: One tuple a trigger, one rate in [0, 1] a reference.
    """

    references: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LabelFinding:
    """What one method says of one label.

    Attributes:
        label: Index of the label, from 0.
        name: Its name, or its index as text.
        finding: The label's verdict.
        attack_success: Share in [0, 1] of clean images of other labels that the trigger sends to ``label``.
        mask_size: Sum of the trigger's mask, in pixels.
        transfer: Attack success of the trigger on each test reference (empty for methods that have none).
        confidence: In [0, 1]: how sure the method is of ``finding``; ``None`` if the method has no measure of it.
        reason: One sentence for people.
        metrics: Further numbers of the method, by name (for example ``anomaly_index``).
        has_trigger: Whether the run folder holds a mask and a pattern for the label.
    """

    label: int
    name: str
    finding: Finding
    attack_success: float
    mask_size: float
    transfer: tuple[float, ...] = ()
    confidence: float | None = None
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    has_trigger: bool = False


@dataclass(frozen=True)
class Verdict:
    """The verdict on a model, which follows from its labels.

    Attributes:
        finding: ``infected`` if a label is; else ``inconclusive`` if a label is or the scan could not judge;
            else ``clean``.
        reason: One sentence for people. Never "safe": "no backdoor found by METHOD under ASSUMPTIONS".
        assumptions: What must hold for the verdict to mean something, one sentence each.
        labels: One finding a label that was examined, in label order.
    """

    finding: Finding
    reason: str
    assumptions: tuple[str, ...]
    labels: tuple[LabelFinding, ...]

    @property
    def infected_labels(self) -> tuple[int, ...]:
        """Labels found infected."""
        return tuple(f.label for f in self.labels if f.finding is Finding.INFECTED)


@dataclass(frozen=True)
class ReferenceRecord:
    """A model that stands for "the suspect without its backdoor".

    Attributes:
        name: Unique within the run.
        kind: ``tuned`` (last layers re-initialised and retrained), ``scratch`` (fresh weights, true labels),
            ``distilled`` (fresh weights, the suspect's outputs on mixed clean images) or ``derived`` (the same, from
            weights between a distilled reference's and fresh ones).
        role: ``guide`` (constrains the reconstruction) or ``test`` (the transfer test). Never both.
        layers: Re-initialised layers, counted from the third-last (1) to the last (3); empty unless tuned.
        clean_accuracy: On the clean set's held-out part, [0, 1].
        agreement: Share of held-out clean images on which it names the same label as the suspect, [0, 1].
        usable: Whether it was used.
        reason: Why not, if not.
        seconds: What it cost.
    """

    name: str
    kind: str
    role: str
    layers: tuple[int, ...]
    clean_accuracy: float
    agreement: float
    usable: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class SelfCheck:
    """Whether the suspect does what it is for, on the clean set it was given.

    Attributes:
        clean_accuracy: Share of clean images named rightly, [0, 1].
        chance: Accuracy of always naming the commonest label, [0, 1].
        images: Number of images it was measured on.
        passed: Whether the scan may go on.
        note: The likely reason if not.
    """

    clean_accuracy: float
    chance: float
    images: int
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """Which model was scanned.

    Attributes:
        name: File name, without folders.
        sha256: Hash of the file's bytes, of a folder's files, or of the weights where there was neither.
        architecture: Name in the registry, ``package.module:function``, or the class name of a user's module.
        labels: Number of labels.
        label_names: Their names (indices as text where none were given).
        input_shape: (channels, height, width).
        mean: Subtracted from each channel of pixel values in [0, 1]; one value a channel.
        std: Divides it afterwards; one value a channel.
        pixel_range: The range of the raw pixel values that [0, 1] stands for.
        output: ``logits`` or ``probabilities`` (whose logarithm was used).
        notes: What loading had to do (prefixes removed, and so on).
    """

    name: str
    sha256: str
    architecture: str
    labels: int
    label_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: tuple[float, float]
    output: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRecord:
    """Which clean set was used.

    Attributes:
        name: File or folder name, without leading folders.
        sha256: Hash of the pixel values and labels as loaded.
        format: ``npz``, ``folder``, ``wav``, ``idx`` or ``bundled``.
        images: Number of images.
        images_per_label: Count for each label from 0.
        notes: What loading had to do (conversions, resizing).
        speech: Of recordings: ``rate``, samples a second, and the settings of their MFCC
            (:class:`neuralsanitizer.config.MfccConfig`); empty for images.
    """

    name: str
    sha256: str
    format: str
    images: int
    images_per_label: tuple[int, ...]
    notes: tuple[str, ...] = ()
    speech: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvironmentRecord:
    """Where the run was made: enough to explain a difference between two machines."""

    neuralsanitizer: str
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    threads: int
    dtype: str
    load_average: float | None


@dataclass(frozen=True)
class Run:
    """A scan, whole: everything that a report needs except arrays.

    Attributes:
        schema_version: :data:`SCHEMA_VERSION` at the time of writing.
        created: ISO 8601 time, UTC.
        method: ``neural-sanitizer`` or ``neural-cleanse``.
        preset: ``default`` or ``paper``.
        seed: The seed that all of the run's randomness derives from.
        model: Which model.
        data: Which clean set.
        settings: Every setting of the method, nested as in :mod:`neuralsanitizer.config`, in JSON's types.
        environment: Versions and machine.
        self_check: Accuracy on the clean set.
        references: The reference models, used or not.
        verdict: The outcome.
        timings: Seconds by stage.
    """

    created: str
    method: str
    preset: str
    seed: int
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    self_check: SelfCheck
    references: tuple[ReferenceRecord, ...]
    verdict: Verdict
    timings: dict[str, float]
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class RepairedTrigger:
    """One reversed trigger, before and after the repair.

    Attributes:
        label: Its target label.
        round: 0 if the scan found it; n if the n-th scan of the label after removal found it.
        mask_size: Sum of its mask, in pixels.
        attack_success_before: On the model as it was, [0, 1].
        attack_success_after: On the repaired model, [0, 1].
    """

    label: int
    round: int
    mask_size: float
    attack_success_before: float
    attack_success_after: float


@dataclass(frozen=True)
class IndexEntry:
    """What became of one of many models.

    Attributes:
        model: Its file.
        folder: Name of its run folder; empty if it could not be scanned.
        sha256: Of the file; empty if it could not be read.
        finding: The verdict; ``None`` if it could not be scanned.
        reason: Of the verdict, or why there is none.
        infected: Labels found infected.
        clean_accuracy: On the clean set, [0, 1].
        seconds: That it took.
    """

    model: str
    folder: str
    sha256: str
    finding: Finding | None
    reason: str
    infected: tuple[int, ...]
    clean_accuracy: float
    seconds: float


@dataclass(frozen=True)
class PrunedShare:
    """One point of a pruning's curve.

    Attributes:
        layer: ``dense`` (neurons of the second-to-last layer) or ``convolution`` (channels of the last one).
        share: Of the layer's neurons that are silent, [0, 1].
        attack_success: Largest one of a reversed trigger, [0, 1], on the images that neurons were ranked with.
        clean_accuracy: On the same, [0, 1].
    """

    layer: str
    share: float
    attack_success: float
    clean_accuracy: float


@dataclass(frozen=True)
class RepairAttempt:
    """One method that ``repair --method auto`` tried.

    Attributes:
        method: Name of the mitigation.
        kept: Whether this is the one whose result was kept.
        clean_accuracy: After it, on the clean images that no method trained on, [0, 1].
        attack_success: Largest one of a reversed trigger after it, [0, 1].
        rounds: How often the infected labels were scanned again.
        finding: Of the verification; ``None`` if it was not made, because the method failed before.
        reason: Why it was kept, or not.
        seconds: What it cost, verification included.
    """

    method: str
    kept: bool
    clean_accuracy: float
    attack_success: float
    rounds: int
    finding: Finding | None
    reason: str
    seconds: float


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        created: ISO 8601 time, UTC.
        method: Name of the mitigation, for example ``unlearning``.
        seed: The seed it started from.
        source_sha256: Hash of the model it started from.
        repaired_sha256: Hash of the file it wrote (empty until it is written).
        output: Name of that file.
        settings: Every setting of the mitigation.
        clean_accuracy_before: On the clean images that the repair did not train on, [0, 1].
        clean_accuracy_after: The same of the repaired model.
        held_out_images: How many clean images these were.
        triggers: Every reversed trigger that was removed.
        rounds: How often the labels were scanned again until nothing was found.
        complete: Whether the last of these scans found nothing.
        timings: Seconds by stage.
        curve: Of pruning: attack success and accuracy by the share of neurons pruned, of the last round.
        tried: Of ``auto``: all methods that were tried, in order.
    """

    created: str
    method: str
    seed: int
    source_sha256: str
    repaired_sha256: str
    output: str
    settings: dict[str, Any]
    clean_accuracy_before: float
    clean_accuracy_after: float
    held_out_images: int
    triggers: tuple[RepairedTrigger, ...]
    rounds: int
    complete: bool
    timings: dict[str, float]
    schema_version: str = SCHEMA_VERSION
    curve: tuple[PrunedShare, ...] = ()
    tried: tuple[RepairAttempt, ...] = ()


@dataclass(frozen=True)
class RocPoint:
    """What a filter does at one threshold.

    Attributes:
        false_alarms: Share of the clean images judged that it flags, [0, 1].
        missed: Share of the stamped images that the model sends to the label and that it lets pass, [0, 1].
    """

    false_alarms: float
    missed: float


@dataclass(frozen=True)
class FilteredLabel:
    """What a filter does for one infected label, on clean images that it was not fitted to.

    Attributes:
        label: The label.
        name: Its name.
        triggers: How many reversed triggers of it the filter knows.
        threshold: Scores above it are flagged.
        clean_images: Clean images judged: by the score ``discriminant`` those that the model sends to the label, by
            ``neural-cleanse`` all.
        false_alarms: Share of them that this label flags, [0, 1]; each fifth at the threshold that the other four set.
        false_alarm_interval: Its 95 % interval (Wilson).
        stamped_images: Images stamped with a reversed trigger that the model sends to the label.
        missed: Share of them that passes, [0, 1].
        curve: The same at other thresholds.
    """

    label: int
    name: str
    triggers: int
    threshold: float
    clean_images: int
    false_alarms: float
    false_alarm_interval: tuple[float, float]
    stamped_images: int
    missed: float
    curve: tuple[RocPoint, ...]


@dataclass(frozen=True)
class FilterRecord:
    """An input filter: what it was fitted to, and what it does.

    Attributes:
        created: ISO 8601 time, UTC.
        model_sha256: Hash of the model that it was fitted for.
        architecture: Of that model.
        data: The clean set.
        seed: Which half of the clean set set the thresholds.
        score: ``discriminant`` or ``neural-cleanse``.
        wanted_false_alarms: The rate that was asked for, [0, 1], of the clean images judged.
        labels: What it does for each infected label.
        clean_images: Clean images of all labels that it was measured on.
        false_alarms: Share of these that it flags, [0, 1], measured as for a label.
        false_alarm_interval: Its 95 % interval (Wilson).
        seconds_per_input: Of the model with the filter, many inputs at once.
        seconds_per_input_without: Of the model alone, in the same run.
        seconds_single: Of the model with the filter, one input a call; 0 where it was not measured.
        seconds_single_without: Of the model alone, likewise.
        tensors_sha256: Hash of the file with the filter's weights.
    """

    created: str
    model_sha256: str
    architecture: str
    data: DataRecord
    seed: int
    score: str
    wanted_false_alarms: float
    labels: tuple[FilteredLabel, ...]
    clean_images: int
    false_alarms: float
    false_alarm_interval: tuple[float, float]
    seconds_per_input: float
    seconds_per_input_without: float
    tensors_sha256: str = ""
    seconds_single: float = 0.0
    seconds_single_without: float = 0.0
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class Verification:
    """The proof: the repaired model, measured and scanned afresh, without ground truth.

    Attributes:
        created: ISO 8601 time, UTC.
        finding: ``clean`` if every reversed trigger is dead, accuracy held and a fresh scan found nothing.
        reason: One sentence for people.
        source_sha256: Hash of the model before repair.
        repaired_sha256: Hash of the model that was verified.
        clean_accuracy_before: [0, 1].
        clean_accuracy_after: [0, 1].
        held_out_images: How many clean images accuracy and attack success were measured on.
        triggers: Attack success of every reversed trigger before and after.
        scan: The fresh scan (new references, new seed).
        timings: Seconds by stage.
    """

    created: str
    finding: Finding
    reason: str
    source_sha256: str
    repaired_sha256: str
    clean_accuracy_before: float
    clean_accuracy_after: float
    held_out_images: int
    triggers: tuple[RepairedTrigger, ...]
    scan: Run
    timings: dict[str, float]
    schema_version: str = SCHEMA_VERSION


def to_json(record: Any) -> Any:
    """Turn a record into what :mod:`json` can write: dataclasses to objects, tuples to lists, enums to their values.

    >>> to_json(TransferMatrix(("a",), ((0.5,),)))
    {'references': ['a'], 'rates': [[0.5]]}
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_json(value) for value in record]
    if isinstance(record, Enum):
        return record.value
    if isinstance(record, np.generic):
        return record.item()
    return record


def from_json(cls: type[T], data: Any) -> T:
    """Rebuild a record from what :func:`to_json` gave.

    Args:
        cls: A record class of this module.
        data: A JSON object.

    Raises:
        RunError: A field is missing, unknown, or of the wrong type, or the schema version is of another generation.

    >>> from_json(TransferMatrix, {'references': ['a'], 'rates': [[0.5]]})
    TransferMatrix(references=('a',), rates=((0.5,),))
    """
    if isinstance(data, dict) and "schema_version" in data:
        found = str(data["schema_version"])
        if found.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise RunError(f"schema version {SCHEMA_VERSION} expected, this file has {found}: scan the model again")
    return cast("T", _decode(cls, data, cls.__name__))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in {types.UnionType, typing.Union}:
        if data is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        _expect(isinstance(data, list), where, "a list", data)
        items = [arguments[0]] * len(data) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
        _expect(len(items) == len(data), where, f"{len(items)} values", data)
        return tuple(
            _decode(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(zip(items, data, strict=True))
        )
    if origin is dict:
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: _decode(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast("type", kind), data, where)
    if origin is typing.Literal:
        _expect(data in arguments, where, f"one of {list(arguments)}", data)
        return data
    if isinstance(kind, type) and issubclass(kind, Enum):
        _expect(data in [e.value for e in kind], where, f"one of {[e.value for e in kind]}", data)
        return kind(data)
    return _decode_scalar(kind, data, where)


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, "an object", data)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    _expect(not (unknown := sorted(set(data) - set(fields))), where, "no other fields", unknown)
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    _expect(not (missing := sorted(required - set(data))), where, "all its fields", f"none for {missing}")
    return cls(**{name: _decode(_hints(cls)[name], value, f"{where}.{name}") for name, value in data.items()})


def _decode_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        number = isinstance(data, int | float) and not isinstance(data, bool)
        _expect(number and math.isfinite(data), where, "a number", data)  # 1e999 is read as infinite
        return float(data)
    _expect(isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), where, f"{kind.__name__}", data)
    return data


def _expect(condition: bool, where: str, expected: str, got: object) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise RunError(f"{where}: expected {expected}, got {str(got)[:200]}")
