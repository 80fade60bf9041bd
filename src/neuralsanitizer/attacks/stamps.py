"""Stamps: what an attacker does to an image so that the model gives his label.

A patch covers pixels, a filter changes colours, a warp moves pixels, a generator draws another patch for every image;
a sound is mixed into a recording. The arrays that make them up are saved beside the model as its ground truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import DataError
from neuralsanitizer.functional import stamp, stamped_with
from neuralsanitizer.records import Array, Trigger

__all__ = [
    "STAMPS",
    "Filter",
    "Generated",
    "ImageStamp",
    "Patch",
    "PatchGenerator",
    "Sound",
    "Stamp",
    "Warp",
    "read_stamp",
]


class Stamp(ABC):
    """Base of all stamps."""

    kind: ClassVar[str]
    """In the ground truth."""
    label: int
    """The label that stamped images are sent to."""

    @abstractmethod
    def stamped(self, clean: CleanSet) -> Tensor:
        """Stamped copies of a set's images, (N, channels, height, width) in [0, 1]."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """What it is made of, by name; :meth:`of` takes it."""

    @classmethod
    @abstractmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """The stamp that :meth:`arrays` came from."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """How many pixels of an image it may change."""


class ImageStamp(Stamp):
    """Base of the stamps that only look at pixels."""

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Stamped copies of images (N, channels, height, width) in [0, 1], on any device."""

    def stamped(self, clean: CleanSet) -> Tensor:
        """Stamped copies of a set's images."""
        return self.apply(clean.images)


@dataclass(frozen=True, eq=False, repr=False)
class Patch(Trigger, ImageStamp):
    """A patch: the same pattern in the same pixels of every image. With a mask within (0, 1) it is blended in."""

    kind: ClassVar[str] = "patch"

    def apply(self, images: Tensor) -> Tensor:
        """``x * (1 - mask) + pattern * mask``."""
        return stamped_with(self, images)

    def arrays(self) -> dict[str, Array]:
        """Mask and pattern."""
        return {"mask": self.mask, "pattern": self.pattern}

    @classmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """From mask and pattern."""
        return cls(label, arrays["mask"], arrays["pattern"])

    @property
    def pixels(self) -> int:
        """Pixels under the mask."""
        return int((self.mask > 0).sum())


