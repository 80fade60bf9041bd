"""What an attack is: it trains a model, and says truthfully what it did to it.

The attacks exist to measure detection and repair. They plant backdoors in models that you train yourself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from neuralsanitizer.attacks.stamps import Stamp, read_stamp
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import RunError
from neuralsanitizer.functional import attack_success
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import save_state_dict
from neuralsanitizer.records import from_json, to_json
from neuralsanitizer.storage import read_arrays, write_arrays, write_json

__all__ = [
    "Attack",
    "AttackResult",
    "GroundTruth",
    "PlantedTrigger",
    "described",
    "measure_attack_success",
    "read_attack",
]

_SpecT_contra = TypeVar("_SpecT_contra", contravariant=True)


@dataclass(frozen=True)
class PlantedTrigger:
    """One backdoor of a model, as its attacker knows it.

    Attributes:
        target: The label that stamped images are sent to.
        pixels: How many pixels the trigger changes at most.
        attack_success: Share in [0, 1] of held-out images of other labels (or of ``sources``) that it sends there.
        properties: How it was made (size, position, pattern, shape, pieces; others for other attacks).
        kind: What the stamp is: a name in :data:`neuralsanitizer.attacks.stamps.STAMPS`.
        sources: The labels whose images it works on; empty: all others.
    """

    target: int
    pixels: int
    attack_success: float
    properties: dict[str, Any] = field(default_factory=dict)
    kind: str = "patch"
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class GroundTruth:
    """The truth about a model. Only scoring may read it: no detector, no repair.

    Attributes:
        attack: Name of the attack; ``none`` for a clean model.
        architecture: Name in the registry.
        labels: Number of labels.
        clean_accuracy: On held-out clean images, [0, 1].
        held_out_images: How many these were.
        poisoning_rate: Share of the training images that carried a trigger.
        seed: What all of its randomness derives from.
        triggers: Its backdoors.
        settings: How the model was trained.
    """

    attack: str
    architecture: str
    labels: int
    clean_accuracy: float
    held_out_images: int
    poisoning_rate: float
    seed: int
    triggers: tuple[PlantedTrigger, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def infected_labels(self) -> tuple[int, ...]:
        """Target labels, each once, sorted."""
        return tuple(sorted({t.target for t in self.triggers}))


@dataclass(frozen=True, eq=False)
class AttackResult:
    """A trained model, the triggers that were planted in it, and the measured truth.

    Attributes:
        model: The model, frozen.
        triggers: Each planted trigger, in the order of ``truth.triggers``.
        truth: What was measured.
    """

    model: SuspectModel
    triggers: tuple[Stamp, ...]
    truth: GroundTruth

    def measure(self, model: SuspectModel, held_out: CleanSet) -> tuple[float, ...]:
        """Attack success in [0, 1] of each planted trigger on a model: this one, a reference, a repaired one."""
        return tuple(
            measure_attack_success(model, held_out, trigger, planted.sources)
            for trigger, planted in zip(self.triggers, self.truth.triggers, strict=True)
        )

    def save(self, path: Path) -> tuple[Path, Path]:
        """Write the weights (safetensors) to ``path``, the truth and the triggers beside it.

        Returns:
            Paths of the truth (``.truth.json``) and of the triggers (``.truth.npz``: the arrays of each as
            ``<name>_<i>``; of a patch ``mask_<i>`` and ``pattern_<i>``).
        """
        save_state_dict(self.model.module, path)
        truth, arrays = path.with_suffix(".truth.json"), path.with_suffix(".truth.npz")
        write_arrays(arrays, {f"{name}_{i}": a for i, t in enumerate(self.triggers) for name, a in t.arrays().items()})
        write_json(truth, to_json(self.truth))
        return truth, arrays


class Attack(Protocol[_SpecT_contra]):
    """What all attacks look like: they train a model on ``train`` and measure it on ``held_out``."""

    def __call__(
        self,
        train: CleanSet,
        held_out: CleanSet,
        spec: _SpecT_contra,
        config: AttackConfig,
        /,
        *,
        device: torch.device | str = "cpu",
        advance: Callable[[int], None] | None = None,
    ) -> AttackResult:
        """Train a model with the triggers that ``spec`` describes, as ``config`` says."""
        ...


def read_attack(path: Path, model: SuspectModel) -> AttackResult:
    """Read back what :meth:`AttackResult.save` wrote beside the weights.

    Args:
        path: Of the weights.
        model: The weights, loaded.

    Raises:
        RunError: The truth is missing or damaged.
    """
    source = path.with_suffix(".truth.json")
    try:
        truth = from_json(GroundTruth, json.loads(source.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RunError(f"{source} is no ground truth of an attack ({error})") from error
    arrays = read_arrays(path.with_suffix(".truth.npz"))
    try:
        triggers = tuple(
            read_stamp(
                planted.kind,
                planted.target,
                {name.removesuffix(f"_{i}"): a for name, a in arrays.items() if name.endswith(f"_{i}")},
            )
            for i, planted in enumerate(truth.triggers)
        )
    except (KeyError, ValueError, RuntimeError) as error:  # missing; of the wrong shape; not the generator's weights
        raise RunError(f"{path.with_suffix('.truth.npz')} does not hold the triggers of {source}: {error}") from error
    return AttackResult(model, triggers, truth)


def described(spec: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    """A trigger's description as plain data, without its target, which the truth tells anyway."""
    return {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "target"}


def measure_attack_success(
    model: SuspectModel, held_out: CleanSet, trigger: Stamp, sources: Sequence[int] = ()
) -> float:
    """Share in [0, 1] of a set's images of other labels, or of ``sources``, that a trigger sends to its label."""
    if sources:
        held_out = held_out.subset(torch.isin(held_out.labels, torch.tensor(sources)).nonzero().flatten())
    predictions = model.predict(trigger.stamped(held_out)).cpu()
    return float(attack_success(predictions, torch.tensor(trigger.label), held_out.labels))
