"""The input filter: a guard for a model that must stay as it is.

A trigger shows in the second-to-last layer: it excites neurons that no clean image excites so. The filter is a score
that is linear in that layer's activations, and a threshold. Which activations an image has is known anyway once the
model ran; the filter adds one product of a small matrix and a vector, and a few calls whose cost is the same for one
image as for many. What that is on a model, the filter's record says.

Two scores:

- ``discriminant`` (ours): for each reversed trigger the direction that tells stamped images of other labels from clean
  images of the trigger's label (Fisher's discriminant with a shrunken covariance). Only what the model sends to the
  infected label is judged: a trigger that does not get there does no harm.
- ``neural-cleanse`` (as published): the mean activation of the 1 % of neurons that the trigger excites most, whatever
  the model says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from neuralsanitizer.config import FilterConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.errors import DataError, ModelError, RefusedInputError, RunError, UsageError
from neuralsanitizer.functional import stamped_with, wilson
from neuralsanitizer.models.activations import fed, keep_what_feeds, last_dense, penultimate
from neuralsanitizer.models.formats import read_weights
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import state_dict_hash
from neuralsanitizer.provenance import now
from neuralsanitizer.records import FilteredLabel, FilterRecord, RocPoint, Trigger, from_json, to_json
from neuralsanitizer.storage import write_atomically, write_json

__all__ = [
    "SCORES",
    "GuardedModel",
    "GuardedOutput",
    "InputFilter",
    "filter_files",
    "fit_filter",
    "load_filter",
    "save_filter",
]

Score = Literal["discriminant", "neural-cleanse"]
SCORES: tuple[Score, ...] = ("discriminant", "neural-cleanse")
_LEAST_CLEAN = 20  # clean images without which no rate of 5 % can be told from none
_CURVE = 40  # points of an ROC that are kept


@dataclass(frozen=True, eq=False)
class InputFilter:
    """A fitted filter.

    Attributes:
        record: What it was fitted on, to which rate, and what it does.
        weights: float32 (triggers, neurons): a direction for each reversed trigger.
        offsets: float32 (triggers,): subtracted from the product.
        scales: float32 (triggers,): divide it then; a score is in standard deviations of clean images.
        targets: int64 (triggers,): each trigger's label.
    """

    record: FilterRecord
    weights: Tensor
    offsets: Tensor
    scales: Tensor
    targets: Tensor

    def check(self, model: SuspectModel) -> None:
        """Refuse a model that the filter was not fitted for.

        Raises:
            RunError: It is another one.
            ModelError: It does not end in a dense layer.
        """
        model.sha256 = model.sha256 or state_dict_hash(model.module)
        neurons = last_dense(model).in_features
        if model.sha256 != self.record.model_sha256 or neurons != self.weights.shape[1]:
            raise RunError(
                f"the filter was fitted for another model (SHA-256 {self.record.model_sha256[:12]}..., this one is "
                f"{model.sha256[:12]}...): fit one for this model"
            )

    def scores(self, activations: Tensor, predicted: Tensor) -> Tensor:
        """How suspicious inputs are, by label.

        Args:
            activations: float32 (N, neurons) of the second-to-last layer.
            predicted: int64 (N,): the labels that the model gives.

        Returns:
            float32 (N, labels of the record): the largest score of a trigger of the label; minus infinity where the
            input is not judged.
        """
        device = activations.device
        each = (activations @ self.weights.to(device).T - self.offsets.to(device)) / self.scales.to(device)
        columns = []
        for label in self.record.labels:
            of_label = each[:, (self.targets == label.label).to(device)].amax(dim=1)
            judged = predicted == label.label if self.record.score == "discriminant" else torch.ones_like(predicted) > 0
            columns.append(torch.where(judged, of_label, -torch.inf))
        return torch.stack(columns, dim=1)

    def flags(self, activations: Tensor, predicted: Tensor) -> Tensor:
        """Which inputs bear a trigger: bool (N,)."""
        thresholds = torch.tensor([label.threshold for label in self.record.labels], device=activations.device)
        return (self.scores(activations, predicted) > thresholds).any(dim=1)


class GuardedOutput(NamedTuple):
    """What a guarded model gives.

    Attributes:
        logits: float32 (N, labels).
        flagged: bool (N,): inputs that bear a trigger.
    """

    logits: Tensor
    flagged: Tensor


class GuardedModel(nn.Module):
    """A model with a filter in front of its answers. Once made, it may be called from several threads at once.

    Args:
        model: The model that the filter was fitted for.
        filter_: The filter.
        refuse: Whether flagged inputs raise an error, or are told beside the logits.

    Raises:
        RunError: The filter was fitted for another model.
    """

    def __init__(self, model: SuspectModel, filter_: InputFilter, *, refuse: bool = False) -> None:
        super().__init__()
        filter_.check(model)
        self.module, self._model, self._filter, self._refuse = model.module, model, filter_, refuse
        dense = last_dense(model)
        keep_what_feeds(dense)
        # Its name: a module that is an attribute would stand twice in the state_dict.
        self._dense = next(name for name, module in model.module.named_modules() if module is dense)

    @property
    def record(self) -> FilterRecord:
        """What the filter was fitted to, and what it does."""
        return self._filter.record

    @torch.no_grad()
    def forward(self, images: Tensor) -> GuardedOutput:
        """Logits and flags of images (N, channels, height, width) in [0, 1].

        Raises:
            RefusedInputError: An input is flagged, and the model is to refuse those.
        """
        with fed() as kept:
            logits = self._model(images.to(self._model.device))
        neurons = kept[self.module.get_submodule(self._dense)]
        flagged = self._filter.flags(neurons, logits.argmax(dim=1))
        if self._refuse and bool(flagged.any()):
            raise RefusedInputError(tuple(flagged.nonzero().flatten().tolist()))
        return GuardedOutput(logits, flagged)


def fit_filter(
    model: SuspectModel,
    triggers: Sequence[Trigger],
    clean: CleanSet,
    *,
    config: FilterConfig | None = None,
    seed: int = 0,
) -> InputFilter:
    """Fit a filter to reversed triggers, and set its threshold on clean images that it was not fitted to.

    The false alarms are measured crosswise on those: each fifth of them with the threshold that the other four set. At
    its own threshold, the share that was asked for would come out whatever the filter is worth.

    Args:
        model: The model; it is not changed.
        triggers: Reversed triggers, one or more a label.
        clean: Clean images; half of them set the threshold.
        config: Score and false-alarm rate.
        seed: Which half.

    Raises:
        ModelError: The network does not end in a dense layer.
        DataError: Too few clean images of an infected label.
        UsageError: No trigger, or a rate that is none.
    """
    config = config or FilterConfig()
    if not triggers:
        raise UsageError("there is no trigger to filter: the scan found none")
    if not 0 < config.false_alarms < 1:
        raise UsageError(f"the false-alarm rate must lie between 0 and 1, got {config.false_alarms:g}")
    model.sha256 = model.sha256 or state_dict_hash(model.module)
    fitted_to, held_out = clean.split([0.5], derive_seed(seed, "filter"))
    known = _Activations.of(model, fitted_to)
    weights = torch.stack([_direction(model, t, fitted_to, known, config) for t in triggers])
    products = [known.values[_normal(known, t, config)] @ w for t, w in zip(triggers, weights, strict=True)]
    labels = sorted({trigger.label for trigger in triggers})
    unset = tuple(
        FilteredLabel(
            label=label,
            name=model.label_names[label],
            triggers=sum(t.label == label for t in triggers),
            threshold=math.inf,
            clean_images=0,
            false_alarms=0.0,
            false_alarm_interval=(0.0, 1.0),
            stamped_images=0,
            missed=1.0,
            curve=(),
        )
        for label in labels
    )
    record = FilterRecord(
        created=now(),
        model_sha256=model.sha256,
        architecture=model.architecture,
        data=clean.record(model.labels),
        seed=seed,
        score=config.score,
        wanted_false_alarms=config.false_alarms,
        labels=unset,
        clean_images=0,
        false_alarms=0.0,
        false_alarm_interval=(0.0, 1.0),
        seconds_per_input=0.0,
        seconds_per_input_without=0.0,
    )
    filter_ = InputFilter(
        record=record,
        weights=weights.cpu(),
        offsets=torch.stack([p.mean() for p in products]).cpu(),
        scales=torch.stack([p.std().clamp_min(_SMALLEST) for p in products]).cpu(),
        targets=torch.tensor([t.label for t in triggers]),
    )
    return _calibrated(filter_, model, triggers, held_out)


@dataclass(frozen=True, eq=False)
class _Activations:
    """The second-to-last layer on some images: values (N, neurons), predicted labels (N,), true labels (N,)."""

    values: Tensor
    predicted: Tensor
    labels: Tensor

    @classmethod
    def of(cls, model: SuspectModel, images: CleanSet) -> _Activations:
        values = penultimate(model, images.images)
        return cls(values, model.predict(images.images), images.labels.to(values.device))


def _normal(known: _Activations, trigger: Trigger, config: FilterConfig) -> Tensor:
    """Which clean images the score of a trigger is to tell stamped ones from: bool (N,)."""
    if config.score == "neural-cleanse":
        return torch.ones_like(known.labels, dtype=torch.bool)
    of_label = (known.labels == trigger.label) & (known.predicted == trigger.label)
    if int(of_label.sum()) < _LEAST_CLEAN:
        raise DataError(
            f"{int(of_label.sum())} clean images of label {trigger.label} to fit the filter to, at least "
            f"{_LEAST_CLEAN} are needed (half of the clean set's): add some"
        )
    return of_label


def _direction(
    model: SuspectModel, trigger: Trigger, clean: CleanSet, known: _Activations, config: FilterConfig
) -> Tensor:
    """float32 (neurons,)."""
    others = clean.labels != trigger.label
    stamped = penultimate(model, stamped_with(trigger, clean.images[others]))
    if config.score == "neural-cleanse":
        gaps = stamped.mean(dim=0) - known.values.mean(dim=0)
        top = gaps.argsort(descending=True)[: max(1, round(config.neurons * len(gaps)))]
        return torch.zeros_like(gaps).index_fill(0, top, 1 / len(top))
    normal = known.values[_normal(known, trigger, config)]
    scatter = (torch.cov(stamped.T) + torch.cov(normal.T)) / 2
    shrunken = scatter + config.shrinkage * scatter.diagonal().mean() * torch.eye(len(scatter), device=scatter.device)
    direction: Tensor = torch.linalg.solve(shrunken, stamped.mean(dim=0) - normal.mean(dim=0))
    return direction


_SMALLEST = 1e-6  # spread of a score that is the same for all clean images


def _calibrated(
    filter_: InputFilter, model: SuspectModel, triggers: Sequence[Trigger], held_out: CleanSet
) -> InputFilter:
    """The filter with each label's threshold, and what it does to images that it was not fitted to."""
    unknown = _Activations.of(model, held_out)
    scores = filter_.scores(unknown.values, unknown.predicted).cpu()
    for label, judged in zip(filter_.record.labels, scores.isfinite().sum(dim=0).tolist(), strict=True):
        if judged < _LEAST_CLEAN:
            raise DataError(
                f"the model sends {judged} of the clean images that set the threshold to label {label.label}, at "
                f"least {_LEAST_CLEAN} are needed: add some of that label"
            )
    thresholds, alarms = _thresholds(scores, filter_.record), _crosswise(scores, filter_.record)
    labels = tuple(
        _measured(
            label,
            thresholds[column],
            scores[:, column],
            alarms[:, column],
            torch.cat(
                [_stamped_scores(filter_, model, t, held_out, column) for t in triggers if t.label == label.label]
            ),
        )
        for column, label in enumerate(filter_.record.labels)
    )
    flagged = int(alarms.any(dim=1).sum())
    filter_ = replace(filter_, record=replace(filter_.record, labels=labels))
    images = held_out.images[:_TIMED].to(model.device)
    with_filter, without = _cost(filter_, model, images)
    single, single_without = _cost(filter_, model, images[:1])
    record = replace(
        filter_.record,
        clean_images=len(scores),
        false_alarms=flagged / len(scores),
        false_alarm_interval=wilson(flagged, len(scores)),
        seconds_per_input=with_filter,
        seconds_per_input_without=without,
        seconds_single=single,
        seconds_single_without=single_without,
    )
    return replace(filter_, record=record)


