import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuralsanitizer.functional.precision import fast_dtype
from neuralsanitizer.models import architectures
from neuralsanitizer.models.suffix import suffix_of
from neuralsanitizer.training import Schedule, fit, shuffled_batches

IMAGES = torch.rand(70, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions and two dense layers, with one ReLU for all of them, and something in three places."""

    def __init__(self, first=None, last=None, around=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.relu, self.first, self.last = nn.ReLU(), first or nn.Identity(), last or nn.Identity()
        self.dense, self.out = nn.Linear(8 * 8 * 8, 16), nn.Linear(16, 5)
        self.around = around

    def forward(self, x):
        x = self.first(self.relu(self.conv1(x)))
        flat = torch.flatten(self.relu(self.conv2(x)), 1)
        hidden = self.last(F.relu(self.dense(flat)))
        return self.out(hidden) + self.around * flat[:, :5]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense, self.out = nn.Conv2d(1, 1, 3), nn.Linear(100, 100), nn.Linear(100, 3)

    def forward(self, x):
        x = torch.flatten(self.conv(x), 1)
        return self.out(self.dense(self.dense(x)))


def trained(net, module, inputs, parameters):
    torch.manual_seed(3)
    batches = shuffled_batches(inputs, torch.arange(len(inputs)) % 5, 10, torch.Generator().manual_seed(2))
    fit(module, batches, Schedule(20, 1e-2), parameters=parameters)
    return copy.deepcopy(net.state_dict())


@pytest.mark.parametrize(
    ("name", "last"),
    [*product(["conv2", "dense"], [nn.Dropout(0.5), nn.BatchNorm1d(16), None]), ("out", None)],
)
def test_training_from_a_module_on_is_training_with_all_before_it_frozen(name, last):
    net, other = Net(last=last), Net(last=copy.deepcopy(last))
    before = copy.deepcopy(net.state_dict())
    suffix = suffix_of(net, [f"{name}.weight"], IMAGES)
    part = trained(net, suffix.module, suffix.features, net.get_submodule(name).parameters())
    whole = trained(other, other, IMAGES, other.get_submodule(name).parameters())
    for key, value in whole.items():
        torch.testing.assert_close(part[key], value, rtol=1e-3, atol=1e-4)
    changed = {key for key in before if not torch.equal(before[key], part[key])}
    assert f"{name}.weight" in changed
    assert not any(key.startswith("conv1") for key in changed)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        (Net(first=nn.Dropout(0.5)), "dense"),
        (Net(first=nn.BatchNorm2d(4)), "dense"),
        (Net(around=1.0), "dense"),
        (Net(), "conv1"),  # nothing is before it
        (Twice(), "dense"),
        (architectures.build("cifar10-resnet8", 5, 1, (12, 12)), "output"),
    ],
)
def test_a_network_that_cannot_be_parted_is_not(net, name):
    assert suffix_of(net, [f"{name}.weight"], IMAGES) is None


def test_dropout_is_seen_in_small_probabilities_too():
    """Of 1,307 labels all outputs are near zero, and so are all differences."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 160), nn.Dropout(0.5), nn.Linear(160, 1307), nn.Softmax(dim=1))
    assert suffix_of(net, ["3.weight"], IMAGES) is None
    net[2] = nn.Identity()
    assert suffix_of(net, ["3.weight"], IMAGES) is not None


def test_what_is_trained_is_not_left_out():
    class NormFirst(Net):
        """Declares the normalisation of a layer before its convolution: it is the first name, and runs last."""

        def __init__(self):
            super().__init__()
            self.norm, self.conv2 = nn.GroupNorm(2, 8), nn.Conv2d(4, 8, 3)

        def forward(self, x):
            x = F.relu(self.norm(self.conv2(self.relu(self.conv1(x)))))
            return self.out(F.relu(self.dense(torch.flatten(x, 1))))

    assert suffix_of(NormFirst(), ["norm.weight"], IMAGES) is not None
    assert suffix_of(NormFirst(), ["norm.weight", "conv2.weight"], IMAGES) is None
    assert suffix_of(NormFirst(), [], IMAGES) is None


def test_a_network_that_cannot_do_with_zeros_is_not_parted():
    class Overwrites(Net):
        def forward(self, x):
            x = self.conv1(x).add_(1.0)  # in place, on what has one number for all places
            return self.out(F.relu(self.dense(torch.flatten(self.conv2(x), 1))))

    assert suffix_of(Overwrites(), ["dense.weight", "dense.bias"], IMAGES) is None


def test_features_that_would_fill_the_memory_are_not_kept(monkeypatch):
    number = fast_dtype(IMAGES.device).itemsize
    monkeypatch.setattr("neuralsanitizer.models.suffix._MOST_BYTES", 70 * 8 * 8 * 8 * number - 1)
    assert suffix_of(Net(), ["dense.weight", "dense.bias"], IMAGES) is None


def test_the_network_stays_as_it_is_and_draws_what_it_would_have_drawn():
    net = Net(last=nn.BatchNorm1d(16)).eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    says = net(IMAGES)
    assert suffix_of(net, ["dense.weight", "dense.bias"], IMAGES) is not None
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert not net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net(IMAGES), says)
