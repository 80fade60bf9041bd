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
from neuralsanitizer.detectors.neural_sanitizer.reconstruct import fit
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
    if start:
        first = torch.stack([torch.from_numpy(t.colours) for t in start if t.colours is not None])
    else:
        first = torch.eye(channels, channels + 1).repeat(len(labels), 1, 1)

    def change(images: Tensor, parameters: Tensor, _: Tensor) -> Tensor:
        return recolour(images, _colours(parameters, config))

    def flattened(before: Tensor, after: Tensor) -> Tensor:
        return config.contrast_weight * (config.least_contrast - kept_contrast(before, after)).clamp_min(0)

    found = fit(
        suspect,
        guides,
        clean,
        labels,
        first.to(suspect.device),
        change,
        steps=config.steps,
        learning_rate=config.learning_rate,
        range_=(-config.strongest, config.strongest),
        config=constraint,
        seed=seed,
        harm=flattened if config.least_contrast else None,
        enough=enough,
        advance=advance,
    )
    colours = _colours(found, config).cpu().numpy()
    return [Trigger.of_colours(label, colours[k], (height, width)) for k, label in enumerate(labels)]


def _colours(parameters: Tensor, config: ColourConfig) -> Tensor:
    """The changes (K, channels, channels + 1) that parameters of the same shape stand for."""
    if config.offset:
        return parameters
    matrix = parameters[..., :-1]
    matrix = matrix / matrix.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.cat([matrix, torch.zeros_like(parameters[..., -1:])], dim=-1)
