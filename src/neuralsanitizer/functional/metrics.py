"""Attack success, in one place."""

from __future__ import annotations

from torch import Tensor

__all__ = ["attack_success"]


def attack_success(predictions: Tensor, targets: Tensor, true_labels: Tensor) -> Tensor:
    """Share of images **not of the target label** that are sent to it once stamped.

    Args:
        predictions: (..., images) int64: labels named for the stamped images.
        targets: (...,) int64: the label that each row's trigger aims at.
        true_labels: (images,) or (..., images) int64: labels of the images before stamping.

    Returns:
        (...,) float32 in [0, 1]; 0 where every image is of the target label.

    >>> attack_success(torch.tensor([[1, 1, 0]]), torch.tensor([1]), torch.tensor([1, 0, 0])).tolist()
    [0.5]
    """
    wanted = targets.unsqueeze(-1)
    others = (true_labels != wanted).expand(predictions.shape)
    hits = (predictions == wanted) & others
    return hits.sum(dim=-1).float() / others.sum(dim=-1).clamp_min(1)
