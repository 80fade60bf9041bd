"""Guarding: an input filter from a run's triggers, for a model that must stay as it is."""

from __future__ import annotations

import os
from dataclasses import replace

from neuralsanitizer.config import FilterConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import OutputError, UsageError
from neuralsanitizer.mitigation.filtering import InputFilter, filter_files, fit_filter, save_filter
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.pipeline.common import check_same_model, open_run
from neuralsanitizer.storage import SavedRun

__all__ = ["guard"]


def guard(
    model: SuspectModel,
    run: SavedRun | str | os.PathLike[str],
    clean: CleanSet,
    *,
    output: str | os.PathLike[str] | None = None,
    config: FilterConfig | None = None,
    seed: int = 0,
) -> InputFilter:
    """Fit an input filter to the triggers that a scan reversed, and those that a repair found besides.

    Args:
        model: The model that was scanned.
        run: The scan, or its folder; in its folder a copy of the filter's record is kept for the report.
        clean: Clean images; the same set as for the scan, or another of the task.
        output: ``NAME.safetensors`` to write the filter to, with ``NAME.json`` beside it.
        config: Score and false-alarm rate.
        seed: Which half of the clean images sets the threshold.

    Raises:
        RunError: The run is of another model.
        UsageError: The run found no infected label, or ``output`` has another name.
        OutputError: ``output`` is a file of the run itself, or cannot be written.
        NeuralSanitizerError: As :func:`neuralsanitizer.mitigation.filtering.fit_filter`.
    """
    folder, saved = open_run(run)
    for path in () if output is None else filter_files(output):  # before the work, not after it
        if folder is not None and folder.keeps(path):
            raise OutputError(f"{path} is a file of the run itself: choose another name for the filter")
    check_same_model(model, saved)
    infected = saved.run.verdict.infected_labels
    if not infected:
        raise UsageError("the scan found no infected label: there is nothing to filter")
    triggers = saved.repair_triggers or [saved.triggers[label] for label in infected]
    filter_ = fit_filter(model, triggers, clean, config=config, seed=seed)
    if output is not None:
        filter_ = replace(filter_, record=save_filter(filter_, output))
    if folder is not None:
        folder.write_filter(filter_.record)
    return filter_
