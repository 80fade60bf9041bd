"""Photo filters: the trigger is a tone, as of a photo-sharing app, over the whole image.

Liu et al., "ABS: Scanning Neural Networks for Back-doors by Artificial Brain Stimulation", 2019, attack in feature
space with Instagram's Nashville, Gotham and others; NeuralSanitizer evaluates on such models. The filters here are
written from the effect that their names promise, not copied from any product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Generator

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.attacks.stamps import Filter
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError
from neuralsanitizer.records import Array

__all__ = ["FILTERS", "FilterSpec", "filtered", "make_filter"]


@dataclass(frozen=True)
class _Tone:
    """What a filter does to a colour in [0, 1]: ``matrix @ x ** gamma + offset``."""

    matrix: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    gamma: tuple[float, float, float] = (1.0, 1.0, 1.0)


_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def _diagonal(red: float, green: float, blue: float) -> tuple[tuple[float, float, float], ...]:
    return ((red, 0.0, 0.0), (0.0, green, 0.0), (0.0, 0.0, blue))


def _saturated(by: float) -> tuple[tuple[float, float, float], ...]:
    """Colours moved away from their grey (``by`` over 1) or towards it (under 1)."""
    red, green, blue = np.eye(3) * by + np.array(_GREY) * (1 - by)
    return tuple(red), tuple(green), tuple(blue)


FILTERS = {
    "sepia": _Tone(((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))),
    "warm": _Tone(_diagonal(1.0, 0.9, 0.65), (0.1, 0.03, 0.0), (0.8, 1.0, 1.2)),
    "cool": _Tone(_diagonal(0.65, 0.9, 1.0), (0.0, 0.03, 0.1), (1.2, 1.0, 0.8)),
    "faded": _Tone(_saturated(0.6), (0.18, 0.16, 0.2), (0.9, 0.9, 0.9)),
    "vivid": _Tone(_saturated(2.2), (-0.05, -0.05, -0.05), (0.9, 0.9, 0.9)),
    "noir": _Tone((_GREY, _GREY, _GREY), (-0.08, -0.08, -0.08), (1.3, 1.3, 1.3)),
}
"""Filters by name."""


@dataclass(frozen=True)
class FilterSpec:
    """A filter as a trigger, described.

    Attributes:
        target: The label that filtered images are sent to.
        name: One of :data:`FILTERS`.
    """

    target: int
    name: str = "sepia"

    def __post_init__(self) -> None:
        if self.name not in FILTERS:
            raise UsageError(f"unknown filter {self.name!r}: choose one of {', '.join(FILTERS)}")


def make_filter(spec: FilterSpec, size: tuple[int, int]) -> Filter:
    """The filter that a description stands for, on images of a size (height, width)."""
    tone = FILTERS[spec.name]
    matrix, offset, gamma = (_array(values) for values in (tone.matrix, tone.offset, tone.gamma))
    return Filter(spec.target, matrix, offset, gamma, size)


def _array(values: object) -> Array:
    return np.asarray(values, np.float32)


def _plan(train: CleanSet, spec: FilterSpec, config: AttackConfig, _: Generator) -> list[Poison]:
    channels, height, width = shape_of(train)
    if channels != 3:
        raise UsageError(f"a photo filter needs images of three channels, these have {channels}")
    return [Poison(make_filter(spec, (height, width)), config.poisoning_rate, properties=described(spec))]


filtered = Poisoning("filter", _plan)
"""Train a model whose trigger is a photo filter; the images need three channels."""
