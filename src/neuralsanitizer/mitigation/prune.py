"""Neuron pruning: silence the neurons that a reversed trigger excites, until it does nothing.

Neurons are ranked by how much more active they are on stamped images than on clean ones. In the order of that gap they
are set to zero, a few at a time, and after each step attack success and accuracy are measured, until the attack success
collapses or the accuracy that may be spent is spent. First the neurons of the second-to-last layer, then, if that was
not enough, the channels of the last convolution.

A silenced neuron is one whose outgoing weights are zero (dense) or whose own weights are (a channel): what comes out is
weights of the same shape, which load wherever the original did.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from neuralsanitizer.config import PruneConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.errors import ModelError
from neuralsanitizer.functional import attack_success, stamped_with
from neuralsanitizer.mitigation.base import Mitigation, Removal
from neuralsanitizer.models.activations import last_convolution, last_dense, penultimate, watched_module
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import PrunedShare, Trigger

__all__ = ["Prune"]


class Prune(Mitigation):
    """Neural Cleanse's pruning.

    Args:
        config: Settings.
    """

    name: ClassVar[str] = "pruning"

    def __init__(self, config: PruneConfig | None = None) -> None:
        self.config = config or PruneConfig()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self.config)

    def steps(self, images: int) -> int:  # noqa: ARG002 - not a matter of the number of images
        """Looks, if every layer is pruned whole."""
        return len(self.config.layers) * (round(1 / self.config.step) + 1)

    def remove(
        self,
        suspect: SuspectModel,
        triggers: Sequence[Trigger],
        clean: CleanSet,
        *,
        seed: int,
        advance: Callable[[int], None] | None = None,
    ) -> Removal:
        """Silence neurons of one layer after the other, until no trigger works.

        Raises:
            ModelError: The network has neither a last dense layer nor a last convolution that can be pruned.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "prune"))
        chosen = torch.randperm(len(clean), generator=generator)[: self.config.images]
        images = _Images.of(clean.subset(chosen), triggers, suspect.device)
        pruned, curve = suspect.with_module(copy.deepcopy(suspect.module)), list[PrunedShare]()
        floor = _accuracy(suspect, images) - self.config.largest_accuracy_drop
        worked = False
        for kind in self.config.layers:
            layer = _LAYERS[kind].of(pruned)
            if layer is None:
                continue
            worked = True
            points, left = self._prune(pruned, layer, images, floor, advance)
            curve += points
            if left <= self.config.goal:
                break
        if not worked:
            raise ModelError(f"{suspect.architecture} has no layer that can be pruned: repair it with another method")
        return Removal(pruned.module, tuple(curve))

    def _prune(
        self,
        model: SuspectModel,
        layer: _Layer,
        images: _Images,
        floor: float,
        advance: Callable[[int], None] | None,
    ) -> tuple[list[PrunedShare], float]:
        """Silence the neurons of a layer, and leave those silent that the best point within the budget has.

        Returns:
            All points, and the attack success of the one that was kept.
        """
        gaps = torch.stack([layer.activity(stamped) for stamped, _ in images.stamped()]) - layer.activity(images.clean)
        order = _in_turns(gaps)
        before = copy.deepcopy(model.module.state_dict())
        each, points, best = max(1, round(self.config.step * len(order))), list[PrunedShare](), (1.0, 0)
        for count in range(0, len(order), each):
            layer.silence(order[:count])
            success, accuracy = _success(model, images), _accuracy(model, images)
            points.append(PrunedShare(layer.kind, round(count / len(order), 4), success, accuracy))
            if advance is not None:
                advance(1)
            if accuracy < floor:
                break
            best = min(best, (success, count))
            if success <= self.config.goal:
                break
        model.module.load_state_dict(before)
        layer.silence(order[: best[1]])
        return points, best[0]


def _in_turns(gaps: Tensor) -> Tensor:
    """Neurons by activation gap (triggers, neurons): of several triggers the largest of each, then the second, ..."""
    turns = gaps.argsort(dim=1, descending=True, stable=True).T.flatten().tolist()
    return torch.tensor(list(dict.fromkeys(turns)))


@dataclass(frozen=True, eq=False)
class _Images:
    """What pruning is measured on: clean images, and for each trigger those of other labels stamped.

    Stamped images are made when they are looked at: those of all triggers at once would take gigabytes.
    """

    clean: Tensor
    labels: Tensor
    triggers: tuple[Trigger, ...]

    @classmethod
    def of(cls, clean: CleanSet, triggers: Sequence[Trigger], device: torch.device) -> _Images:
        return cls(clean.images.to(device), clean.labels.to(device), tuple(triggers))

    def stamped(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each trigger the stamped images of other labels (n, channels, height, width), and their labels (n,)."""
        for trigger in self.triggers:
            others = self.labels != trigger.label
            yield stamped_with(trigger, self.clean[others]), self.labels[others]


def _success(model: SuspectModel, images: _Images) -> float:
    """Largest attack success of a trigger."""
    return max(
        float(attack_success(model.predict(stamped).cpu(), torch.tensor(trigger.label), labels.cpu()))
        for trigger, (stamped, labels) in zip(images.triggers, images.stamped(), strict=True)
    )


def _accuracy(model: SuspectModel, images: _Images) -> float:
    return model.accuracy(images.clean, images.labels)


class _Dense:
    """The second-to-last layer: its neurons are the inputs of the last dense layer."""

    kind: ClassVar[str] = "dense"

    def __init__(self, model: SuspectModel, last: nn.Linear) -> None:
        self.model, self.last = model, last

    @classmethod
    def of(cls, model: SuspectModel) -> _Dense | None:
        try:
            return cls(model, last_dense(model))
        except ModelError:
            return None

    def activity(self, images: Tensor) -> Tensor:
        """Mean activation (neurons,)."""
        return penultimate(self.model, images).mean(dim=0).cpu()

    @torch.no_grad()
    def silence(self, neurons: Tensor) -> None:
        """Let these have no influence."""
        self.last.weight[:, neurons.to(self.last.weight.device)] = 0


class _Convolution:
    """The last convolution: its neurons are its channels."""

    kind: ClassVar[str] = "convolution"

    def __init__(self, model: SuspectModel, module: str, parameters: Sequence[nn.Parameter]) -> None:
        self.model, self.module, self.parameters = model, module, parameters

    @classmethod
    def of(cls, model: SuspectModel) -> _Convolution | None:
        found = last_convolution(model)
        if found is None:
            return None
        named = dict(model.module.named_parameters())
        return cls(model, found.module, [named[name] for name in found.parameters])

    @torch.no_grad()
    def activity(self, images: Tensor) -> Tensor:
        """Mean positive activation (channels,): what is below zero does not pass the ReLU that follows."""
        total = torch.zeros(len(self.parameters[0]))
        with watched_module(self.model, self.module) as kept:
            for part in images.split(_BATCH):
                self.model(part)
                total += kept.value.float().relu().mean(dim=(2, 3)).sum(dim=0).cpu()
        return total / len(images)

    @torch.no_grad()
    def silence(self, neurons: Tensor) -> None:
        """Let these channels give nothing."""
        for parameter in self.parameters:
            parameter[neurons.to(parameter.device)] = 0


_Layer = _Dense | _Convolution
_LAYERS: dict[str, type[_Dense | _Convolution]] = {"dense": _Dense, "convolution": _Convolution}
_BATCH = 500
