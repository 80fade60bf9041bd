"""Runs to report on: a real scan and repair, and others made from their records."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from neuralsanitizer.config import PruneConfig, RepairConfig
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.mitigation.prune import Prune
from neuralsanitizer.pipeline import guard, repair, scan
from neuralsanitizer.records import Finding, RepairedTrigger, Trigger, Verification
from neuralsanitizer.storage import RunFolder
from quick import QUICK_CLEANSE


@pytest.fixture(scope="package")
def infected(quick_folder):
    """A scan that found the planted label."""
    return RunFolder(quick_folder).read()


@pytest.fixture(scope="package")
def repaired(quick_repair):
    """The same scan, with its repair."""
    return RunFolder(quick_repair[0] / "run").read()


@pytest.fixture(scope="package")
def clean_run(infected):
    """The same numbers, nothing found."""
    labels = tuple(replace(f, finding=Finding.CLEAN) for f in infected.run.verdict.labels)
    return with_verdict(infected, finding=Finding.CLEAN, reason="no backdoor found by a test", labels=labels)


@pytest.fixture(scope="package")
def open_run(infected):
    """A scan that could not begin: its model does not do its job."""
    check = replace(infected.run.self_check, clean_accuracy=0.1, passed=False, note="the preprocessing is another")
    changed = with_verdict(infected, finding=Finding.INCONCLUSIVE, reason=check.note, labels=(), assumptions=())
    run = replace(changed.run, self_check=check, references=(), timings={"total": 0.2})
    return replace(changed, run=run, triggers={})


@pytest.fixture(scope="package")
def verified(repaired, clean_run):
    """The scan, its repair, and the proof."""
    proof = Verification(
        created="2030-01-01T00:00:00+00:00",
        finding=Finding.CLEAN,
        reason="every reversed trigger is dead",
        source_sha256=repaired.run.model.sha256,
        repaired_sha256=repaired.repair.repaired_sha256,
        clean_accuracy_before=0.961,
        clean_accuracy_after=0.957,
        held_out_images=300,
        triggers=(RepairedTrigger(7, 0, 24.0, 0.987, 0.004),),
        scan=clean_run.run,
        timings={"total": 3.0},
    )
    return replace(repaired, verification=proof)


@pytest.fixture(scope="package")
def guarded(attacked, clean, quick_folder, tmp_path_factory):
    """The scan, pruned neurons, and a filter."""
    folder = tmp_path_factory.mktemp("guarded") / "run"
    shutil.copytree(quick_folder, folder)
    repair(attacked.model, folder, clean, method=Prune(PruneConfig(step=0.1)), config=RepairConfig(rounds=1))
    guard(attacked.model, folder, clean)
    return RunFolder(folder).read()


@pytest.fixture(scope="package")
def cleansed(attacked, clean, tmp_path_factory):
    """A scan by Neural Cleanse."""
    folder = tmp_path_factory.mktemp("cleansed") / "run"
    scan(attacked.model, clean, method=NeuralCleanse(QUICK_CLEANSE), output=folder)
    return RunFolder(folder).read()


def with_verdict(saved, **changes):
    return replace(saved, run=replace(saved.run, verdict=replace(saved.run.verdict, **changes)))


@pytest.fixture(scope="package")
def many(infected):
    """Make a run of as many labels as asked for, some of them infected, all with triggers."""

    def made(count, marked):
        first = infected.run.verdict.labels[0]
        labels = tuple(
            replace(
                first,
                label=i,
                name=f"a rather long name of the label number {i}",
                finding=Finding.INFECTED if i < marked else Finding.CLEAN,
                mask_size=10.0 + i,
            )
            for i in range(count)
        )
        trigger = infected.triggers[0]
        triggers = {i: Trigger(i, trigger.mask, trigger.pattern, trigger.heat) for i in range(count)}
        changed = with_verdict(infected, labels=labels)
        model = replace(changed.run.model, labels=count, label_names=tuple(f.name for f in labels))
        examples = np.repeat(infected.examples[:1], 8, axis=0)
        return replace(changed, run=replace(changed.run, model=model), triggers=triggers, examples=examples)

    return made