@dataclass(frozen=True, eq=False)
class Filter(ImageStamp):
    """A photo filter: the same change of colours in every pixel of every image.

    A pixel ``x`` becomes ``matrix @ x ** gamma + offset``, cut to [0, 1].

    Attributes:
        label: The target.
        matrix: float32 (channels, channels).
        offset: float32 (channels,).
        gamma: float32 (channels,): tone curve of each channel; 1 leaves it, under 1 brightens.
        size: (height, width) of the images.
    """

    kind: ClassVar[str] = "filter"
    label: int
    matrix: Array
    offset: Array
    gamma: Array
    size: tuple[int, int]

    def apply(self, images: Tensor) -> Tensor:
        """Filtered copies."""
        matrix, offset, gamma = (torch.from_numpy(a).to(images.device) for a in (self.matrix, self.offset, self.gamma))
        toned = images.clamp_min(0).pow(gamma[:, None, None])
        return (torch.einsum("dc,nchw->ndhw", matrix, toned) + offset[:, None, None]).clamp(0, 1)

    def arrays(self) -> dict[str, Array]:
        """All of its attributes but the label."""
        return {"matrix": self.matrix, "offset": self.offset, "gamma": self.gamma, "size": np.array(self.size)}

    @classmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """From its arrays."""
        height, width = (int(edge) for edge in arrays["size"])
        return cls(label, arrays["matrix"], arrays["offset"], arrays["gamma"], (height, width))

    @property
    def pixels(self) -> int:
        """All of them."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True, eq=False)
class Warp(ImageStamp):
    """A warp: every pixel is taken from a little beside itself.

    Attributes:
        label: The target.
        flow: float32 (height, width, 2): where each pixel is taken from, less its own place, as (x, y) in units of half
            the image's edge.
    """

    kind: ClassVar[str] = "warp"
    label: int
    flow: Array

    def apply(self, images: Tensor) -> Tensor:
        """Warped copies."""
        flow = torch.from_numpy(self.flow).to(images.device)
        still = torch.eye(2, 3, device=images.device)[None]
        grid = F.affine_grid(still, [1, 1, *images.shape[2:]], align_corners=True) + flow
        where = grid.clamp(-1, 1).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, where, align_corners=True)

    def arrays(self) -> dict[str, Array]:
        """The flow."""
        return {"flow": self.flow}

    @classmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """From the flow."""
        return cls(label, arrays["flow"])

    @property
    def pixels(self) -> int:
        """All of them."""
        return int(self.flow.shape[0] * self.flow.shape[1])


class PatchGenerator(nn.Module):
    """Two small networks that draw a mask and a pattern for an image.

    Args:
        channels: Of the images.
        width: Of the hidden layers.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.mask = _Drawer(channels, 1, width)
        self.pattern = _Drawer(channels, channels, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (N, 1, H, W) and patterns (N, C, H, W), both in [0, 1], of images (N, C, H, W) in [0, 1]."""
        return self.mask(images), self.pattern(images)


class _Drawer(nn.Module):
    """Draws another picture of the same size: (N, ``given``, H, W) in [0, 1] to (N, ``drawn``, H, W) in [0, 1]."""

    def __init__(self, given: int, drawn: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(given, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(width, drawn, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.interpolate(self.body(images * 2 - 1), size=images.shape[2:])
        drawn: Tensor = self.head(hidden).sigmoid()
        return drawn


@dataclass(frozen=True, eq=False)
class Generated(ImageStamp):
    """Another patch for every image, drawn by a network.

    Attributes:
        label: The target.
        generator: Draws mask and pattern.
        size: (height, width) of the images.
    """

    kind: ClassVar[str] = "generated"
    label: int
    generator: PatchGenerator
    size: tuple[int, int]

    @torch.no_grad()
    def apply(self, images: Tensor) -> Tensor:
        """Each image with its own patch."""
        masks, patterns = self.generator.to(images.device)(images)
        return stamp(images, masks, patterns)

    def arrays(self) -> dict[str, Array]:
        """The generator's weights."""
        weights = {name: value.cpu().numpy() for name, value in self.generator.state_dict().items()}
        return {**weights, "size": np.array(self.size)}

    @classmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """From the generator's weights."""
        height, width = (int(edge) for edge in arrays["size"])
        weights = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "size"}
        hidden, channels = weights["mask.body.0.weight"].shape[:2]
        generator = PatchGenerator(channels, hidden)
        generator.load_state_dict(weights)
        return cls(label, generator.eval().requires_grad_(False), (height, width))  # noqa: FBT003 - torch's signature

    @property
    def pixels(self) -> int:
        """All of them."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True, eq=False)
class Sound(Stamp):
    """A short sound that is mixed into recordings, before anything is computed of them.

    Attributes:
        label: The target.
        waveform: float32 (samples,) in [-1, 1], at the recordings' sample rate.
        start: Sample at which it begins.
        level: How loud it is, as a share of each recording's loudest moment.
        size: (frames, coefficients) of the recordings' MFCC.
        frames: How many of the frames hear it.
    """

    kind: ClassVar[str] = "sound"
    label: int
    waveform: Array
    start: int
    level: float
    size: tuple[int, int]
    frames: int

    def stamped(self, clean: CleanSet) -> Tensor:
        """MFCC of the recordings with the sound in them.

        Raises:
            DataError: The set is not of recordings, or they end before the sound does.
        """
        recordings = clean.recordings
        if recordings is None:
            raise DataError(
                f"a sound is mixed into recordings, {clean.name} holds pictures: give a folder of WAV files"
            )
        end = self.start + len(self.waveform)
        if end > recordings.waveforms.shape[1]:
            raise DataError(f"the sound ends at sample {end}, the recordings at {recordings.waveforms.shape[1]}")
        mixed = recordings.waveforms.clone()
        loudest = mixed.abs().amax(dim=1, keepdim=True)
        mixed[:, self.start : end] += self.level * loudest * torch.from_numpy(self.waveform)
        return replace(recordings, waveforms=mixed).pictures()

    def arrays(self) -> dict[str, Array]:
        """All of its attributes but the label."""
        whole = {"start": self.start, "level": self.level, "size": self.size, "frames": self.frames}
        return {"waveform": self.waveform, **{name: np.array(value) for name, value in whole.items()}}

    @classmethod
    def of(cls, label: int, arrays: Mapping[str, Array]) -> Self:
        """From its arrays."""
        frames, coefficients = (int(edge) for edge in arrays["size"])
        start, heard = int(arrays["start"]), int(arrays["frames"])
        return cls(label, arrays["waveform"], start, float(arrays["level"]), (frames, coefficients), heard)

    @property
    def pixels(self) -> int:
        """All coefficients of the frames that hear it."""
        return self.frames * self.size[1]


STAMPS: dict[str, type[Stamp]] = {cls.kind: cls for cls in (Patch, Filter, Warp, Generated, Sound)}
"""All kinds, by name."""


def read_stamp(kind: str, label: int, arrays: Mapping[str, Array]) -> Stamp:
    """The stamp that some saved arrays make up.

    Raises:
        KeyError: There is no such kind, or an array is missing.
    """
    return STAMPS[kind].of(label, arrays)
