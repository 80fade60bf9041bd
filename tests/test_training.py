import pytest
import torch
from torch import nn
from torch.nn import functional as F

from neuralsanitizer.errors import ModelError
from neuralsanitizer.training import Schedule, fit, shuffled_batches


def two_blobs(count=200):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    return torch.randn(count, 2, generator=generator) + 3 * labels[:, None], labels


def batches(inputs, labels, batch=20):
    return shuffled_batches(inputs, labels, batch, torch.Generator().manual_seed(1))


def test_it_learns_and_leaves_the_network_frozen():
    inputs, labels = two_blobs()
    module = nn.Linear(2, 2)
    taken = fit(module, batches(inputs, labels), Schedule(200, 0.05))
    assert taken == 200
    assert (module(inputs).argmax(1) == labels).float().mean() > 0.95
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_only_the_given_parameters_change():
    inputs, labels = two_blobs()
    module = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, batches(inputs, labels), Schedule(5, 0.1), parameters=module[1].parameters())
    after = list(module.parameters())
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[2], after[2])


def test_stop_ends_it_early_and_sees_evaluation_mode():
    inputs, labels = two_blobs()
    module, seen = nn.Linear(2, 2), []

    def stop():
        seen.append(module.training)
        return len(seen) == 2

    taken = fit(module, batches(inputs, labels), Schedule(100, 0.01, check_every=10), stop=stop)
    assert taken == 20
    assert seen == [False, False]


def test_every_step_is_told():
    inputs, labels = two_blobs()
    told = []
    fit(nn.Linear(2, 2), batches(inputs, labels), Schedule(7, 0.01), advance=told.append)
    assert told == [1] * 7


def test_a_constant_schedule_keeps_its_rate_and_one_cycle_anneals():
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    inputs, labels = two_blobs()

    def first_step(schedule):
        module = nn.Linear(2, 2, bias=False)
        before = module.weight.detach().clone()
        fit(module, batches(inputs, labels), schedule)
        return (module.weight - before).abs().max().item()

    assert first_step(Schedule(1, 0.01)) == pytest.approx(0.01, rel=1e-3)
    assert first_step(Schedule(2, 0.01, one_cycle=True)) < 0.02 - 1e-4


def test_divergence_is_an_error_that_says_what_to_do():
    inputs, labels = two_blobs()
    with pytest.raises(ModelError, match="lower the learning rate"):
        fit(
            nn.Linear(2, 2),
            batches(inputs, labels),
            Schedule(5, 0.1),
            loss=lambda o, t: F.cross_entropy(o, t) * torch.inf,
        )


def test_batches_visit_every_image_once_a_pass():
    inputs = torch.arange(10)
    sample = shuffled_batches(inputs, inputs, 5, torch.Generator().manual_seed(0))
    first, second = sample()[0], sample()[0]
    assert sorted(torch.cat([first, second]).tolist()) == list(range(10))
    assert len(sample()[0]) == 5


def test_a_batch_is_never_larger_than_the_set():
    inputs = torch.arange(3)
    assert len(shuffled_batches(inputs, inputs, 100, torch.Generator().manual_seed(0))()[0]) == 3