def _thresholds(scores: Tensor, record: FilterRecord) -> list[float]:
    """For each label, the score that at most the wanted share of the clean images judged exceeds.

    Where every label judges all images, there is one threshold for all of them, of the largest score that an image has
    of any label: with a threshold of its own, each label would add its share to the alarms.

    Args:
        scores: float32 (N, labels) of clean images; minus infinity where an image is not judged.
        record: With the score and the wanted rate.
    """
    if record.score == "neural-cleanse":
        scores = scores.amax(dim=1, keepdim=True).expand_as(scores)
    ranked = [column[column.isfinite()].sort(descending=True).values for column in scores.T]
    return [float(judged[int(record.wanted_false_alarms * len(judged))]) for judged in ranked]


def _crosswise(scores: Tensor, record: FilterRecord) -> Tensor:
    """Which clean images each label flags, bool (N, labels): each part of them at the thresholds of the other parts."""
    generator = torch.Generator().manual_seed(derive_seed(record.seed, "filter", "parts"))
    part = torch.randperm(len(scores), generator=generator) % _PARTS
    flags = torch.zeros_like(scores, dtype=torch.bool)
    for number in range(_PARTS):
        mine = part == number
        flags[mine] = scores[mine] > torch.tensor(_thresholds(scores[~mine], record))
    return flags


