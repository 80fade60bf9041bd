"""What an attack is: it trains a model, and says truthfully what it did to it.

The attacks exist to measure detection and repair. They plant backdoors in models that you train yourself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralsanitizer.errors import RunError
from neuralsanitizer.functional import attack_success, stamp
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import save_state_dict
from neuralsanitizer.records import Trigger, from_json, to_json
from neuralsanitizer.storage import read_arrays, write_arrays, write_json

__all__ = ["AttackResult", "GroundTruth", "PlantedTrigger", "measure_attack_success", "read_attack"]


@dataclass(frozen=True)
class PlantedTrigger:
    """One backdoor of a model, as its attacker knows it.

    Attributes:
        target: The label that stamped images are sent to.
        pixels: How many pixels the trigger covers.
        attack_success: Share in [0, 1] of held-out images of other labels that it sends there.
        properties: How it was made (size, position, pattern, shape, pieces).
    """

    target: int
    pixels: int
    attack_success: float
    properties: dict[str, Any] = field(default_factory=dict)


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
        triggers: Mask and pattern of each planted trigger, in the order of ``truth.triggers``.
        truth: What was measured.
    """

    model: SuspectModel
    triggers: tuple[Trigger, ...]
    truth: GroundTruth

    def save(self, path: Path) -> tuple[Path, Path]:
        """Write the weights (safetensors) to ``path``, the truth and the triggers beside it.

        Returns:
            Paths of the truth (``.truth.json``) and of the triggers (``.truth.npz``: ``mask_<i>``, ``pattern_<i>``).
        """
        save_state_dict(self.model.module, path)
        truth, arrays = path.with_suffix(".truth.json"), path.with_suffix(".truth.npz")
        write_arrays(
            arrays,
            {f"mask_{i}": t.mask for i, t in enumerate(self.triggers)}
            | {f"pattern_{i}": t.pattern for i, t in enumerate(self.triggers)},
        )
        write_json(truth, to_json(self.truth))
        return truth, arrays


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
    triggers = tuple(
        Trigger(t.target, arrays[f"mask_{i}"], arrays[f"pattern_{i}"]) for i, t in enumerate(truth.triggers)
    )
    return AttackResult(model, triggers, truth)


def measure_attack_success(model: SuspectModel, images: Tensor, labels: Tensor, trigger: Trigger) -> float:
    """Share in [0, 1] of images (N, C, H, W) of other labels that ``trigger`` sends to its label."""
    stamped = stamp(images, torch.from_numpy(trigger.mask), torch.from_numpy(trigger.pattern))
    predictions = model.predict(stamped).cpu()
    return float(attack_success(predictions, torch.tensor(trigger.label), labels))
