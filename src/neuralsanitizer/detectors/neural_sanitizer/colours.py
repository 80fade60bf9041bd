"""Triggers in feature space: a change of colours, the same for every pixel, that sends images to a label.

As for patches, the change must work on the suspect and leave clean references unharmed, and these have to have learnt
the true labels. A tone is in every image a little, so a suspect that is asked teaches what it makes of tones with every
one of them: networks distilled from a model with a planted filter obeyed the filter themselves (68 to 83 % of images,
measured on one development model), networks that learnt the true labels did not (0 %).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neuralsanitizer.config import ColourConfig, ReconstructConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import Smallest, fit
from neuralsanitizer.functional import kept_contrast, recolour
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import Trigger

__all__ = ["reconstruct_colours"]


def reconstruct_colours(
    suspect: SuspectModel,
    guides: Sequence[SuspectModel],
    clean: CleanSet,
    labels: Sequence[int],
    *,
    start: Sequence[Trigger] = (),
    config: ColourConfig,
    constraint: ReconstructConfig,
    seed: int,
    enough: float | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Trigger]:
    """Reconstruct a change of colours for each label.

    Args:
        suspect: The model under examination.
        guides: References that the change must not work on; each step asks one of them, drawn at random.
        clean: The images.
        labels: The labels to reconstruct for.
        start: Changes to start from, one a label; by default none at all.
        config: How long, how fast, and what kind of change.
        constraint: Images a step, and the weight of the guides.
        seed: All randomness derives from it.
        enough: Attack success, over some steps, at which a label is done; ``None``: all steps are taken.
        advance: Told of every label and step done.

    Returns:
        One trigger a label.
    """
    channels, height, width = suspect.input_shape
    nothing = torch.eye(channels, channels + 1)
    if start:
        first = torch.stack([torch.from_numpy(t.colours) for t in start if t.colours is not None])
    else:
        first = nothing.repeat(len(labels), 1, 1)
    first = first.to(suspect.device)
    sample = clean.images[:_IMAGES_TO_SEE].to(suspect.device)
    bounded = bool(start) and config.size is not None
    allowed = _sizes_of(first, sample, config) if bounded else torch.zeros(len(first), device=suspect.device)

    def change(images: Tensor, parameters: Tensor, _: Tensor) -> Tensor:
        return recolour(images, _colours(parameters, config))

    def harm(before: Tensor, after: Tensor, rows: Tensor) -> Tensor:
        flat = config.contrast_weight * (config.least_contrast - kept_contrast(before, after)).clamp_min(0)
        return flat + _OVER * (_size(before, after) - allowed[rows]).clamp_min(0) if bounded else flat

    found = fit(
        suspect,
        guides,
        clean,
        labels,
        first,
        change,
        steps=config.steps,
        learning_rate=config.learning_rate,
        range_=(-config.strongest, config.strongest),
        config=constraint,
        seed=seed,
        harm=harm if config.least_contrast or bounded else None,
        smallest=None if start or config.size is None else Smallest(_size, config.size),
        enough=enough,
        advance=advance,
    )
    if bounded:  # the loss keeps the size about there, not below
        share = (allowed / _sizes_of(found, sample, config).clamp_min(1e-6)).clamp_max(1).view(-1, 1, 1)
        found = torch.lerp(nothing.to(found), found, share)
    colours = _colours(found, config).cpu().numpy()
    return [Trigger.of_colours(label, colours[k], (height, width)) for k, label in enumerate(labels)]


def _size(before: Tensor, after: Tensor) -> Tensor:
    """How much a change changes: the mean absolute difference of images (k, n, C, H, W) before and after, (k,)."""
    return (after - before).abs().mean(dim=(1, 2, 3, 4))


def _sizes_of(parameters: Tensor, images: Tensor, config: ColourConfig) -> Tensor:
    """The sizes of changes (K, channels, channels + 1), on images (n, C, H, W)."""
    return torch.stack([_size(images[None], recolour(images[None], _colours(p[None], config)))[0] for p in parameters])


_IMAGES_TO_SEE = 200  # that the size of a change is measured on
_OVER = 100.0  # weight of what a change is larger than it may be: a hundredth of the pixel range costs as much as 1 nat


def _colours(parameters: Tensor, config: ColourConfig) -> Tensor:
    """The changes (K, channels, channels + 1) that parameters of the same shape stand for."""
    if config.offset:
        return parameters
    matrix = parameters[..., :-1]
    matrix = matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.cat([matrix, torch.zeros_like(parameters[..., -1:])], dim=-1)
