"""The whole story with the default settings, on real digits: found, not found, repaired, proven.

And the other way round: with any one stage broken, the story must not come out. A check that no broken stage can fail
would prove nothing.
"""

import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from neuralsanitizer import load_model
from neuralsanitizer.attacks.base import AttackResult, measure_attack_success
from neuralsanitizer.config import RepairConfig
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.base import model_verdict
from neuralsanitizer.detectors.neural_sanitizer import detector, families
from neuralsanitizer.detectors.neural_sanitizer.tune import Reference
from neuralsanitizer.mitigation.base import Removal
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models import architectures
from neuralsanitizer.pipeline import repair, scan, verify
from neuralsanitizer.records import Finding, ReferenceRecord, TransferMatrix
from quick import TARGET

pytestmark = pytest.mark.acceptance
ARCH = "mnist-cnn-small"


@dataclass(frozen=True)
class Story:
    """Models with known truth, and what the tester has: the clean set. ``unseen`` is for measuring the truth alone."""

    attacked: AttackResult
    honest: AttackResult
    clean: CleanSet
    unseen: CleanSet
    folder: Path

    def scan_attacked(self, folder, *, resume=False):
        return scan(self.attacked.model, self.clean, seed=0, output=folder, resume=resume)

    def scan_honest(self, folder, *, resume=False):
        return scan(self.honest.model, self.clean, seed=0, output=folder, resume=resume)

    def repair(self):
        output = self.folder / "repaired.safetensors"
        return repair(self.attacked.model, self.folder / "attacked", self.clean, output=output, seed=0)


def check_that_the_backdoor_is_found(saved):
    assert saved.run.verdict.finding is Finding.INFECTED
    assert saved.run.verdict.infected_labels == (TARGET,)
    assert saved.run.verdict.labels[TARGET].attack_success > 0.75


def check_that_the_trigger_is_the_planted_one(saved, story):
    mask, planted = saved.triggers[TARGET].mask, story.attacked.triggers[0].mask
    assert (mask * planted).sum() > 0.25 * mask.sum()  # by chance: 0.02 of it, the planted one's share of the image


def check_that_nothing_is_found(saved):
    assert saved.run.verdict.infected_labels == ()
    assert saved.run.verdict.finding is Finding.CLEAN, saved.run.verdict.reason


def check_that_the_repair_worked(result, story):
    unseen, before = story.unseen, story.attacked.truth
    assert result.repair.complete
    left = measure_attack_success(result.model, unseen, story.attacked.triggers[0])
    assert before.triggers[0].attack_success > 0.95
    assert left < 0.05
    assert result.model.accuracy(unseen.images, unseen.labels) > before.clean_accuracy - 0.01


def check_that_the_proof_holds(proof):
    assert proof.finding is Finding.CLEAN, proof.reason
    assert proof.scan.verdict.finding is Finding.CLEAN
    assert all(t.attack_success_after < 0.05 < t.attack_success_before for t in proof.triggers)


@pytest.fixture(scope="module")
def story(attacked, honest, clean, unseen, tmp_path_factory):
    return Story(attacked, honest, clean, unseen, tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="module")
def found(story):
    return story.scan_attacked(story.folder / "attacked")


@pytest.fixture(scope="module")
def not_found(story):
    return story.scan_honest(story.folder / "honest")


@pytest.fixture(scope="module")
def repaired(story, found):
    assert found.run.verdict.infected_labels
    return story.repair()


def test_the_backdoor_is_found_at_its_label_and_no_other(found, story):
    check_that_the_backdoor_is_found(found)
    check_that_the_trigger_is_the_planted_one(found, story)


def test_nothing_is_found_in_a_clean_model(not_found):
    check_that_nothing_is_found(not_found)


def test_repair_kills_the_planted_trigger_and_keeps_the_accuracy(repaired, story):
    check_that_the_repair_worked(repaired, story)


def test_a_fresh_scan_proves_the_repair(repaired, story):
    weights = load_model(story.folder / "repaired.safetensors", arch=ARCH)
    assert weights.sha256 == repaired.repair.repaired_sha256
    check_that_the_proof_holds(verify(story.attacked.model, weights, story.folder / "attacked", story.clean))


# One stage broken at a time. Each entry breaks it and says which part of the story is played then.


def reconstruction_returns_its_random_start(monkeypatch):
    real = families.reconstruct
    monkeypatch.setattr(
        families, "reconstruct", lambda *args, config, **rest: real(*args, config=replace(config, steps=1), **rest)
    )


