"""A clean set: images whose labels the user vouches for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from neuralsanitizer.data.audio import Recordings
from neuralsanitizer.errors import DataError
from neuralsanitizer.records import DataRecord

__all__ = ["CleanSet"]


@dataclass(frozen=True, eq=False)
class CleanSet:
    """Labelled images.

    Attributes:
        images: float32 (N, channels, height, width) in [0, 1].
        labels: int64 (N,).
        name: Where they came from, without folders.
        format: ``npz``, ``folder``, ``wav``, ``idx``, ``bundled`` or ``memory``.
        label_names: Names that came with the data (folder names), or empty.
        notes: What loading had to do.
        recordings: Of speech, what the images are the MFCC of.
    """

    images: Tensor
    labels: Tensor
    name: str = "memory"
    format: str = "memory"
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recordings: Recordings | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise DataError(f"images (N, channels, height, width) and labels (N,) expected, got {shapes}")
        if not len(self.images):
            raise DataError(f"{self.name} holds no images")
        if self.images.dtype != torch.float32 or self.labels.dtype != torch.int64:
            raise DataError(f"float32 images and int64 labels expected, got {self.images.dtype}, {self.labels.dtype}")
        if not torch.isfinite(self.images).all():
            raise DataError(f"{self.name} holds NaN or infinite pixel values")
        if int(self.labels.min()) < 0:
            raise DataError(f"labels count from 0; {self.name} holds {int(self.labels.min())}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"CleanSet({self.name!r}, {len(self)} images of {tuple(self.images.shape[1:])})"

    def subset(self, indices: Tensor) -> Self:
        """The images at ``indices`` (int64), in that order."""
        recordings = self.recordings.subset(indices) if self.recordings is not None else None
        return replace(self, images=self.images[indices], labels=self.labels[indices], recordings=recordings)

    def split(self, shares: Sequence[float], seed: int) -> tuple[Self, ...]:
        """Disjoint parts with the same mix of labels, the last taking what is left.

        Args:
            shares: One share in (0, 1) for each part but the last.
            seed: Same seed, same parts.
        """
        generator = torch.Generator().manual_seed(seed)
        parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
        for label in self.labels.unique().tolist():
            members = (self.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            bounds = [round(sum(shares[: i + 1]) * len(members)) for i in range(len(shares))]
            for part, chunk in zip(parts, members.tensor_split(bounds), strict=True):
                part.append(chunk)
        return tuple(self.subset(torch.cat(part).sort().values) for part in parts)

    def record(self, labels: int) -> DataRecord:
        """What the run remembers of the data.

        Args:
            labels: Number of labels of the model.
        """
        digest = hashlib.sha256()
        digest.update(str(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return DataRecord(
            name=self.name,
            sha256=digest.hexdigest(),
            format=self.format,
            images=len(self),
            images_per_label=tuple(torch.bincount(self.labels, minlength=labels).tolist()),
            notes=self.notes,
            speech=self.recordings.settings() if self.recordings is not None else {},
        )
