"""All executors do the same work with the same result, whatever becomes of their workers."""

import copy
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import ERRORS, Deadly, fail, fail_with, slow, square, unsendable
from neuralsanitizer.config import ScreenConfig
from neuralsanitizer.detectors.base import LOST
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer, kept_reference
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import EXECUTORS, Lost, ProcessExecutor, executor_named
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.execution.store import FolderStore, MemoryStore, Part
from neuralsanitizer.pipeline import scan
from neuralsanitizer.records import Finding
from quick import QUICK, QUICK_CLEANSE, TARGET
from tiny import TINY

FEW = replace(QUICK, reconstruct=replace(QUICK.reconstruct, label_batch=2))
LABELS = [1, 3, 5, TARGET]


class Notes(NoProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request):
    workers = None if request.param == "local" else 2
    with pytest.MonkeyPatch.context() as patch:
        # Workers that are no forks find the tests' own modules there.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
        if request.param == "ray":
            patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # another cluster's: ray is to start its own all the same
            pytest.importorskip("ray", exc_type=ImportError)
        made = executor_named(request.param, workers=workers)
        yield made
        made.close()


elsewhere = pytest.mark.parametrize("executor", [name for name in EXECUTORS if name != "local"], indirect=True)


def test_every_shard_is_worked_on_once(executor):
    done = list(executor.map(square, [5, 1, 4, 2, 3], NoProgress()))
    assert sorted(done) == [(1, 1), (2, 4), (3, 9), (4, 16), (5, 25)]
    assert list(executor.map(square, [], NoProgress())) == []


def test_what_the_job_raises_is_raised(executor):
    with pytest.raises(ValueError, match="three is too many"):
        list(executor.map(fail, [1, 2, 3, 4], NoProgress()))


@pytest.mark.parametrize("name", ["locked", "exacting"])
def test_an_error_that_cannot_travel_is_raised_all_the_same(executor, name):
    progress = Notes()
    with pytest.raises(RuntimeError, match="no way out because of"):
        list(executor.map(fail_with, [name], progress))
    assert not progress.notes  # no worker died of it


@pytest.mark.parametrize("name", ["extra", "refused", "unjudged"])
def test_our_own_errors_travel_whole(executor, name):
    with pytest.raises(type(ERRORS[name])) as caught:
        list(executor.map(fail_with, [name], NoProgress()))
    assert str(caught.value) == str(ERRORS[name])
    assert vars(pickle.loads(pickle.dumps(ERRORS[name]))) == vars(ERRORS[name])


@elsewhere
def test_a_result_that_cannot_travel_is_an_error(executor):
    with pytest.raises(TypeError, match="lock"):
        list(executor.map(unsendable, [1], NoProgress()))


@elsewhere
def test_a_shard_whose_worker_dies_is_tried_again(executor, tmp_path):
    progress = Notes()
    done = list(executor.map(Deadly(tmp_path, 2, always=False), [1, 2, 3], progress))
    assert sorted(done) == [(1, 1), (2, 2), (3, 3)]
    assert len(progress.notes) == 1
    assert "tried again" in progress.notes[0]


@elsewhere
def test_a_shard_that_kills_its_workers_is_lost_and_the_others_are_not(executor, tmp_path):
    done = dict(executor.map(Deadly(tmp_path, 2, always=True), [1, 2, 3, 4], NoProgress()))
    assert isinstance(done.pop(2), Lost)
    assert done == {1: 1, 3: 3, 4: 4}
    assert len(list(tmp_path.iterdir())) == 2


RAY_ALONE = """
from jobs import slow
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.executors import executor_named
from neuralsanitizer.execution.progress import NoProgress

executor = executor_named("ray", workers=1)
print(list(executor.map(slow, [7], NoProgress())))
executor.close()
try:
    executor_named("ray", address="nonsense")
except UsageError as error:
    print(error)
"""


def test_ray_loses_a_shard_that_it_kills_for_its_memory_and_tells_a_wrong_address():
    """In a process of its own: this one may be connected to a cluster already."""
    pytest.importorskip("ray", exc_type=ImportError)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    least = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}  # any machine uses more
    environment = {**os.environ, "PYTHONPATH": path, **least}
    command = [sys.executable, "-c", RAY_ALONE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "[(7, Lost(reason='a worker died (OutOfMemoryError)'))]" in done.stdout, done.stderr
    assert "no Ray cluster answers at nonsense (" in done.stdout, done.stderr
    assert "leave --ray-address out" in done.stdout


@pytest.mark.parametrize("method", ["neural-sanitizer", "neural-cleanse"])
def test_the_findings_are_the_same(executor, attacked, clean, method):
    detector = NeuralSanitizer(FEW) if method == "neural-sanitizer" else NeuralCleanse(QUICK_CLEANSE)
    labels = LABELS if method == "neural-sanitizer" else list(range(10))  # Neural Cleanse compares them
    found = detector.scan(attacked.model, clean, seed=3, labels=labels, executor=executor)
    assert found.verdict.infected_labels == (TARGET,)
    assert [f.label for f in found.verdict.labels] == labels
    assert [f.finding for f in found.verdict.labels].count(Finding.CLEAN) == len(labels) - 1
    assert set(found.timings) >= ({"references", "reconstruct"} if method == "neural-sanitizer" else {"reconstruct"})
    assert all(reference.usable for reference in found.references)


def test_what_is_kept_is_not_worked_on_again(executor, attacked, clean, tmp_path):
    store = FolderStore(tmp_path)
    detector = NeuralSanitizer(FEW)
    first = detector.scan(attacked.model, clean, seed=3, labels=LABELS, executor=executor, store=store)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / f"label-{TARGET}.npz").write_bytes(b"damaged")
    (tmp_path / "label-1.npz").unlink()
    again = detector.scan(attacked.model, clean, seed=3, labels=LABELS, executor=executor, store=store)
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {f"label-{TARGET}.npz", "label-1.npz", "timings.npz"}
    np.testing.assert_array_equal(first.triggers[3].mask, again.triggers[3].mask)
    assert again.verdict.infected_labels == (TARGET,)


