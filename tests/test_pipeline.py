"""Scan, repair and verify, end to end on a small real model."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralsanitizer import load_model, storage
from neuralsanitizer.attacks.base import measure_attack_success
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import OutputError, RunError, UsageError
from neuralsanitizer.pipeline import build_detector, detector_of, repair, scan, scan_many, verify
from neuralsanitizer.records import Finding, Verification, to_json
from neuralsanitizer.storage import RunFolder, write_json
from quick import QUICK, TARGET


class Recorder:
    """Progress that remembers what was started."""

    def __init__(self):
        self.stages, self.notes = [], []

    def start(self, stage, total):
        assert total > 0
        self.stages.append(stage)

    def advance(self, steps=1):
        assert steps >= 0

    def note(self, message):
        self.notes.append(message)


def test_a_scan_finds_the_planted_label_alone_and_writes_all_it_knows(quick_folder, attacked, clean):
    saved = RunFolder(quick_folder).read()
    run = saved.run
    assert (run.verdict.finding, run.verdict.infected_labels) == (Finding.INFECTED, (TARGET,))
    assert [f.label for f in run.verdict.labels] == list(range(10))
    assert all(0 <= f.attack_success <= 1 and all(0 <= t <= 1 for t in f.transfer) for f in run.verdict.labels)
    assert run.seed == 3
    assert run.data == clean.record(10)
    assert run.self_check.clean_accuracy == attacked.model.accuracy(clean.images, clean.labels)
    assert {"references", "reconstruct", "transfer", "total"} <= set(run.timings)
    assert sorted(saved.triggers) == list(range(10))
    pictures = {path.name for path in (quick_folder / "triggers").iterdir()}
    assert {f"label-{TARGET}-{kind}.png" for kind in ("mask", "pattern", "stamped")} <= pictures
    assert len(saved.examples) == len(saved.example_labels) == 8


def test_the_found_trigger_lies_where_the_planted_one_does(quick_folder, attacked):
    mask = RunFolder(quick_folder).read().triggers[TARGET].mask
    planted = attacked.triggers[0].mask
    # By chance: 0.02 of it, the planted one's share of the image. Cells on its rim lie half beside it.
    assert (mask * planted).sum() > 0.25 * mask.sum()


def test_a_run_remembers_its_detector_to_the_last_setting(quick_folder):
    again = detector_of(RunFolder(quick_folder).read().run)
    assert isinstance(again, NeuralSanitizer)
    assert again.config == QUICK


@pytest.mark.parametrize("method", ["neural-sanitizer", "neural-cleanse"])
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_every_preset_survives_a_run_folder(method, preset, quick_folder):
    run = RunFolder(quick_folder).read().run
    detector = build_detector(method, preset)
    settings = to_json(detector.settings)
    assert detector_of(type(run)(**{**vars(run), "method": method, "settings": settings})).config == detector.config


@pytest.mark.parametrize(("method", "preset"), [("magic", "default"), ("neural-cleanse", "magic")])
def test_unknown_methods_and_presets_name_the_choice(method, preset):
    with pytest.raises(UsageError, match=r"choose one of .*(neural-sanitizer|paper)"):
        build_detector(method, preset)


def test_an_interrupted_scan_goes_on_where_it_was(quick_folder, attacked, clean, tmp_path):
    shutil.copytree(quick_folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "state" / "label-4.npz").unlink()
    damaged = tmp_path / "run" / "state" / "label-6.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    recorder = Recorder()
    saved = scan(
        attacked.model,
        clean,
        method=NeuralSanitizer(QUICK),
        seed=3,
        output=tmp_path / "run",
        resume=True,
        progress=recorder,
    )
    before = RunFolder(quick_folder).read()
    assert recorder.notes == ["8 of 10 labels were examined before the interruption"]
    assert "reconstruct triggers (2 labels from 4 to 6)" in recorder.stages
    assert [f.finding for f in saved.run.verdict.labels] == [f.finding for f in before.run.verdict.labels]
    # Its time is that of both sessions.
    assert saved.run.timings["references"] == before.run.timings["references"]
    assert before.run.timings["total"] < saved.run.timings["total"]
    assert before.run.timings["reconstruct"] < saved.run.timings["reconstruct"] < saved.run.timings["total"]
    for label in range(10):
        close = 0.0 if label not in {4, 6} else 0.15 * before.triggers[label].size
        assert abs(saved.triggers[label].size - before.triggers[label].size) <= close


def test_a_finished_scan_that_is_judged_again_stays_as_it_was_written(quick_folder, attacked, clean, tmp_path):
    shutil.copytree(quick_folder, tmp_path / "run")
    before = RunFolder(quick_folder).read()
    options = {"method": NeuralSanitizer(QUICK), "seed": 3, "output": tmp_path / "run", "resume": True}
    written = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert scan(attacked.model, clean, **options).run == before.run
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == written
    (tmp_path / "run" / "arrays.npz").write_bytes(b"damaged")
    again = scan(attacked.model, clean, **options).run
    assert again.verdict == before.run.verdict
    assert again.timings != before.run.timings
    assert RunFolder(tmp_path / "run").read().run == again


def test_whatever_goes_wrong_with_one_model_the_next_has_its_turn(tmp_path):
    def load(path):
        raise {"a": RuntimeError("no memory"), "b": UsageError("10 names for 12 labels"), "c": MemoryError()}[path.stem]

    entries = list(scan_many([Path("a.pt"), Path("b.pt"), Path("c.pt")], load, output=tmp_path))
    assert [e.model for e in entries] == ["a.pt", "b.pt", "c.pt"]
    assert [e.finding for e in entries] == [None] * 3
    assert [e.reason for e in entries] == ["RuntimeError: no memory", "10 names for 12 labels", "MemoryError: "]
    with pytest.raises(UsageError, match="unknown preset"):
        next(scan_many([Path("a.pt")], load, output=tmp_path, preset="magic"))


def test_resuming_with_anything_else_is_refused(quick_folder, attacked, honest, clean, tmp_path):
    shutil.copytree(quick_folder, tmp_path / "run")
    for model, data, seed in ((honest.model, clean, 3), (attacked.model, clean.subset(range(1000)), 3),
                              (attacked.model, clean, 4)):  # fmt: skip
        with pytest.raises(RunError, match="another model, data set, configuration"):
            scan(model, data, method=NeuralSanitizer(QUICK), seed=seed, output=tmp_path / "run", resume=True)
    with pytest.raises(OutputError, match="not empty"):
        scan(attacked.model, clean, method=NeuralSanitizer(QUICK), seed=3, output=tmp_path / "run")
    with pytest.raises(RunError, match="no interrupted scan"):
        scan(attacked.model, clean, output=tmp_path / "elsewhere", resume=True)


def test_repair_removes_the_planted_trigger_that_it_never_saw(quick_repair, attacked, unseen):
    root, result = quick_repair
    planted = attacked.triggers[0]
    before, after = (measure_attack_success(model, unseen, planted) for model in (attacked.model, result.model))
    assert before > 0.95
    assert after < 0.1
    assert result.model.accuracy(unseen.images, unseen.labels) > attacked.truth.clean_accuracy - 0.02
    assert result.repair.complete
    assert [t.label for t in result.triggers] == [t.label for t in result.repair.triggers] == [TARGET]
    assert result.repair.triggers[0].attack_success_after < 0.05 < result.repair.triggers[0].attack_success_before
    again = load_model(root / "repaired.safetensors", arch="mnist-cnn-small")
    assert again.sha256 == result.repair.repaired_sha256
    assert (again.predict(unseen.images) == result.model.predict(unseen.images)).all()


def test_repair_leaves_the_model_and_the_scan_alone(quick_repair, quick_folder, attacked):
    root, result = quick_repair
    assert result.model.module is not attacked.model.module
    assert RunFolder(root / "run").read().run == RunFolder(quick_folder).read().run
    assert attacked.model.sha256 == RunFolder(quick_folder).read().run.model.sha256


def test_the_proof_holds_for_the_repaired_model_and_not_for_the_infected_one(quick_repair, attacked, clean, tmp_path):
    root, result = quick_repair
    shutil.copytree(root / "run", tmp_path / "run")
    proof = verify(attacked.model, result.model, tmp_path / "run", clean, output=tmp_path / "fresh")
    assert proof.finding is Finding.CLEAN, proof.reason
    assert proof.scan.seed != RunFolder(root / "run").read().run.seed
    assert {r.name for r in proof.scan.references} == {r.name for r in RunFolder(root / "run").read().run.references}
    assert RunFolder(tmp_path / "run").read().verification == proof
    assert RunFolder(tmp_path / "fresh").read().run == proof.scan
    # The infected model passed off as its own repair:
    recorder = Recorder()
    lie = verify(attacked.model, attacked.model, tmp_path / "run", clean, progress=recorder)
    assert lie.finding is Finding.INFECTED
    assert "fresh scan" in lie.reason
    assert RunFolder(tmp_path / "run").read().verification == proof  # which is of the repair's weights
    assert "not the weights that the repair" in recorder.notes[-1]


def test_a_new_repair_leaves_no_older_one_s_proof(quick_repair, tmp_path):
    shutil.copytree(quick_repair[0] / "run", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    saved = folder.read()
    old = saved.repair
    proof = Verification(
        created=old.created,
        finding=Finding.CLEAN,
        reason="every reversed trigger is dead",
        source_sha256=old.source_sha256,
        repaired_sha256=old.repaired_sha256,
        clean_accuracy_before=0.9,
        clean_accuracy_after=0.9,
        held_out_images=100,
        triggers=old.triggers,
        scan=saved.run,
        timings={},
    )
    folder.write_verification(proof)
    assert folder.read().verification == proof
    folder.write_repair(replace(old, repaired_sha256="0" * 64), saved.repair_triggers)
    assert not (folder.path / "verification.json").exists()
    folder.write_verification(proof)  # as older versions left it
    assert folder.read().verification is None


def test_a_repair_that_was_interrupted_leaves_none(quick_repair, tmp_path, monkeypatch):
    folder = RunFolder(shutil.copytree(quick_repair[0] / "run", tmp_path / "run"))
    saved = folder.read()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.write_repair(saved.repair, [*saved.repair_triggers] * 2)
    assert folder.read().repair is None
    assert not folder.read().repair_triggers
    write_json(folder.path / "repair.json", to_json(saved.repair))
    with pytest.raises(RunError, match="2 triggers of a repair that removed 1"):
        folder.read()


def test_runs_of_other_models_are_refused(quick_folder, honest, clean):
    with pytest.raises(RunError, match="another model"):
        repair(honest.model, quick_folder, clean)
    with pytest.raises(RunError, match="another model"):
        verify(honest.model, honest.model, quick_folder, clean)


def test_there_must_be_something_to_repair(attacked, clean):
    few = scan(attacked.model, clean, method=NeuralSanitizer(QUICK), labels=[1])
    assert few.run.verdict.finding is Finding.CLEAN
    assert [f.label for f in few.run.verdict.labels] == [1]
    with pytest.raises(UsageError, match="nothing to repair"):
        repair(attacked.model, few, clean)


def test_same_seed_same_numbers(attacked, clean):
    short = replace(
        QUICK,
        references=replace(QUICK.references, guides=QUICK.references.guides[:1], fresh_cycles=(60,)),
        reconstruct=replace(QUICK.reconstruct, steps=30),
    )
    first, second = (scan(attacked.model, clean, method=NeuralSanitizer(short), seed=5, labels=[2]) for _ in range(2))
    assert first.run.verdict == second.run.verdict
    np.testing.assert_array_equal(first.triggers[2].mask, second.triggers[2].mask)


def test_presets_belong_to_methods():
    assert build_detector("neural-cleanse", "stable").settings["restarts"] == 3
    with pytest.raises(UsageError, match="of neural-sanitizer: choose one of default, paper"):
        build_detector("neural-sanitizer", "stable")
