"""Architectures of timm and torchvision, where these are installed; and what is said where they are not."""

import importlib.util

import pytest
import torch
from safetensors.torch import save_file

from neuralsanitizer.errors import MissingExtraError, UsageError
from neuralsanitizer.models import load_model
from neuralsanitizer.models.architectures import build, choices, get


def loads(name):
    """Whether a library is there and loads beside this PyTorch."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):
        return False
    return True


TIMM, TORCHVISION = loads("timm"), loads("torchvision")
timm = pytest.mark.skipif(not TIMM, reason="timm does not load here")
torchvision = pytest.mark.skipif(not TORCHVISION, reason="torchvision does not load here")

CASES = [
    *(
        pytest.param(f"timm/{name}", marks=timm)
        for name in ("resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050")
    ),
    *(
        pytest.param(f"torchvision/{name}", marks=torchvision)
        for name in ("resnet18", "vit_b_16", "mobilenet_v3_small")
    ),
]


@pytest.mark.parametrize("name", CASES)
def test_weights_alone_are_loaded_into_it(name, tmp_path):
    torch.manual_seed(0)
    size = (64, 64)
    network = build(name, labels=5, channels=3, size=size).eval()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    model = load_model(tmp_path / "model.safetensors", arch=name, input_shape=(3, *size))
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(model.module(images), network(images))
    assert (model.labels, model.architecture) == (5, name)


@timm
def test_normalisation_is_the_library_s():
    assert get("timm/vit_tiny_patch16_224").preprocessing.mean == (0.5, 0.5, 0.5)
    assert get("timm/resnet10t").preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))


@timm
@pytest.mark.parametrize("name", ["no-such-model", "hf-hub:timm/resnet18", "resnet18/../x", ""])
def test_names_that_it_does_not_have_are_refused_and_nothing_is_fetched(name):
    with pytest.raises(UsageError, match="timm has no model"):
        get(f"timm/{name}")


@torchvision
def test_other_torchvision_models_are_no_classifiers():
    with pytest.raises(UsageError, match="no classifier"):
        get("torchvision/fasterrcnn_resnet50_fpn")


@torchvision
def test_torchvision_takes_colour_images_alone():
    with pytest.raises(UsageError, match="3 channels"):
        build("torchvision/resnet18", channels=1)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_does_not_load_is_named_with_its_extra(library, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name.startswith(library):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtraError, match=rf"neuralsanitizer\[{library}\]"):
        get(f"{library}/resnet18")


def test_the_choices_name_both():
    assert "timm/NAME" in choices()
    assert "torchvision/NAME" in choices()
