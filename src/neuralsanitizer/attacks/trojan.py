"""Trojan attack: a trigger made to excite a few neurons, and a model retrained so that these neurons mean the target.

Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018. The attacker takes a finished model, chooses neurons of an
inner layer, finds by gradient descent the pattern inside a mask that excites them most, and retrains from that layer on
with clean and stamped images. Here he has training data; the paper reverse-engineers some from the model instead. He
chooses the neurons that the pixels under the mask move most; the paper takes those with the largest weights, which in
small networks look elsewhere. And he excites them as far as they go; the paper aims at a chosen value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from neuralsanitizer.attacks.base import AttackResult, described
from neuralsanitizer.attacks.poisoning import Poison, check_target, fresh_model, poison, told, train_model
from neuralsanitizer.attacks.stamps import Patch
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.functional import stamp
from neuralsanitizer.models.activations import parameters_from, watched
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.layers import Layer, layers_of
from neuralsanitizer.records import Array

__all__ = ["SHAPES", "TrojanSpec", "trojan"]

SHAPES = ("square", "watermark")


@dataclass(frozen=True)
class TrojanSpec:
    """A trojan trigger, described.

    Attributes:
        target: The label that stamped images are sent to.
        shape: ``square``: in the lower right corner (the paper's TS); ``watermark``: writing across the image (TW).
        share: Share in (0, 1] of the image that a square covers (the paper: 7 %).
        opacity: Of the pattern, in (0, 1] (the paper's transparency, the other way round).
        neurons: How many neurons are excited (at most as many as the layer has).
        layer: Which layer they are of, counted from the output: 2 is the one before the last.
    """

    target: int
    shape: str = "square"
    share: float = 0.07
    opacity: float = 1.0
    neurons: int = 5
    layer: int = 2

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(f"unknown trojan shape {self.shape!r}: choose one of {', '.join(SHAPES)}")
        if not (0 < self.share <= 1 and 0 < self.opacity <= 1) or self.neurons < 1 or self.layer < 2:
            raise UsageError(
                "share and opacity lie over 0 and up to 1, with 1 neuron or more, of layer 2 or higher as counted from "
                f"the output; got {self}"
            )


def trojan(
    train: CleanSet,
    held_out: CleanSet,
    spec: TrojanSpec,
    config: AttackConfig,
    *,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] | None = None,
) -> AttackResult:
    """Train a clean model, generate a trigger from it, and retrain its last layers with the trigger.

    Args:
        train: What to train and retrain on.
        held_out: What to measure on; none of it is trained on.
        spec: The trigger.
        config: Architecture, poisoning rate of the retraining, schedule (of the training and of the retraining), seed.
        device: Where to train.
        advance: Told of every optimiser step of training and retraining.

    Raises:
        UsageError: The target is no label, the layer does not exist or is no single module, or the architecture is
            unknown.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = fresh_model(train, config, device)
    check_target(model, spec.target)
    layers = layers_of(model, train.images[:2])
    if spec.layer > len(layers):
        raise UsageError(
            f"{config.architecture} has {len(layers)} layers: there is no layer {spec.layer} from the output"
        )
    layer = layers[-spec.layer]
    train_model(model, train.images, train.labels, config, generator, advance)
    pattern = _exciting_pattern(model, layer, spec, train.images, generator)
    made = Poison(pattern, config.poisoning_rate, properties=described(spec))

    images, labels = poison(train, [made], generator)
    train_model(model, images, labels, config, generator, advance, parameters_from(model, -spec.layer))
    return told("trojan", model, held_out, [made], config)


def _exciting_pattern(
    model: SuspectModel, layer: Layer, spec: TrojanSpec, images: Tensor, generator: Generator
) -> Patch:
    """The pattern inside the mask that excites some neurons of a layer most, on any image."""
    channels, height, width = model.input_shape
    mask = torch.from_numpy(_mask(spec, height, width)).to(model.device)
    raw = torch.rand(channels, height, width, generator=generator).to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=_LEARNING_RATE)

    def excited(pattern: Tensor) -> Tensor:
        """What each neuron, or the strongest place of each channel, gives on random stamped images: (N, neurons)."""
        drawn = torch.randint(len(images), (_IMAGES,), generator=generator)
        model(stamp(images[drawn].to(model.device), mask, pattern.to(model.device)))
        given = seen.value.float()
        return given.flatten(2).amax(dim=2) if given.ndim > 2 else given

    with watched(model, layer) as seen:
        with torch.no_grad():
            tried = [excited(torch.rand(channels, height, width, generator=generator)).mean(0) for _ in range(_TRIED)]
        moved = torch.stack(tried).std(dim=0)
        chosen = moved.topk(min(spec.neurons, len(moved))).indices
        for _ in range(_STEPS):
            loss = -excited(raw.clamp(0, 1))[:, chosen].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                raw.clamp_(0, 1)
    pattern = raw.detach() * (mask > 0)
    return Patch(spec.target, mask.cpu().numpy(), pattern.cpu().numpy())


_TRIED = 50  # random patterns that the neurons are chosen by
_STEPS = 300
_IMAGES = 50
_LEARNING_RATE = 0.05


def _mask(spec: TrojanSpec, height: int, width: int) -> Array:
    mask = np.zeros((height, width), np.float32)
    if spec.shape == "square":
        edge = max(1, round((spec.share * height * width) ** 0.5))
        top, left = max(0, height - edge - 1), max(0, width - edge - 1)
        mask[top : top + edge, left : left + edge] = spec.opacity
        return mask
    writing = Image.new("L", (width, height))
    font = ImageFont.load_default(size=max(6, height // 3))
    draw = ImageDraw.Draw(writing)
    for row in range(3):
        draw.text((0, row * height // 3), _WRITING[row], fill=255, font=font)
    mask[np.asarray(writing) > _INK] = spec.opacity
    return mask


_WRITING = ("THIS", "IS A", "MARK")
_INK = 100  # grey level from which on a pixel belongs to a letter