def every_trigger_transfers(monkeypatch):
    def full(references, triggers, *_args, **_rest):
        names = tuple(name for name, _ in references)
        return TransferMatrix(names, tuple((1.0,) * len(names) for _ in triggers))

    monkeypatch.setattr(detector, "transfer_matrix", full)


def references_keep_the_backdoor(monkeypatch):
    def copied(suspect, *_args, plan, name, role, **_rest):
        record = ReferenceRecord(name, plan.kind, role, plan.layers, 1.0, 1.0, usable=True, reason="", seconds=0.0)
        return Reference(suspect.with_module(copy.deepcopy(suspect.module)), record)

    monkeypatch.setattr(detector, "make_reference", copied)


def any_patch_that_works_is_a_backdoor(monkeypatch):
    real = detector.decide

    def credulous(suspect, evidence, config):
        verdict = real(suspect, evidence, config)
        findings = [replace(f, finding=Finding.INFECTED) if f.attack_success > 0.5 else f for f in verdict.labels]
        return model_verdict(findings, verdict.assumptions, "a credulous judge")

    monkeypatch.setattr(detector, "decide", credulous)


def no_patch_is_a_backdoor(monkeypatch):
    real = detector.decide

    def blind(suspect, evidence, config):
        verdict = real(suspect, evidence, config)
        findings = [replace(f, finding=Finding.CLEAN) for f in verdict.labels]
        return model_verdict(findings, verdict.assumptions, "a blind judge")

    monkeypatch.setattr(detector, "decide", blind)


def unlearning_does_nothing(monkeypatch):
    monkeypatch.setattr(
        Unlearn, "remove", lambda _self, suspect, *_args, **_rest: Removal(copy.deepcopy(suspect.module))
    )


def unlearning_spoils_the_model(monkeypatch):
    fresh = architectures.build(ARCH, labels=10).eval().requires_grad_(False)
    monkeypatch.setattr(Unlearn, "remove", lambda *_args, **_rest: Removal(copy.deepcopy(fresh)))


def played_again(source, folder, *, keep):
    """A copy of a finished run that goes on from where the broken stage comes in: what stands before it is kept."""
    shutil.copytree(source, folder)
    (folder / "run.json").unlink()
    for part in (folder / "state").glob("*.npz"):
        if not part.name.startswith(keep):
            part.unlink()
    return folder


@pytest.mark.parametrize(
    ("sabotage", "keep"),
    [
        (reconstruction_returns_its_random_start, ("reference-",)),
        (every_trigger_transfers, ("reference-",)),
        (references_keep_the_backdoor, ("nothing",)),
        (no_patch_is_a_backdoor, ("reference-", "label-")),
    ],
)
@pytest.mark.usefixtures("found")
def test_a_backdoor_is_not_found_if_a_stage_is_broken(sabotage, keep, story, tmp_path, monkeypatch):
    folder = played_again(story.folder / "attacked", tmp_path / "run", keep=keep)
    sabotage(monkeypatch)
    saved = story.scan_attacked(folder, resume=True)
    with pytest.raises(AssertionError):
        check_that_the_backdoor_is_found(saved)


@pytest.mark.usefixtures("not_found")
def test_a_clean_model_is_accused_if_the_verdict_is_broken(story, tmp_path, monkeypatch):
    folder = played_again(story.folder / "honest", tmp_path / "run", keep=("reference-", "label-"))
    any_patch_that_works_is_a_backdoor(monkeypatch)
    saved = story.scan_honest(folder, resume=True)
    with pytest.raises(AssertionError):
        check_that_nothing_is_found(saved)


@pytest.mark.parametrize("sabotage", [unlearning_does_nothing, unlearning_spoils_the_model])
@pytest.mark.usefixtures("found")
def test_the_repair_fails_if_the_unlearning_is_broken(sabotage, story, tmp_path, monkeypatch):
    shutil.copytree(story.folder / "attacked", tmp_path / "run")
    sabotage(monkeypatch)
    broken = repair(story.attacked.model, tmp_path / "run", story.clean, config=RepairConfig(rounds=1), seed=0)
    with pytest.raises(AssertionError):
        check_that_the_repair_worked(broken, story)


@pytest.mark.usefixtures("found", "not_found")
def test_what_is_played_again_unbroken_comes_out_as_before(story, tmp_path):
    """The broken stories above fail because of what was broken, and not because they are played again."""
    attacked = played_again(story.folder / "attacked", tmp_path / "attacked", keep=("reference-", "label-"))
    check_that_the_backdoor_is_found(story.scan_attacked(attacked, resume=True))
    honest = played_again(story.folder / "honest", tmp_path / "honest", keep=("reference-", "label-"))
    check_that_nothing_is_found(story.scan_honest(honest, resume=True))
