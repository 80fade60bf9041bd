"""What every detector does before and after its own work."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuralsanitizer.config import SelfCheckConfig
from neuralsanitizer.data import CleanSet
from neuralsanitizer.detectors.base import SCREENED, CannotJudgeError, Detector, Evidence, _shards, model_verdict
from neuralsanitizer.errors import DataError, ModelError, UsageError
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.execution.store import MemoryStore, Part
from neuralsanitizer.models import Preprocessing, SuspectModel
from neuralsanitizer.records import Finding, LabelFinding, Trigger


class Rows(nn.Module):
    """Ten labels; the label of an image is its brightest row."""

    def __init__(self, order=range(10), scale=50.0, shift=0.0):
        super().__init__()
        self.order, self.scale, self.shift = list(order), scale, shift

    def forward(self, images):
        return (images.mean(dim=(1, 3)) + self.shift)[:, self.order] * self.scale


class Notes(NoProgress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


class Claims(Detector):
    """Calls what it is told to infected, and counts its work."""

    name, preset, settings = "claims", "default", {}
    self_check_config = SelfCheckConfig()

    def __init__(self, *infected, refuses=""):
        self.infected, self.refuses, self.examined = infected, refuses, []

    def shard_size(self, _suspect):
        return 3

    def prepare(self, context):
        if self.refuses:
            raise CannotJudgeError(self.refuses, ())
        assert len(context.clean) + len(context.held_out) >= 40
        return None, ()

    def examine(self, context, prepared, labels):
        assert prepared is None
        self.examined.append(list(labels))
        blank = torch.zeros(*context.suspect.input_shape).numpy()
        return [Evidence(Trigger(label, blank[0], blank), 0.5) for label in labels]

    def judge(self, suspect, evidence):
        kind = {True: Finding.INFECTED, False: Finding.CLEAN}
        found = [
            LabelFinding(e.trigger.label, suspect.label_names[e.trigger.label], kind[e.trigger.label in self.infected],
                         e.attack_success, e.trigger.size, reason="because")
            for e in evidence
        ]  # fmt: skip
        return model_verdict(found, (), self.name)


def rows(count=200, labels=10):
    images, names = torch.zeros(count, 1, 10, 10), torch.arange(count) % labels
    images[torch.arange(count), 0, names] = 1
    return CleanSet(images, names, name="rows", format="npz")


def suspect(module=None, **options):
    return SuspectModel(module or Rows(), (1, 10, 10), 10, **options)


def test_all_labels_are_examined_in_shards_unless_some_are_named():
    detector = Claims(3)
    scan = detector.scan(suspect(), rows())
    assert detector.examined == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert scan.verdict.infected_labels == (3,)
    detector = Claims(3)
    scan = detector.scan(suspect(), rows(), labels=[8, 3, 3])
    assert detector.examined == [[3, 8]]
    assert sorted(scan.triggers) == [3, 8]
    assert scan.timings["total"] > 0


@given(st.integers(0, 300), st.integers(1, 20), st.integers(1, 9))
def test_shards_hold_every_label_once_and_give_every_worker_as_much(count, largest, workers):
    shards = _shards(range(count), largest, workers)
    assert [label for shard in shards for label in shard] == list(range(count))
    assert max(map(len, shards), default=0) <= largest
    if count and workers > 1:
        rounds = math.ceil(count / (largest * workers))
        assert len(shards) <= rounds * workers  # nobody waits for one shard too many
        assert max(map(len, shards)) == math.ceil(count / (rounds * workers))


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (Rows(shift=torch.eye(10)[4] * 9000), {}, "gives label 4 to every image"),
        (Rows(order=[*range(1, 10), 0]), {}, "another order"),
        (Rows(scale=-50), {}, "preprocessing"),
    ],
)
def test_a_model_that_fails_its_task_is_inconclusive_with_the_likely_reason(module, options, reason):
    detector = Claims(3)
    scan = detector.scan(suspect(module, **options), rows())
    assert scan.verdict.finding is Finding.INCONCLUSIVE
    assert reason in scan.verdict.reason
    assert not scan.self_check.passed
    assert detector.examined == []


class Picky(nn.Module):
    """Sees nothing unless its input is centred at zero, and its first channel is the one that tells."""

    def forward(self, images):
        return 50 * images[:, 0].mean(dim=2) * (images.mean().abs() < 0.5)


def test_the_normalisation_that_would_do_is_named():
    data = rows()
    dark = SuspectModel(Picky(), (1, 10, 10), 10, Preprocessing((-3.0,), (1.0,)))
    note = Claims().scan(dark, data).self_check.note
    assert "with --mean 0 --std 255 --range 0 255 it names 100.0% rightly" in note
    assert dark.preprocessing.mean == (-3.0,)  # the user decides
    units = SuspectModel(Picky(), (1, 10, 10), 10, Preprocessing((-3.0,), (1.0,), (0.0, 1.0)))
    assert "with --mean 0 --std 1 --range 0 1 it names" in Claims().scan(units, data).self_check.note


def test_a_model_of_bgr_images_is_recognised():
    gray = rows()
    rgb = CleanSet(torch.cat([torch.zeros(200, 2, 10, 10), gray.images], dim=1), gray.labels)
    note = Claims().scan(SuspectModel(Picky(), (3, 10, 10), 10), rgb).self_check.note
    assert "trained on BGR images" in note


@pytest.mark.parametrize(
    ("data", "reason"), [(rows(30), "at least 40 are needed"), (rows(60, labels=1), "images of one label only")]
)
def test_too_little_data_is_inconclusive(data, reason):
    scan = Claims(3).scan(suspect(), data)
    assert scan.verdict.finding is Finding.INCONCLUSIVE
    assert reason in scan.verdict.reason


def test_a_label_with_hardly_any_images_is_never_called_infected():
    few = rows(200)
    few = few.subset(((few.labels != 3) | (torch.arange(200) < 40)).nonzero().flatten())
    scan = Claims(3, 4).scan(suspect(), few)
    assert scan.verdict.infected_labels == (4,)
    assert scan.verdict.labels[3].finding is Finding.INCONCLUSIVE
    assert "only 4 clean images" in scan.verdict.labels[3].reason


def part(label=5, *, meta=None, success=0.5, size=(10, 10), dtype=np.float32, value=0.0, **arrays):
    mask, pattern = np.full(size, value, dtype), np.zeros((1, *size), np.float32)
    facts = {"label": label, "attack_success": success, "transfer": [], "metrics": {}}
    return Part({"mask": mask, "pattern": pattern, **arrays}, facts if meta is None else meta)


@pytest.mark.parametrize(
    "damaged",
    [
        part(2),
        part("5"),
        part(meta=[5]),
        part(meta={"label": 5}),
        part(success=None),
        part(success=float("nan")),
        part(size=(9, 9)),
        part(dtype=np.int64),
        part(value=np.nan),
        part(heat=np.zeros((3, 3), np.float32)),
        part(colours=np.zeros((3, 4), np.float32)),
        part(pattern=np.zeros(3, np.float32)),
        Part({"mask": np.zeros((10, 10), np.float32)}, part().meta),
    ],
)
def test_a_label_that_was_kept_damaged_is_examined_again(damaged):
    store = MemoryStore()
    for label in range(10):
        store.put(f"label-{label}", part(label))
    store.put("label-5", damaged)
    detector, progress = Claims(3), Notes()
    scan = detector.scan(suspect(), rows(), store=store, progress=progress)
    assert detector.examined == [[5]]
    assert [f.label for f in scan.verdict.labels] == list(range(10))
    assert progress.notes == ["9 of 10 labels were examined before the interruption"]
    assert Evidence.kept(store, 5, suspect()) is not None


def test_a_short_look_that_was_kept_is_known_as_one():
    store = MemoryStore()
    store.put("glance-3", part(3))
    assert Evidence.kept(store, 3, suspect()).metrics == {SCREENED: 1.0}
    store.put("label-3", part(3))
    assert Evidence.kept(store, 3, suspect()).metrics == {}


@pytest.mark.parametrize(
    "kept", [{"total": -1.0}, {"total": "long"}, {"reconstruct": 5.0}, [3.0], {"total": float("inf")}]
)
def test_timings_that_are_damaged_are_begun_anew(kept):
    store = MemoryStore()
    store.put("timings", Part({}, kept))
    assert 0 < Claims(3).scan(suspect(), rows(), store=store).timings["total"] < 600


def test_an_outline_has_what_a_verdict_needs_and_no_arrays():
    one = Evidence.from_part(part(3))
    outlined = one.outlined()
    assert outlined.outlined() is outlined
    assert one.whole_trigger is one.trigger
    for name in ("label", "size", "family"):
        assert getattr(outlined.trigger, name) == getattr(one.trigger, name)
    with pytest.raises(LookupError, match="only the outline"):
        outlined.to_part()


def test_a_method_that_cannot_judge_says_so():
    scan = Claims(refuses="no reference came close").scan(suspect(), rows())
    assert (scan.verdict.finding, scan.verdict.reason) == (Finding.INCONCLUSIVE, "no reference came close")
    assert scan.triggers == {}


def test_a_softmax_at_the_end_is_recognised_and_undone():
    ended = nn.Sequential(Rows(), nn.Softmax(dim=1))
    model = suspect(ended)
    Claims().scan(model, rows())
    assert model.output == "probabilities"
    assert "logarithm" in model.notes[0]
    images = rows(20).images
    logits = suspect()(images)
    torch.testing.assert_close(model(images), logits.log_softmax(dim=1).clamp_min(torch.tensor(1e-12).log()))


def test_what_does_not_fit_together_is_said_before_any_work():
    with pytest.raises(DataError, match=r"takes images of shape \(1, 9, 9\)"):
        Claims().scan(SuspectModel(Rows(), (1, 9, 9), 10), rows())
    with pytest.raises(DataError, match="label 9, but the model only has labels 0 to 4"):
        Claims().scan(SuspectModel(Rows(order=range(5)), (1, 10, 10), 5), rows())
    with pytest.raises(UsageError, match="within 0 and 9"):
        Claims().scan(suspect(), rows(), labels=[10])
    with pytest.raises(ModelError, match="10 values an image"):
        Claims().scan(SuspectModel(Rows(order=range(9)), (1, 10, 10), 10), rows())
    with pytest.raises(ModelError, match="NaN or infinite"):
        Claims().scan(suspect(Rows(scale=float("nan"))), rows())


def test_normalisation_happens_inside_the_handle():
    model = suspect(nn.Identity(), preprocessing=Preprocessing((0.5,), (0.25,)))
    images = torch.rand(2, 1, 10, 10)
    torch.testing.assert_close(model.normalise(images), (images - 0.5) / 0.25)
    with pytest.raises(UsageError, match="1 channels"):
        suspect(preprocessing=Preprocessing((0.5, 0.5), (1.0,)))
    with pytest.raises(UsageError, match="std positive"):
        Preprocessing((0.5,), (0.0,))
    with pytest.raises(UsageError, match="lower end first"):
        Preprocessing(pixel_range=(1.0, 0.0))
