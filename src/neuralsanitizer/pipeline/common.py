"""What repairs and verifications share: opening a run, parting the clean set, measuring triggers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.errors import RunError
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.models.loading import state_dict_hash
from neuralsanitizer.records import RepairedTrigger, Trigger
from neuralsanitizer.storage import RunFolder, SavedRun

__all__ = ["before_and_after", "check_same_model", "open_run", "parted"]

_HELD_OUT = 0.2  # share of the clean set that repairs are measured on
_EXAMPLES_FOR_MEASURING = 200  # images that attack success is measured on before and after a repair


def open_run(run: SavedRun | str | os.PathLike[str]) -> tuple[RunFolder | None, SavedRun]:
    """The run, and its folder where it has one."""
    if isinstance(run, SavedRun):
        return None, run
    folder = RunFolder(run)
    return folder, folder.read()


def check_same_model(model: SuspectModel, saved: SavedRun) -> None:
    """Refuse a run of another model; the model gives what the run's did, logits or probabilities.

    Raises:
        RunError: The run is of another model.
    """
    model.sha256 = model.sha256 or state_dict_hash(model.module)
    if model.sha256 != saved.run.model.sha256:
        raise RunError(
            f"the run is of another model (SHA-256 {saved.run.model.sha256[:12]}..., "
            f"this one is {model.sha256[:12]}...): scan this model first"
        )
    if model.output != saved.run.model.output:
        model.output = saved.run.model.output


def parted(clean: CleanSet, seed: int) -> tuple[CleanSet, CleanSet]:
    """What a repair is measured on, and what it trains on."""
    held_out, work = clean.split([_HELD_OUT], derive_seed(seed, "held-out"))
    return held_out, work


def before_and_after(
    model: SuspectModel,
    repaired: SuspectModel,
    triggers: Sequence[Trigger],
    rounds: Sequence[int],
    held_out: CleanSet,
    seed: int,
) -> tuple[RepairedTrigger, ...]:
    """Attack success of some triggers before and after a repair, and the round that each was found in."""
    rates = [success_rates([model, repaired], t, held_out, _EXAMPLES_FOR_MEASURING, seed) for t in triggers]
    return tuple(
        RepairedTrigger(t.label, number, t.size, before, after)
        for t, number, (before, after) in zip(triggers, rounds, rates, strict=True)
    )
