"""Changes of colours: reconstructed, told from patches, saved, shown and unlearnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import measure_attack_success
from neuralsanitizer.attacks.filters import FilterSpec, filtered
from neuralsanitizer.config import (
    PAPER,
    AttackConfig,
    ColourConfig,
    NeuralSanitizerConfig,
    SizeSchedule,
    UnlearnConfig,
)
from neuralsanitizer.detectors.base import Evidence
from neuralsanitizer.detectors.measure import success_rates
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.detectors.neural_sanitizer.colours import reconstruct_colours
from neuralsanitizer.detectors.neural_sanitizer.verdict import CLEAN_SUCCESS, CONTRAST, EXCESS, decide, explained
from neuralsanitizer.functional import kept_contrast, recolour, stamped_with
from neuralsanitizer.mitigation.unlearn import Unlearn
from neuralsanitizer.pipeline import scan
from neuralsanitizer.records import Finding, Trigger, colour_chart, recoloured
from neuralsanitizer.report import render_html
from neuralsanitizer.storage import RunFolder
from quick import QUICK, TARGET
from tinted import coloured

COLOURS = ColourConfig(steps=120, stand_ins=1)
CONFIG = replace(QUICK, colours=COLOURS)
SEPIA = np.array([[0.4, 0.8, 0.2, 0.0], [0.3, 0.7, 0.2, 0.0], [0.3, 0.5, 0.1, 0.1]], np.float32)


@pytest.fixture(scope="module")
def parts(digits):
    return tuple(map(coloured, digits))


@pytest.fixture(scope="module")
def toned(parts):
    """A model whose trigger is a tone."""
    config = AttackConfig("mnist-cnn-small", 10, epochs=20, seed=0, poisoning_rate=0.2)
    return filtered(parts[0], parts[2], FilterSpec(TARGET, "sepia"), config)


@pytest.fixture(scope="module")
def honest_in_colours(parts):
    """The same network without a backdoor."""
    config = AttackConfig("mnist-cnn-small", 10, epochs=5, seed=0)
    return badnets(parts[0], parts[2], [], config).model


@pytest.fixture(scope="module")
def folder(toned, parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "toned"
    scan(toned.model, parts[1], method=NeuralSanitizer(CONFIG), labels=[TARGET, 1], seed=0, output=path)
    return path


def test_colours_change_alike_in_torch_and_numpy():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ours = recolour(images, torch.from_numpy(SEPIA))
    np.testing.assert_allclose(recoloured(images.numpy(), SEPIA), ours.numpy(), atol=1e-6)
    by_hand = SEPIA[:, :3] @ images[1, :, 2, 3].numpy() + SEPIA[:, 3]
    np.testing.assert_allclose(ours[1, :, 2, 3].numpy(), by_hand.clip(0, 1), atol=1e-6)
    assert torch.equal(recolour(images, torch.eye(3, 4)), images)
    several = recolour(images[:, None], torch.stack([torch.eye(3, 4), torch.from_numpy(SEPIA)]))
    torch.testing.assert_close(several[1, 0], ours[1])


def test_a_trigger_of_colours_shows_what_becomes_of_a_chart():
    trigger = Trigger.of_colours(4, SEPIA, (6, 7))
    assert (trigger.family, trigger.size) == ("colours", 42)
    np.testing.assert_array_equal(trigger.pattern, recoloured(colour_chart(3, (6, 7)), SEPIA))
    image = np.full((3, 6, 7), 0.5, np.float32)
    np.testing.assert_allclose(trigger.onto(image), stamped_with(trigger, torch.from_numpy(image)[None])[0].numpy())
    with pytest.raises(ValueError, match=r"colours \(3, 4\) expected"):
        replace(trigger, colours=SEPIA[:, :3])


@pytest.mark.parametrize("offset", [True, False])
def test_a_planted_tone_is_reconstructed(toned, parts, offset):
    (found,) = reconstruct_colours(
        toned.model,
        [],
        parts[1],
        [TARGET],
        config=replace(COLOURS, offset=offset),
        constraint=CONFIG.reconstruct,
        seed=0,
    )
    assert found.label == TARGET
    assert success_rates([toned.model], found, parts[2], 100, 0)[0] > 0.8
    assert np.abs(found.colours).max() <= COLOURS.strongest
    if not offset:
        assert (found.colours[:, :3].sum(axis=1) <= 1 + 1e-5).all()
        assert (found.colours[:, 3] == 0).all()


SMALLEST = SizeSchedule(start=3.0, smallest=0.05, largest=300.0, goal=0.9)


def test_the_smallest_change_that_works_is_sought(toned, parts):
    images = parts[2].images[:200]
    sizes, successes = [], []
    for size in (None, SMALLEST):
        config = replace(COLOURS, size=size)
        (found,) = reconstruct_colours(
            toned.model, [], parts[1], [TARGET], config=config, constraint=CONFIG.reconstruct, seed=0
        )
        sizes.append(float((stamped_with(found, images) - images).abs().mean()))
        successes.append(success_rates([toned.model], found, parts[2], 200, 0)[0])
    assert sizes[1] < 0.8 * sizes[0]
    assert min(successes) > 0.8


def test_the_like_of_a_change_changes_as_much_at_most(honest_in_colours, parts):
    """A clean network is sent anywhere by a change that may be of any size."""
    images = parts[1].images[:200]
    little = np.eye(3, 4, dtype=np.float32)
    little[:, 3] = 0.05
    start = [Trigger.of_colours(label, little, (28, 28)) for label in range(3)]
    sizes = []
    for size in (None, SMALLEST):
        found = reconstruct_colours(
            honest_in_colours,
            [],
            parts[1],
            [0, 1, 2],
            start=start,
            config=replace(COLOURS, size=size),
            constraint=CONFIG.reconstruct,
            seed=0,
        )
        sizes.append([float((stamped_with(one, images) - images).abs().mean()) for one in found])
    allowed = float((stamped_with(start[0], images) - images).abs().mean())
    assert min(sizes[0]) > 2 * allowed
    assert max(sizes[1]) <= 1.1 * allowed


def test_the_search_keeps_what_is_to_be_seen(honest_in_colours, parts):
    """A clean network is most easily sent elsewhere by pictures without contrast."""
    kept = []
    for least in (0.0, 0.6):
        config = replace(COLOURS, learning_rate=0.1, least_contrast=least)
        found = reconstruct_colours(
            honest_in_colours, [], parts[1], list(range(10)), config=config, constraint=CONFIG.reconstruct, seed=0
        )
        images = parts[2].images[:100]
        kept.append([float(kept_contrast(images, stamped_with(one, images))) for one in found])
    free, bound = kept
    assert min(free) < 0.4
    assert min(bound) > 0.45


def test_a_change_that_leaves_pictures_flat_is_no_trigger(toned):
    colours = Trigger.of_colours(TARGET, SEPIA, (28, 28))
    for contrast, finding in ((0.2, Finding.CLEAN), (0.8, Finding.INFECTED)):
        metrics = {EXCESS: 0.9, CLEAN_SUCCESS: 0.05, CONTRAST: contrast}
        (label,) = decide(toned.model, [Evidence(colours, 0.95, (0.0,), metrics)], NeuralSanitizerConfig()).labels
        assert label.finding is finding
    assert (
        "20% of the contrast"
        in decide(toned.model, [Evidence(colours, 0.95, (0.0,), {**metrics, CONTRAST: 0.2})], NeuralSanitizerConfig())
        .labels[0]
        .reason
    )
    assert decide(toned.model, [Evidence(colours, 0.95, (0.0,), {CONTRAST: 0.2})], PAPER).infected_labels == (TARGET,)


def test_one_scan_says_which_family_explains_the_model(folder):
    saved = RunFolder(folder).read()
    infected, other = (next(f for f in saved.run.verdict.labels if f.label == label) for label in (TARGET, 1))
    assert infected.finding is Finding.INFECTED
    assert "a change of all colours sends" in infected.reason
    assert infected.metrics["colour_excess"] > max(infected.metrics["patch_excess"], 0.55)
    assert other.finding is Finding.CLEAN
    assert saved.triggers[TARGET].family == "colours"
    assert any("photo filter" in text for text in saved.run.verdict.assumptions)


def test_the_report_shows_the_changed_images(folder):
    page = render_html(RunFolder(folder).read())
    assert "a change of all colours" in page
    assert "colours" in page[page.index("<figcaption>") :]


def test_a_tone_is_unlearnt(toned, parts, folder):
    trigger = RunFolder(folder).read().triggers[TARGET]
    config = UnlearnConfig(steps=200)
    repaired = toned.model.with_module(Unlearn(config).remove(toned.model, [trigger], parts[1], seed=0).module)
    planted = toned.triggers[0]
    assert measure_attack_success(toned.model, parts[2], planted) > 0.9
    assert measure_attack_success(repaired, parts[2], planted) < 0.2
    assert repaired.accuracy(parts[2].images, parts[2].labels) > toned.truth.clean_accuracy - 0.03


def test_grey_images_have_no_colours_to_change(attacked, clean):
    found = NeuralSanitizer(replace(CONFIG, reconstruct=replace(QUICK.reconstruct, steps=10))).scan(
        attacked.model, clean, labels=[1], seed=0
    )
    assert "colour_excess" not in found.verdict.labels[0].metrics
    assert not any("photo filter" in text for text in found.verdict.assumptions)


@pytest.mark.parametrize(
    ("patch", "colours", "family"),
    [(0.98, 0.8, "patch"), (0.44, 0.43, "colours"), (0.3, 0.8, "colours"), (0.1, 0.25, "patch"), (0.0, 0.0, "patch")],
)
def test_the_larger_excess_explains_a_label(patch, colours, family):
    of_patch = Evidence(
        Trigger(1, np.ones((2, 2), np.float32), np.ones((3, 2, 2), np.float32)), 0.9, (), {EXCESS: patch}
    )
    of_colours = Evidence(Trigger.of_colours(1, SEPIA, (2, 2)), 0.95, (), {EXCESS: colours})
    chosen = explained(of_patch, of_colours, 10, NeuralSanitizerConfig())
    assert chosen.trigger.family == family
    assert (chosen.metrics["patch_excess"], chosen.metrics["colour_excess"]) == (patch, colours)
    assert Evidence.from_part(chosen.to_part()).trigger.family == family


def test_where_nothing_is_compared_the_transfer_test_decides():
    weak = Evidence(Trigger(1, np.ones((2, 2), np.float32), np.ones((3, 2, 2), np.float32)), 0.2, (0.0,))
    strong = Evidence(Trigger.of_colours(1, SEPIA, (2, 2)), 1.0, (0.0,))
    adversarial = replace(strong, transfer=(0.9,))
    assert explained(weak, strong, 10, PAPER).trigger.family == "colours"
    assert explained(weak, adversarial, 10, PAPER).trigger.family == "patch"


def test_a_family_is_held_against_its_own_kind(attacked):
    """Other labels' patches, of whatever excess, say nothing of a change of colours."""
    config = NeuralSanitizerConfig()
    image = (28, 28)
    patches = [
        Evidence(Trigger(i, np.ones(image, np.float32), np.ones((1, *image), np.float32)), 0.9, (), {
            EXCESS: 0.045 * i, "patch_excess": 0.045 * i, "colour_excess": 0.0})
        for i in range(1, 10)
    ]  # fmt: skip
    tone = Trigger.of_colours(0, np.eye(1, 2, dtype=np.float32), image)
    toned = Evidence(tone, 0.95, (), {EXCESS: 0.6, "patch_excess": 0.1, "colour_excess": 0.6, CLEAN_SUCCESS: 0.35})
    known = [replace(e, metrics={**e.metrics, CLEAN_SUCCESS: 0.5}) for e in patches]
    assert decide(attacked.model, [toned, *known], config).infected_labels == (0,)
