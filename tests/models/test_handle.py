"""The handle around a model."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from neuralsanitizer.benchmark.speed import count_images
from neuralsanitizer.config import UnlearnConfig
from neuralsanitizer.detectors.neural_cleanse import NeuralCleanse
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models import handle
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.pipeline import scan
from quick import QUICK_CLEANSE, TARGET
from tiny import HASTY, TINY


class Flattening(nn.Module):
    """Hand-written as many are: ``view`` wants its input in one piece."""

    def __init__(self, flatten):
        super().__init__()
        self.convolution, self.output, self.flatten = nn.Conv2d(1, 3, 3), nn.Linear(108, 4), flatten

    def forward(self, images):
        return self.output(self.flatten(self.convolution(images)))


@pytest.mark.parametrize(
    ("flatten", "memory_format"),
    [(lambda x: x.view(-1, 108), torch.contiguous_format), (lambda x: x.flatten(1), torch.channels_last)],
    ids=["view", "flatten"],
)
def test_networks_get_the_memory_format_that_their_code_can_do_with(flatten, memory_format):
    torch.manual_seed(0)
    module = Flattening(flatten)
    images = torch.rand(5, 1, 8, 8)
    expected = module(images).detach()
    model = SuspectModel(module, (1, 8, 8), 4)
    assert model.memory_format is memory_format
    model.recognise_output(images)
    torch.testing.assert_close(model(images), expected)
    assert model.normalise(images).is_contiguous(memory_format=memory_format)
    assert model.with_module(Flattening(flatten)).memory_format is memory_format


def test_networks_that_view_are_scanned_and_repaired(attacked, clean):
    class Viewing(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.features, self.hidden, self.output = network.features, network.hidden, network.output

        def forward(self, images):
            return self.output(self.hidden(self.features(images).view(len(images), -1)).relu())

    module = copy.deepcopy(attacked.model.module)
    model = SuspectModel(Viewing(module), (1, 28, 28), 10, attacked.model.preprocessing)
    few = clean.subset(torch.arange(500))
    saved = scan(model, few, method=NeuralSanitizer(TINY), labels=[TARGET])
    assert [finding.label for finding in saved.run.verdict.labels] == [TARGET]
    repaired = model.with_module(Unlearn(UnlearnConfig(steps=5)).remove(model, attacked.triggers, few, seed=0).module)
    assert repaired.accuracy(few.images, few.labels) > 0.5


class Shown(nn.Module):
    """Keeps of each image what its ReLU gives, and notes how many images it is shown."""

    def __init__(self):
        super().__init__()
        convolution = nn.Conv2d(1, 8, 3, padding=1)
        self.layers, self.shown = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)), []

    def forward(self, images):
        self.shown.append(len(images))
        return self.layers(images)


def test_no_more_images_are_shown_at_once_than_fit_into_the_memory(monkeypatch):
    torch.manual_seed(0)
    model = SuspectModel(Shown(), (1, 8, 8), 4)
    images = torch.rand(50, 1, 8, 8)
    whole = model.logits_of(images)
    assert model.module.shown[-1] == 50
    kept = 8 * 64 * 4  # of the ReLU: eight channels of 64 float32; the input adds 64
    assert kept <= model.bytes_an_image <= 2 * kept
    monkeypatch.setattr(handle, "_MOST_BYTES", 7 * model.bytes_an_image)
    torch.testing.assert_close(model.logits_of(images), whole)
    assert model.module.shown[-8:] == [7] * 7 + [1]
    assert model.images_at_once(3) == 3
    monkeypatch.setattr(handle, "_MOST_BYTES", 1)
    assert model.with_module(Shown()).images_at_once(500) == 1


@pytest.mark.parametrize("method", ["neural-sanitizer", "neural-cleanse"])
def test_labels_are_searched_for_in_turns_where_memory_is_short(attacked, clean, monkeypatch, method):
    config = HASTY if method == "neural-sanitizer" else replace(QUICK_CLEANSE, checks=2)
    detector = {"neural-sanitizer": NeuralSanitizer, "neural-cleanse": NeuralCleanse}[method](config)
    few, sizes, found = clean.subset(torch.arange(200)), [], []
    model = attacked.model.with_module(copy.deepcopy(attacked.model.module))
    for memory in (handle._MOST_BYTES, 1):
        monkeypatch.setattr(handle, "_MOST_BYTES", memory)
        with count_images(type(model.module)) as counts:
            scanned = detector.scan(model, few, labels=[1, 2, 3])
        found.append([f.mask_size for f in scanned.verdict.labels])
        sizes.append(sum(count["search"] for count in counts.values()))
    assert sizes[0] == sizes[1] > 0  # the same work, in other portions
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_what_is_told_of_a_model_is_in_float32_and_what_a_scan_asks_on_its_way_in_the_fast_format(
    attacked, unseen, monkeypatch
):
    monkeypatch.setattr(handle, "fast_dtype", lambda _: torch.bfloat16)
    formats = []
    module = copy.deepcopy(attacked.model.module)
    layer = next(m for m in module.modules() if isinstance(m, nn.Conv2d))
    layer.register_forward_hook(lambda *args: formats.append(args[2].dtype))
    model = attacked.model.with_module(module)
    fast = model.predict(unseen.images, fast=True)
    assert set(formats) == {torch.bfloat16}
    formats.clear()
    exact = model.predict(unseen.images)
    assert model.accuracy(unseen.images, unseen.labels) == float((exact == unseen.labels).float().mean())
    assert set(formats) == {torch.float32}
    assert float((exact == fast).float().mean()) > 0.98
