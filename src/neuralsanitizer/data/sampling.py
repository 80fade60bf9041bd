"""Drawing images by label, and mixing them, as index arithmetic on one tensor."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F  # noqa: N812 - everybody's name for it

from neuralsanitizer.errors import DataError

__all__ = ["LabelSampler", "derive_seed", "mixed_images"]


def derive_seed(seed: int, *parts: int | str) -> int:
    """A seed for one part of a job, so that no part's randomness depends on what else runs, or in which order.

    >>> derive_seed(0, "label", 3) == derive_seed(0, "label", 3) != derive_seed(0, "label", 4)
    True
    """
    import hashlib  # noqa: PLC0415 - Python's own hash() of text differs from process to process

    digest = hashlib.sha256("/".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:7], "big")


class LabelSampler:
    """Draws images evenly over all labels but one.

    Args:
        labels: int64 (N,): label of each image.
        count: Number of labels; labels without images are never drawn.

    Raises:
        DataError: Fewer than two labels have images.
    """

    def __init__(self, labels: Tensor, count: int) -> None:
        self._order = labels.argsort(stable=True).cpu()
        self._sizes = torch.bincount(labels.cpu(), minlength=count)
        self._starts = self._sizes.cumsum(0) - self._sizes
        if int((self._sizes > 0).sum()) < 2:
            raise DataError("the clean set needs images of at least two labels")

    def draw(self, excluded: int, rows: int, images: int, generator: Generator) -> Tensor:
        """Indices of images of other labels than ``excluded``.

        Args:
            excluded: The label left out.
            rows: How many independent draws.
            images: Images a draw, spread as evenly over the labels as their number allows.
            generator: CPU generator.

        Returns:
            int64 (rows, images).
        """
        present = self._sizes > 0
        present[excluded] = False
        others = present.nonzero().flatten()
        passes = -(-images // len(others))
        shuffled = torch.rand(rows, passes, len(others), generator=generator).argsort(dim=-1)
        drawn = others[shuffled.flatten(1)[:, :images]]  # (rows, images): each label before any label again
        within = (torch.rand(rows, images, generator=generator) * self._sizes[drawn]).long()
        return self._order[self._starts[drawn] + within]


def mixed_images(
    images: Tensor, targets: Tensor, generator: Generator, largest_shift: float, mixing: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Convex mixtures of an image with another, shifted and changed in brightness: inputs to distil a network on.

    They lie between the classes as well as on them, so that few clean images tell much of the network.

    Args:
        images: (N, channels, height, width) in [0, 1].
        targets: (N, labels): what each image is; they are mixed as the images are.
        generator: CPU generator.
        largest_shift: As a share of the edge length.
        mixing: Largest share of the other image, in [0, 0.5]; 0 leaves every image one of a kind.

    Returns:
        Images and targets of the same shapes.
    """
    count, device = len(images), images.device
    other = torch.randperm(count, generator=generator).to(device)
    # Half of the mixtures are nearly one image: a network distilled on even mixtures alone is weak on pure ones.
    share = torch.rand(count, 1, 1, 1, generator=generator).pow(2).mul(mixing).to(device)
    mixed = torch.lerp(images, images[other], share)
    angle = (torch.rand(count, 2, generator=generator) * 2 - 1) * 2 * largest_shift
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = angle
    grid = F.affine_grid(theta.to(device), list(images.shape), align_corners=False)
    shifted = F.grid_sample(mixed, grid, padding_mode="border", align_corners=False)
    brightness = 1 + (torch.rand(count, 1, 1, 1, generator=generator) - 0.5).mul(0.4).to(device)
    return shifted.mul(brightness).clamp(0, 1), torch.lerp(targets, targets[other], share.view(-1, 1))