_PARTS = 5


def _measured(label: FilteredLabel, threshold: float, scores: Tensor, flags: Tensor, stamped: Tensor) -> FilteredLabel:
    """A label with its threshold, and what it does to clean and to stamped images."""
    judged, alarms = scores[scores.isfinite()], int(flags.sum())
    return replace(
        label,
        threshold=threshold,
        clean_images=len(judged),
        false_alarms=alarms / len(judged),
        false_alarm_interval=wilson(alarms, len(judged)),
        stamped_images=len(stamped),
        missed=float((stamped <= threshold).float().mean()) if len(stamped) else 0.0,
        curve=_curve(judged, stamped),
    )


def _stamped_scores(
    filter_: InputFilter, model: SuspectModel, trigger: Trigger, held_out: CleanSet, column: int
) -> Tensor:
    """Scores of stamped images of other labels that the model sends to the trigger's: the attacks that succeed."""
    stamped = stamped_with(trigger, held_out.images[held_out.labels != trigger.label])
    predicted = model.predict(stamped)
    scores = filter_.scores(penultimate(model, stamped), predicted)[:, column]
    return scores[predicted == trigger.label].cpu()


def _curve(clean: Tensor, stamped: Tensor) -> tuple[RocPoint, ...]:
    """Miss rate against false-alarm rate, at thresholds from none to all."""
    if not len(stamped):
        return ()
    rates = torch.linspace(0, 1, _CURVE + 1)
    points = [
        RocPoint(float((clean > threshold).float().mean()), float((stamped <= threshold).float().mean()))
        for threshold in torch.quantile(clean, 1 - rates)
    ]
    return tuple(dict.fromkeys(points))


