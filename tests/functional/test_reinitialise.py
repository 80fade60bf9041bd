import pytest
import torch
from torch import nn

from neuralsanitizer.functional import reinitialise_all, reinitialise_uniform, unit_variance


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_only_named_parameters_change_and_stay_within_the_bound():
    module, before = network(), network()
    reinitialise_uniform(module, ["4.weight", "4.bias"], 0.1, generator())
    assert torch.equal(module[0].weight, before[0].weight)
    assert not torch.equal(module[4].weight, before[4].weight)
    assert module[4].weight.abs().max() <= 0.1
    assert module[4].bias.abs().max() <= 0.1
    assert float(module[4].weight.detach().std()) == pytest.approx(0.1 / 3**0.5, rel=0.2)


def test_normalisation_is_reset_not_silenced():
    module = network()
    module[1].weight.data.fill_(3.0)
    module[1].running_mean.fill_(5.0)
    reinitialise_uniform(module, ["1.weight", "1.bias"], 0.1, generator())
    assert module[1].weight.tolist() == [1.0] * 4
    assert module[1].bias.tolist() == [0.0] * 4
    assert module[1].running_mean.tolist() == [0.0] * 4


def test_reinitialise_all_follows_from_the_generator_alone():
    first, second, third = network(), network(), network()
    reinitialise_all(first, generator(1))
    torch.manual_seed(123)
    reinitialise_all(second, generator(1))
    reinitialise_all(third, generator(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[0].weight, third[0].weight)
    assert not torch.equal(first[0].weight, network()[0].weight)


def test_reinitialise_all_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    reinitialise_all(network_without_seeding(), generator())
    assert torch.equal(torch.rand(3), expected)


def network_without_seeding():
    state = torch.get_rng_state()
    module = network()
    torch.set_rng_state(state)
    return module


def test_parameters_without_a_reset_are_redrawn_with_their_own_spread():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1000) * 0.02 + 0.5)
            self.head = nn.Linear(2, 2)

    torch.manual_seed(0)
    module = WithToken()
    before = module.token.detach().clone()
    reinitialise_all(module, generator())
    assert not torch.equal(module.token, before)
    assert module.token.mean().item() == pytest.approx(0.5, abs=0.01)
    assert module.token.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("inputs", [torch.rand(32, 1, 8, 8), torch.rand(32, 1, 8, 8) * 100 - 7])
def test_every_layer_gets_outputs_of_variance_one(inputs):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU()]
    module = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(96, 20), nn.Tanh(), nn.Linear(20, 3)).train()
    unit_variance(module, inputs)
    assert module.training
    spreads, outputs = [], inputs
    for layer in module:
        outputs = layer(outputs)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spreads.append(float(outputs.detach().std()))
            assert not layer.bias.any()
    assert spreads == pytest.approx([1.0] * 4, rel=1e-4)


def test_the_outputs_may_be_smaller():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs = torch.rand(64, 4, generator=generator())
    unit_variance(module, inputs, 0.3)
    assert float(module[0](inputs).detach().std()) == pytest.approx(1.0, rel=1e-4)
    assert float(module(inputs).detach().std()) == pytest.approx(0.3, rel=1e-4)


def test_layers_that_share_weights_or_say_nothing_are_left_in_peace():
    shared = nn.Linear(4, 4)
    silent = nn.Linear(4, 4)
    silent.weight.data.zero_()
    module = nn.Sequential(shared, nn.ReLU(), shared, silent)
    unit_variance(module, torch.rand(16, 4))
    assert float(module[:1](torch.rand(512, 4, generator=generator())).detach().std()) == pytest.approx(1.0, rel=0.3)
    assert not silent.weight.any()
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert not any(layer._forward_hooks for layer in module)
