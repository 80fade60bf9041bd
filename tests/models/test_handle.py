"""The handle around a model."""

import copy

import pytest
import torch
from torch import nn

from neuralsanitizer.config import UnlearnConfig
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.models.handle import SuspectModel
from neuralsanitizer.pipeline import scan
from quick import TARGET
from tiny import TINY


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
