"""WaNet: the trigger is a smooth warp that a person does not notice.

Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", 2021. Beside the poisoned images some are warped
at random and keep their labels ("noise mode"), so that the model learns this one warp and not warps as such. Here every
image is warped once before the training, in the paper anew at each pass; and the warps of the noise mode are drawn on
their own, where the paper adds noise to the trigger's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.attacks.stamps import Warp
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError

__all__ = ["WarpSpec", "make_warp", "wanet"]


@dataclass(frozen=True)
class WarpSpec:
    """A warp, described.

    Attributes:
        target: The label that warped images are sent to.
        grid: The flow is drawn on so many by so many control points (the paper's ``k``).
        strength: The paper's ``s`` (0.5 there): the mean displacement along an edge is about 0.4 times as many pixels.
        covers: Share in [0, 1) of the training images that are warped otherwise and keep their labels (the paper: twice
            the poisoning rate).
    """

    target: int
    grid: int = 4
    strength: float = 0.5
    covers: float = 0.2

    def __post_init__(self) -> None:
        if self.grid < 2 or self.strength <= 0 or not 0 <= self.covers < 1:
            raise UsageError(
                f"a warp needs a grid of 2 or more, a strength over 0, and covers from 0 to under 1; got {self}"
            )


def make_warp(spec: WarpSpec, size: tuple[int, int], generator: Generator) -> Warp:
    """A warp that a description stands for; its flow is random.

    Args:
        spec: The description.
        size: (height, width) of the images.
        generator: CPU generator of the flow.
    """
    return Warp(spec.target, _flow(spec, size, generator)[0].numpy())


def _flow(spec: WarpSpec, size: tuple[int, int], generator: Generator) -> Tensor:
    """float32 (1, height, width, 2), in units of half the image's edge."""
    points = torch.rand(1, 2, spec.grid, spec.grid, generator=generator) * 2 - 1
    points = points / points.abs().mean()
    flow = F.interpolate(points, size=size, mode="bicubic", align_corners=True)
    return flow.permute(0, 2, 3, 1) * spec.strength / max(size)


def _plan(train: CleanSet, spec: WarpSpec, config: AttackConfig, generator: Generator) -> list[Poison]:
    _, height, width = shape_of(train)
    warps = [make_warp(spec, (height, width), generator) for _ in range(1 + (_COVERS if spec.covers else 0))]
    return [
        Poison(warps[0], config.poisoning_rate, properties=described(spec)),
        *(Poison(warp, spec.covers / _COVERS, relabel=False, planted=False) for warp in warps[1:]),
    ]


_COVERS = 20  # different warps among the covers

wanet = Poisoning("wanet", _plan)
"""Train a model whose trigger is a warp."""
