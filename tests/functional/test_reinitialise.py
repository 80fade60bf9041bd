import pytest
import torch
from torch import nn

from neuralsanitizer.functional import reinitialise_all, reinitialise_uniform


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
