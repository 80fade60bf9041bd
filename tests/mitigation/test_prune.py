"""Pruning: which neurons go, when it ends, and that what comes out loads like the original."""

import gc
from dataclasses import replace

import pytest
import torch

from neuralsanitizer.attacks.base import measure_attack_success
from neuralsanitizer.config import PruneConfig
from neuralsanitizer.errors import ModelError
from neuralsanitizer.mitigation.prune import Prune, _in_turns
from neuralsanitizer.models import SuspectModel, architectures
from neuralsanitizer.models.activations import last_convolution, last_dense, penultimate


def test_neurons_go_by_the_gap_of_each_trigger_in_turns():
    gaps = torch.tensor([[0.1, 0.9, 0.5], [0.7, 0.8, 0.0]])
    assert _in_turns(gaps).tolist() == [1, 2, 0]


def test_the_trigger_dies_within_the_budget(attacked, clean, unseen):
    removal = Prune(PruneConfig(largest_accuracy_drop=0.1)).remove(attacked.model, attacked.triggers, clean, seed=0)
    pruned = attacked.model.with_module(removal.module)
    start, end = removal.curve[0], removal.curve[-1]
    assert (start.share, start.layer) == (0.0, "dense")
    assert start.attack_success > 0.9
    assert end.attack_success < 0.1
    assert start.clean_accuracy - 0.1 <= end.clean_accuracy
    assert measure_attack_success(pruned, unseen, attacked.triggers[0]) < 0.15
    fresh = SuspectModel(attacked.model.module, attacked.model.input_shape, 10, attacked.model.preprocessing)
    assert fresh.module.state_dict().keys() == removal.module.state_dict().keys()


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_silent_neurons_have_no_influence_and_no_others_change(attacked, clean, layer):
    config = PruneConfig(layers=(layer,), goal=0.0, largest_accuracy_drop=1.0)
    removal = Prune(config).remove(attacked.model, attacked.triggers, clean, seed=0)
    before, after = attacked.model.module.state_dict(), removal.module.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    if layer == "dense":
        assert changed == {"output.weight"}
        silent = (after["output.weight"] == 0).all(dim=0)
        assert torch.equal(after["output.weight"][:, ~silent], before["output.weight"][:, ~silent])
    else:
        last = last_convolution(attacked.model)
        assert changed == set(last.parameters)
        silent = (after[last.parameters[0]] == 0).flatten(1).all(dim=1)
    assert 0 < silent.sum() < len(silent)
    # The best point of the curve is the one that was kept.
    best = min(removal.curve, key=lambda point: (point.attack_success, point.share))
    assert round(float(silent.float().mean()), 4) == best.share


def test_a_budget_of_nothing_stops_at_the_first_loss(attacked, clean):
    curve = Prune(PruneConfig(largest_accuracy_drop=0.0, goal=0.0)).remove(
        attacked.model, attacked.triggers, clean, seed=0
    ).curve  # fmt: skip
    for layer in ("dense", "convolution"):
        points = [point for point in curve if point.layer == layer]
        assert all(point.clean_accuracy >= points[0].clean_accuracy for point in points[:-1])


def test_a_point_that_costs_too_much_does_not_end_the_search(attacked, clean):
    """Half of the dense layer's neurons kill the trigger, but more of the accuracy than there is to spend."""
    config = PruneConfig(step=0.5, goal=0.2, largest_accuracy_drop=0.0)
    removal = Prune(config).remove(attacked.model, attacked.triggers, clean, seed=0)
    dense = [point for point in removal.curve if point.layer == "dense"]
    assert dense[-1].attack_success <= config.goal
    assert dense[-1].clean_accuracy < dense[0].clean_accuracy
    assert any(point.layer == "convolution" for point in removal.curve)


def test_stamped_images_of_one_trigger_are_held_at_a_time(attacked, clean):
    def held():
        tensors = (found for found in gc.get_objects() if type(found) is torch.Tensor)
        return sum(found.numel() for found in tensors if found.shape[1:] == clean.images.shape[1:])

    before, most, count = held(), [], 200
    config = PruneConfig(images=count, step=0.5, layers=("dense",), largest_accuracy_drop=1.0)
    Prune(config).remove(
        attacked.model, attacked.triggers * 20, clean, seed=0, advance=lambda _: most.append(held() - before)
    )
    assert max(most) < 4 * count * clean.images[0].numel()


def test_a_network_without_a_last_dense_layer_is_told_so(clean):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 10, 28), torch.nn.Flatten())
    suspect = SuspectModel(module, (1, 28, 28), 10)
    with pytest.raises(ModelError, match="does not end in a dense layer of 10 outputs"):
        last_dense(suspect)
    with pytest.raises(ModelError, match="does not end in a dense layer"):
        penultimate(suspect, clean.images[:2])


def test_blocks_with_other_branches_have_no_last_convolution():
    suspect = SuspectModel(architectures.build("cifar10-resnet18", labels=10), (3, 32, 32), 10)
    assert last_convolution(suspect) is None
    assert last_dense(suspect).out_features == 10
    assert penultimate(suspect, torch.rand(3, 3, 32, 32)).shape == (3, last_dense(suspect).in_features)


def test_settings_are_recorded():
    assert Prune(replace(PruneConfig(), step=0.1)).settings["step"] == 0.1
    assert Prune(PruneConfig(step=0.5, layers=("dense",))).steps(1000) == 3