def _cost(filter_: InputFilter, model: SuspectModel, images: Tensor) -> tuple[float, float]:
    """Seconds an input with and without the filter, the best of some calls with the same images in turns."""
    guarded = GuardedModel(model, filter_)
    best = [float("inf"), float("inf")]
    runs: tuple[Callable[[Tensor], object], ...] = (guarded, model.logits_of)
    for number in range(_CALLS if len(images) == 1 else _PASSES):
        for which in (0, 1) if number % 2 else (1, 0):  # neither always runs in what the other left in the caches
            run = runs[which]
            started = time.perf_counter()
            run(images)
            best[which] = min(best[which], time.perf_counter() - started)
    return best[0] / len(images), best[1] / len(images)


_TIMED = 500
_PASSES = 6
_CALLS = 50  # with one image: short, so that chance is large


def save_filter(filter_: InputFilter, path: str | os.PathLike[str]) -> FilterRecord:
    """Write a filter: ``NAME.safetensors`` and, beside it, ``NAME.json`` with its record.

    Args:
        filter_: The filter.
        path: ``NAME.safetensors``.

    Returns:
        The record as written.

    Raises:
        UsageError: The name does not end in ``.safetensors``.
        OutputError: It cannot be written.
    """
    tensors, record = filter_files(path)
    content = safetensors.torch.save(
        {"weights": filter_.weights, "offsets": filter_.offsets, "scales": filter_.scales, "targets": filter_.targets}
    )
    written = replace(filter_.record, tensors_sha256=hashlib.sha256(content).hexdigest())
    write_atomically(tensors, content)
    write_json(record, to_json(written))
    return written


def load_filter(path: str | os.PathLike[str]) -> InputFilter:
    """Read a filter.

    Raises:
        RunError: A file is missing or damaged, or they do not belong together.
        UsageError: The name does not end in ``.safetensors``.
    """
    tensors, described = filter_files(path)
    try:
        record = from_json(FilterRecord, json.loads(described.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{described} cannot be read ({error}): fit the filter again") from error
    try:
        weights = read_weights(tensors)
    except ModelError as error:
        raise RunError(f"{tensors} is no filter ({error}): fit it again") from error
    parts = weights.tensors
    if weights.sha256 != record.tensors_sha256 or set(parts) != {"weights", "offsets", "scales", "targets"}:
        raise RunError(f"{tensors} is not what {described} describes: fit the filter again")
    axes = {name: part.ndim for name, part in parts.items()}
    if axes != {"weights": 2, "offsets": 1, "scales": 1, "targets": 1} or len(set(map(len, parts.values()))) > 1:
        raise RunError(f"{tensors} is damaged: its parts are of different lengths")
    if not {label.label for label in record.labels} <= set(parts["targets"].tolist()):
        raise RunError(f"{described} names labels that {tensors} has no trigger of")
    return InputFilter(record, **parts)


def filter_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The two files of a filter, ``NAME.safetensors`` and ``NAME.json``.

    Raises:
        UsageError: The name does not end in ``.safetensors``.
    """
    tensors = Path(path)
    if tensors.suffix != ".safetensors":
        raise UsageError(f"a filter's file is named NAME.safetensors, with NAME.json beside it; got {str(tensors)!r}")
    return tensors, tensors.with_suffix(".json")
