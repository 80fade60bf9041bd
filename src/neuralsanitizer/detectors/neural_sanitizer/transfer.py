"""TNDA: does a reconstructed trigger work on other models too? An adversarial patch does, a real trigger does not."""

from __future__ import annotations

from collections.abc import Sequence

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.records import TransferMatrix, Trigger

__all__ = ["transfer_matrix"]


def transfer_matrix(
    references: Sequence[tuple[str, SuspectModel]],
    triggers: Sequence[Trigger],
    held_out: CleanSet,
    images: int,
    seed: int,
) -> TransferMatrix:
    """Attack success of every trigger on every test reference.

    Args:
        references: Name and model of each.
        triggers: What to stamp.
        held_out: Where images are drawn from.
        images: How many for each trigger (NeuralSanitizer: 100).
        seed: The scan's seed.
    """
    models = [model for _, model in references]
    rates = tuple(success_rates(models, trigger, held_out, images, seed, fast=True) for trigger in triggers)
    return TransferMatrix(tuple(name for name, _ in references), rates)