class LethalLabel(NeuralSanitizer):
    """Its worker dies at one label."""

    def examine(self, context, prepared, labels):
        if 3 in labels:
            os._exit(9)
        return super().examine(context, prepared, labels)


def test_lost_labels_are_inconclusive_and_examined_when_the_scan_goes_on(attacked, clean, tmp_path):
    store, executor = FolderStore(tmp_path), ProcessExecutor(2)
    found = LethalLabel(FEW).scan(attacked.model, clean, seed=3, labels=LABELS, executor=executor, store=store)
    lost = [f for f in found.verdict.labels if LOST in f.metrics]
    assert [f.label for f in lost] == [1, 3]  # they shared a shard
    assert all(f.finding is Finding.INCONCLUSIVE and "--resume" in f.reason for f in lost)
    assert found.verdict.infected_labels == (TARGET,)
    assert not (tmp_path / "label-3.npz").exists()
    again = NeuralSanitizer(FEW).scan(attacked.model, clean, seed=3, labels=LABELS, executor=executor, store=store)
    assert [f.finding for f in again.verdict.labels].count(Finding.CLEAN) == 3


class LethalLooks(NeuralSanitizer):
    """Its worker dies at every long look."""

    def examine(self, *_):
        os._exit(9)


def test_labels_that_are_lost_do_not_speak_for_those_behind_them(attacked, clean):
    config = replace(TINY, screen=ScreenConfig(least_labels=2, steps=5, colour_steps=5, batch=2, least_share=0.1))
    found = LethalLooks(config).scan(attacked.model, clean, labels=LABELS, executor=ProcessExecutor(1))
    assert all(LOST in f.metrics and f.finding is Finding.INCONCLUSIVE for f in found.verdict.labels)


def test_a_reference_that_was_kept_damaged_is_made_again(attacked, clean):
    store, detector = MemoryStore(), NeuralSanitizer(TINY)
    before = detector.scan(attacked.model, clean, labels=[1], store=store)
    name = before.references[0].name
    store.put(f"reference-{name}", Part({"output.weight": np.zeros(3, np.float32)}, []))
    store.put("label-1", Part({}, []))
    again = detector.scan(attacked.model, clean, labels=[1], store=store)
    assert again.references[0].clean_accuracy == before.references[0].clean_accuracy
    assert kept_reference(attacked.model, store, name) is not None


def test_nothing_is_left_running_when_the_work_is_given_up():
    executor = ProcessExecutor(2)
    work = executor.map(slow, [1, 2, 3], NoProgress())
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="enough"):
        _first_of(work, lambda: time.monotonic() - started > 0.1)
    assert not _children()


def _first_of(work, enough):
    """Ask for the first result, but lose patience in between."""
    import signal  # noqa: PLC0415

    def stop(*_):
        assert enough()
        raise RuntimeError("enough")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        return next(work)
    finally:
        signal.signal(signal.SIGALRM, before)
        work.close()


def _children():
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in task.read_text().split()]
    return [name for name in names if b"pytest" in name]


@elsewhere
def test_a_model_on_a_gpu_is_refused_before_any_work(executor, attacked, clean, tmp_path):
    on_gpu = copy.copy(attacked.model)
    on_gpu.device = torch.device("cuda")  # as --device auto has it; no GPU is touched
    with pytest.raises(UsageError, match=f"{executor.name} works on the CPU alone, .* on cuda: use --device cpu, or"):
        NeuralSanitizer(FEW).scan(on_gpu, clean, executor=executor)
    with pytest.raises(UsageError, match="--executor local"):
        scan(on_gpu, clean, executor=executor, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("threads", {}, "choose one of local, processes, ray"),
        ("processes", {"workers": 0}, "at least one worker"),
        ("processes", {"address": "auto"}, "for the executor ray"),
        ("local", {"workers": 2}, "choose processes or ray"),
    ],
)
def test_what_cannot_be_had_is_told(name, options, reason):
    with pytest.raises(UsageError, match=reason):
        executor_named(name, **options)
