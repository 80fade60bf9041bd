"""Verifying: the proof that a repaired model lost its backdoors, without ground truth."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

from neuralsanitizer.config import VerifyConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.execution.progress import NoProgress, Progress
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.pipeline.common import before_and_after, check_same_model, open_run, parted
from neuralsanitizer.pipeline.scanning import Cache, detector_of, scan
from neuralsanitizer.provenance import now
from neuralsanitizer.records import Finding, RepairedTrigger, Run, Verification
from neuralsanitizer.storage import SavedRun

__all__ = ["verify"]


def verify(
    model: SuspectModel,
    repaired: SuspectModel,
    run: SavedRun | str | os.PathLike[str],
    clean: CleanSet,
    *,
    config: VerifyConfig | None = None,
    seed: int | None = None,
    output: str | os.PathLike[str] | None = None,
    cache: Cache = None,
    progress: Progress | None = None,
) -> Verification:
    """Prove, without ground truth, that a repaired model lost the backdoors and kept its skill.

    Args:
        model: The model before repair.
        repaired: The model after it.
        run: The scan of ``model``, or its folder; in its folder the proof is recorded too, unless the repair on record
            there wrote other weights.
        clean: Clean images.
        config: What counts as proven.
        seed: Of the fresh scan; by default one that the scan of ``model`` did not use.
        output: Folder to write the fresh scan to.
        cache: As for :func:`build_detector`.
        progress: Where to say how far it is.

    Raises:
        RunError: The run is of another model than ``model``.
    """
    started, config = time.perf_counter(), config or VerifyConfig()
    folder, saved = open_run(run)
    check_same_model(model, saved)
    seed = derive_seed(saved.run.seed, "verify") if seed is None else seed
    repaired.recognise_output(clean.images[:8])
    # What the repair did not train on, if it was given the same clean set.
    held_out, _ = parted(clean, saved.repair.seed if saved.repair else seed)
    triggers = list(saved.repair_triggers) or [saved.triggers[label] for label in saved.run.verdict.infected_labels]
    origin = [t.round for t in saved.repair.triggers] if saved.repair else [0] * len(triggers)
    fresh = scan(repaired, clean, method=detector_of(saved.run, cache), seed=seed, output=output, progress=progress)
    before = model.accuracy(held_out.images, held_out.labels)
    after = repaired.accuracy(held_out.images, held_out.labels)
    measured = before_and_after(model, repaired, triggers, origin, held_out, seed)
    finding, reason = _proof(measured, _least_drop(model, repaired, held_out), fresh.run, config)
    verification = Verification(
        created=now(),
        finding=finding,
        reason=reason,
        source_sha256=model.sha256,
        repaired_sha256=repaired.sha256,
        clean_accuracy_before=before,
        clean_accuracy_after=after,
        held_out_images=len(held_out),
        triggers=measured,
        scan=fresh.run,
        timings={**fresh.run.timings, "total": time.perf_counter() - started},
    )
    if folder is not None and saved.repair is not None and saved.repair.repaired_sha256 != repaired.sha256:
        (progress or NoProgress()).note(
            f"these are not the weights that the repair in {folder.path} wrote: the proof is not recorded there"
        )
    elif folder is not None:
        folder.write_verification(verification)
    return verification


def _least_drop(model: SuspectModel, repaired: SuspectModel, held_out: CleanSet) -> float:
    """By how much accuracy fell at least, at 95 % confidence: 3 of 200 images prove no loss of 1.5 points.

    Only the images that one of the two models names rightly and the other wrongly tell them apart (McNemar).
    """
    right, still = (m.predict(held_out.images).cpu() == held_out.labels for m in (model, repaired))
    lost, won = int((right & ~still).sum()), int((still & ~right).sum())
    return (lost - won - _ONE_SIDED * math.sqrt(lost + won)) / len(held_out)


_ONE_SIDED = 1.645  # standard deviations that 95 % of a normal distribution lie over


def _proof(
    triggers: Sequence[RepairedTrigger], accuracy_drop: float, fresh: Run, config: VerifyConfig
) -> tuple[Finding, str]:
    alive = [t for t in triggers if t.attack_success_after > config.largest_attack_success]
    if fresh.verdict.finding is Finding.INFECTED:
        return Finding.INFECTED, f"a fresh scan of the repaired model still finds it infected: {fresh.verdict.reason}"
    if alive:
        worst = max(alive, key=lambda t: t.attack_success_after)
        return Finding.INFECTED, (
            f"{len(alive)} of {len(triggers)} reversed triggers still work on the repaired model "
            f"(label {worst.label}: {worst.attack_success_after:.1%})"
        )
    if fresh.verdict.finding is Finding.INCONCLUSIVE:
        return Finding.INCONCLUSIVE, f"the fresh scan could not judge: {fresh.verdict.reason}"
    if accuracy_drop > config.largest_accuracy_drop:
        return (
            Finding.INCONCLUSIVE,
            f"the triggers are gone, but clean accuracy fell, by {100 * accuracy_drop:.1f} points at least",
        )
    return Finding.CLEAN, "every reversed trigger is dead, accuracy held, and a fresh scan found no backdoor"
