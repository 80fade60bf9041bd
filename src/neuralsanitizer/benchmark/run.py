"""Running the grid: train, scan, repair, verify, score.

One JSON a model and method; what is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from neuralsanitizer.attacks.base import AttackResult, read_attack
from neuralsanitizer.benchmark.ablations import detector_named
from neuralsanitizer.benchmark.grid import TASKS, Case, load_task
from neuralsanitizer.benchmark.score import (
    ReferenceScore,
    RepairScore,
    Score,
    score_reference,
    score_repair,
    score_scan,
)
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.base import LOST, SCREENED, Detector, Evidence
from neuralsanitizer.detectors.neural_sanitizer import kept_reference
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import Executor
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.execution.store import FolderStore
from neuralsanitizer.models import load_model
from neuralsanitizer.pipeline import repair, scan, verify
from neuralsanitizer.records import Run, from_json, to_json
from neuralsanitizer.storage import RunFolder, write_json
from neuralsanitizer.training import steps_of

__all__ = ["DETECTORS", "STAGES", "Bench", "Scanned", "read_scores"]

STAGES = ("scan", "repair", "verify")

_Data = tuple[CleanSet, CleanSet, CleanSet]  # training set, the user's clean set, unseen images

DETECTORS = ("neural-sanitizer/default", "neural-sanitizer/paper", "neural-cleanse/default")
"""Method and preset of what is compared."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """A case that was scanned.

    Attributes:
        attacked: The model and what is planted in it.
        folder: The run.
        clean: The user's clean images.
        unseen: Images that neither training nor the user has seen.
    """

    attacked: AttackResult
    folder: RunFolder
    clean: CleanSet
    unseen: CleanSet


@dataclass(frozen=True)
class Bench:
    """A benchmark folder.

    Attributes:
        data: Folder of the data sets.
        output: Where models, runs and scores go: ``models/``, ``runs/``, ``scores/``.
        device: Where to compute.
        seed: Of scans, repairs and verifications.
        progress: Where to say how far it is.
        through: How far each case is taken: one of :data:`STAGES`.
        executor: Where the shards of scans are worked on; by default in this process.
    """

    data: Path
    output: Path
    device: torch.device
    seed: int
    progress: Progress
    through: str = "verify"
    executor: Executor | None = None

    def run(self, cases: Iterable[Case], detectors: Sequence[str]) -> list[Score]:
        """Run what is missing of some cases.

        Raises:
            DataError: A data set is missing.
            UsageError: An unknown detector.
        """
        if self.through not in STAGES:
            raise UsageError(f"unknown stage {self.through!r}: choose one of {', '.join(STAGES)}")
        for detector in detectors:
            detector_named(detector)  # a wrong name is told before anything is trained
        scores: list[Score] = []
        loaded: dict[str, _Data] = {}
        for case in cases:
            done = [self._done(case, detector) for detector in detectors]
            if done and all(done):
                scores += [score for score in done if score is not None]
                continue
            train, clean, unseen = self._data_of(case, loaded)
            attacked = self._model(case, train, unseen)
            scores += [self._score(case, detector, attacked, clean, unseen) for detector in detectors]
        return scores

    def rejudge(self, cases: Iterable[Case], detectors: Sequence[str]) -> list[Score]:
        """Judge anew, with the present thresholds, what earlier runs measured; nothing is trained or scanned.

        The verdict in the run folder changes with the score. A repair is kept as long as the same labels are found.
        Cases without a score are left out.

        Raises:
            DataError: A data set is missing.
            UsageError: An unknown detector, or a run whose settings differ in more than the thresholds.
            ModelError: The model of a run is gone.
        """
        judges = {name: detector_named(name) for name in detectors}
        scores: list[Score] = []
        loaded: dict[str, _Data] = {}
        for case in cases:
            for name, detector in judges.items():
                path = self._score_path(case, name)
                if not path.exists():
                    continue
                _, clean, _ = self._data_of(case, loaded)
                score = self._rejudged(case, path, detector, _as_many_as_given(case, clean))
                write_json(path, to_json(score))
                scores.append(score)
        return scores

    def _rejudged(self, case: Case, path: Path, detector: Detector, clean: CleanSet) -> Score:
        before, folder = _read(path), RunFolder(self.output / "runs" / path.stem)
        saved = folder.read()
        settings = to_json(detector.settings)
        if _what_is_measured(saved.run.settings) != _what_is_measured(settings):
            raise UsageError(f"{folder.path} was measured with other settings: remove {path}, and run the case again")
        attacked = self._trained(case)
        store = FolderStore(folder.state)
        evidence, lost = [], False
        for finding in saved.run.verdict.labels:
            one = Evidence.kept(store, finding.label, attacked.model)
            lost = lost or one is None or LOST in finding.metrics
            if one is not None:
                evidence.append(one.outlined() if SCREENED in one.metrics else one)
        if lost:
            raise UsageError(f"{folder.path} lacks what was measured of some labels: remove {path}, and run it again")
        run = saved.run
        if evidence:
            run = replace(run, verdict=detector.conclude(attacked.model, evidence, clean), settings=settings)
            folder.write_verdict(run)
        same = run.verdict.infected_labels == before.found
        repaired = before.repair if same else None
        return score_scan(case.name, case.split, case.group, attacked, run, before.references, repaired)

    def _data_of(self, case: Case, loaded: dict[str, _Data]) -> _Data:
        """The case's task; one at a time is kept in ``loaded``."""
        if case.task not in loaded:
            loaded.clear()
            loaded[case.task] = load_task(TASKS[case.task], self.data, self.output / "cache", self.progress.note)
        return loaded[case.task]

    def _model(self, case: Case, train: CleanSet, unseen: CleanSet) -> AttackResult:
        """The case's model: trained, or read if it was."""
        path = self._model_path(case)
        if not path.with_suffix(".truth.json").exists():
            self.progress.start(f"train {case.model_name}", steps_of(case.config, len(train)))
            made = case.attack(train, unseen, case.spec, case.config, device=self.device, advance=self.progress.advance)
            made.save(path)
        return self._trained(case)

    def _model_path(self, case: Case) -> Path:
        return self.output / "models" / f"{case.model_name}.safetensors"

    def _trained(self, case: Case) -> AttackResult:
        """The case's model, as it was trained."""
        path = self._model_path(case)
        model = load_model(path, arch=case.config.architecture, labels=case.config.labels, device=self.device)
        return read_attack(path, model)

    def _score(self, case: Case, detector: str, attacked: AttackResult, clean: CleanSet, unseen: CleanSet) -> Score:
        done = self._done(case, detector)
        if done is not None:
            return done
        path = self._score_path(case, detector)
        self.progress.note(f"{case.name}: {detector}")
        clean = _as_many_as_given(case, clean)
        saved = self._scan(case, detector, attacked, clean)
        repaired = self._repaired(attacked, saved, clean, unseen)
        run = saved.read().run
        references = self._reference_scores(attacked, saved, run, unseen)
        score = score_scan(case.name, case.split, case.group, attacked, run, references, repaired)
        write_json(path, to_json(score))
        return score

    def given(self, case: Case) -> tuple[AttackResult, CleanSet]:
        """A case's model, trained if it was not yet, and the clean images that its user has."""
        train, clean, unseen = self._data_of(case, {})
        return self._model(case, train, unseen), _as_many_as_given(case, clean)

    def scanned(self, case: Case, detector: str, loaded: dict[str, _Data]) -> Scanned:
        """A case's model, trained and scanned if it was not yet; the last task's data are kept in ``loaded``."""
        train, clean, unseen = self._data_of(case, loaded)
        attacked = self._model(case, train, unseen)
        clean = _as_many_as_given(case, clean)
        return Scanned(attacked, self._scan(case, detector, attacked, clean), clean, unseen)

    def _scan(self, case: Case, detector: str, attacked: AttackResult, clean: CleanSet) -> RunFolder:
        """The run of a case, made now if it was not before."""
        folder = RunFolder(self.output / "runs" / self._score_path(case, detector).stem)
        if not folder.exists():
            scan(
                attacked.model,
                clean,
                method=detector_named(detector, self.references),
                seed=self.seed,
                output=folder.path,
                resume=folder.state.exists(),
                executor=self.executor,
                progress=self.progress,
            )
        return folder

    def _reference_scores(
        self, attacked: AttackResult, folder: RunFolder, run: Run, unseen: CleanSet
    ) -> tuple[ReferenceScore, ...]:
        """What became of the backdoor in each reference, where the scan kept them."""
        made = [kept_reference(attacked.model, FolderStore(folder.state), r.name) for r in run.references]
        return tuple(score_reference(attacked, r.model, r.record, unseen) for r in made if r is not None)

    def _repaired(
        self, attacked: AttackResult, folder: RunFolder, clean: CleanSet, unseen: CleanSet
    ) -> RepairScore | None:
        """Repair and prove, as a user would who believes the verdict, right or wrong."""
        if self.through == "scan" or not folder.read().run.verdict.infected_labels:
            return None
        fixed = repair(
            attacked.model,
            folder.path,
            clean,
            output=folder.path / "repaired.safetensors",
            seed=self.seed,
            progress=self.progress,
        )
        proof = None
        if self.through == "verify":
            proof = verify(
                attacked.model, fixed.model, folder.path, clean, cache=self.references, progress=self.progress
            )
        return score_repair(attacked, fixed.model, unseen, fixed.repair, proof)

    @property
    def references(self) -> Path:
        """Folder of what scans of models of one task share."""
        return self.output / "cache" / "references"

    def _done(self, case: Case, detector: str) -> Score | None:
        """The score of an earlier run, if that went as far as this one is to go."""
        path = self._score_path(case, detector)
        if not path.exists():
            return None
        score = _read(path)
        short = self.through != "scan" and (
            score.repair is None or (self.through == "verify" and score.repair.proof is None)
        )
        return None if short and score.found else score

    def _score_path(self, case: Case, detector: str) -> Path:
        return self.output / "scores" / f"{case.name}--{detector.replace('/', '-').replace(':', '-')}-{self.seed}.json"


def _what_is_measured(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings less the thresholds that only judge. Those that say what is looked at again decide what is measured."""
    verdict = settings.get("verdict")
    alike = ("doubtful", "doubtful_looks", "doubtful_share", "doubtful_least")
    names = ("restarts", "unclear", "still_unclear", "clean_excess_of_colours", *alike)
    looks = {name: verdict[name] for name in names} if verdict else None
    return {**settings, "verdict": looks}


def _as_many_as_given(case: Case, clean: CleanSet) -> CleanSet:
    """The clean images that the case's user has, of those of the task."""
    return clean.split([case.clean_images / len(clean)], seed=0)[0] if case.clean_images else clean


def read_scores(folder: Path) -> list[Score]:
    """All scores of a benchmark folder, in the order of their file names.

    Raises:
        UsageError: There are none.
    """
    paths = sorted((folder / "scores").glob("*.json"))
    if not paths:
        raise UsageError(f"{folder} holds no scores: run the benchmark first")
    return [_read(path) for path in paths]


def _read(path: Path) -> Score:
    return from_json(Score, json.loads(path.read_text(encoding="utf-8")))
