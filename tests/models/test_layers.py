import pytest
import torch
from torch import nn

from neuralsanitizer.errors import ModelError, UsageError
from neuralsanitizer.models import SuspectModel, architectures
from neuralsanitizer.models.layers import layers_of, named_layers, trace_layers


def names(module, *shape):
    return [layer.name for layer in trace_layers(module, torch.rand(2, *shape))]


def test_a_plain_network_has_one_layer_an_operation():
    assert names(architectures.build("mnist-cnn"), 1, 28, 28) == [
        "features.0",
        "features.2",
        "features.5",
        "features.7",
        "hidden",
        "output",
    ]


def test_a_residual_block_counts_as_one_layer_and_takes_its_normalisation_along():
    layers = trace_layers(architectures.build("cifar10-resnet18"), torch.rand(2, 3, 32, 32))
    assert [layer.name for layer in layers] == ["conv", *(f"blocks.{i}" for i in range(8)), "output"]
    assert layers[0].parameters == ("conv.weight", "bn.weight", "bn.bias")
    assert "blocks.2.shortcut.0.weight" in layers[3].parameters


def test_layers_named_by_hand_win():
    known = architectures.get("deepid")
    module = architectures.build("deepid", labels=7, channels=3, size=(55, 47))
    suspect = SuspectModel(module, (3, 55, 47), 7, layer_names=known.layer_names)
    layers = layers_of(suspect, torch.rand(1, 3, 55, 47))
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "conv4", "fc1+fc2", "output"]
    assert layers[4].parameters == ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class Attention(nn.Module):
    """A small transformer: the positions, two residual sub-blocks, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, images):
        tokens = self.embed(images.flatten(1, 2))
        normal = self.norm1(tokens)
        tokens = tokens + self.attention(normal, normal, normal, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.head(tokens.mean(dim=1))


def test_residual_sub_blocks_of_a_transformer_are_layers_and_unused_parameters_are_in_none():
    layers = trace_layers(Attention(), torch.rand(2, 1, 4, 8))
    assert [layer.name for layer in layers] == ["embed", "norm1", "norm2", "head"]
    assert set(layers[1].parameters) == {
        "norm1.weight",
        "norm1.bias",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    }
    assert not any("unused" in parameter for layer in layers for parameter in layer.parameters)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(images.relu_().flatten(1))


def test_tracing_leaves_the_network_as_it_was():
    module = InPlace().train()
    module.fc.bias.requires_grad_(False)
    images = torch.randn(2, 1, 2, 2)
    before = images.clone()
    assert [layer.name for layer in trace_layers(module, images)] == ["fc"]
    assert module.training
    assert (module.fc.weight.requires_grad, module.fc.bias.requires_grad) == (True, False)
    assert torch.equal(images, before)


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        return self.fc(images.flatten(1).detach())


def test_a_network_whose_gradient_is_cut_says_what_to_do():
    with pytest.raises(ModelError, match="name its layers by hand"):
        trace_layers(Cut(), torch.rand(2, 1, 2, 2))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"under 'conv9'; it has features.0"):
        named_layers(architectures.build("mnist-cnn"), [["conv9"]])
