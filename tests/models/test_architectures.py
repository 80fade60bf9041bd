from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuralsanitizer.errors import UsageError
from neuralsanitizer.models import architectures
from neuralsanitizer.models.layers import trace_layers

SMALL = [name for name in architectures.names() if name != "vgg16"]  # half a gigabyte of weights


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("labels", [10, 17])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_architecture_gives_logits_for_any_labels_and_channels(name, labels, channels):
    known = architectures.get(name)
    module = architectures.build(name, labels=labels, channels=channels)
    assert module(torch.rand(2, channels, *known.sizes[0])).shape == (2, labels)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "deepid"])
def test_parameters_stand_in_forward_order(name):
    known = architectures.get(name)
    module = architectures.build(name)
    layers = trace_layers(module, torch.rand(2, known.channels, *known.sizes[0]))
    flat = [parameter for layer in layers for parameter in layer.parameters]
    assert flat == [parameter for parameter, _ in module.named_parameters()]


def test_vgg16_has_the_published_layers():
    with torch.device("meta"):
        module = architectures.build("vgg16")
        shapes = [tuple(p.shape) for p in module.parameters() if p.ndim > 1]
        assert module(torch.rand(1, 3, 224, 224)).shape == (1, 2622)
    assert len(shapes) == 16
    assert shapes[-3:] == [(4096, 25088), (4096, 4096), (2622, 4096)]


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("mnist-cnn", 255.0, 0.5), ("cifar10-resnet18", 120.7, 0.0), ("gtsrb-cnn", 0, -0.5)]
)
def test_presets_normalise_as_the_papers_do(name, value, expected):
    preset = architectures.get(name).preprocessing
    assert (value / 255 - preset.mean[0]) / preset.std[0] == pytest.approx(expected, abs=1e-6)


def test_unknown_names_and_sizes_are_usage_errors():
    with pytest.raises(UsageError, match="mnist-cnn-small"):
        architectures.build("lenet")
    with pytest.raises(UsageError, match="too small"):
        architectures.build("mnist-cnn", size=(8, 8))
    with pytest.raises(UsageError, match="at least one label"):
        architectures.build("mnist-cnn", labels=0)


@pytest.mark.parametrize(("name", "shape"), [("mnist-cnn", (1, 28, 28)), ("gtsrb-cnn", (3, 32, 32))])
def test_relu_after_pooling_is_pooling_after_relu_as_in_the_papers(name, shape):
    network = architectures.build(name, None, shape[0], shape[1:])
    images = torch.randn(3, *shape)
    x, pooled = images, 0
    for one, following in pairwise([*network.features, nn.Identity()]):
        if isinstance(one, nn.Conv2d):
            x = one(x).relu()
        if isinstance(following, nn.MaxPool2d):
            x, pooled = F.max_pool2d(x, 2), pooled + 1
    assert pooled == sum(isinstance(one, nn.MaxPool2d) for one in network.features) > 1
    assert torch.equal(network.features(images), x)


def test_deepid_pools_before_relu_with_the_same_result():
    network = architectures.build("deepid", 20, 3, (55, 47))
    images = torch.randn(3, 3, 55, 47)
    x = images
    for convolution in (network.conv1, network.conv2, network.conv3):
        x = F.max_pool2d(convolution(x).relu(), 2)
    features = network.fc1(x.flatten(1)) + network.fc2(network.conv4(x).relu().flatten(1))
    assert torch.equal(network(images), network.output(features.relu()))
