import pytest
import torch

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
