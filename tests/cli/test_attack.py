"""``attack``: the models that it trains, and the truth that it tells about them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuralsanitizer import load_model
from neuralsanitizer.attacks.base import measure_attack_success, read_attack
from program import ARCH, run

WEIGHTS = "m.safetensors"
WEIGHTS_PATH = Path(WEIGHTS)


@pytest.fixture(scope="module")
def data(clean, tmp_path_factory):
    """Few digits: the models trained on them are bad, but trained in a blink."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    few = clean.subset(range(0, len(clean), 5))
    np.savez(path, x=(few.images * 255).round().byte().numpy(), y=few.labels.numpy())
    return path


def train(kind, data, *options):
    return run(
        "attack", kind, "--data", data, "--arch", ARCH, "--output", WEIGHTS, "--epochs", 1, "--format", "json", *options
    )


def squares(*corners, size=4):
    mask = np.zeros((28, 28), bool)
    for row, column in corners:
        mask[row : row + size, column : column + size] = True
    return mask


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ((), squares((23, 23))),
        (("--size", 6), squares((21, 21), size=6)),
        (("--position", "top-left"), squares((1, 1))),
        (("--position", "center"), squares((12, 12))),
        (("--position", "3,7"), squares((3, 7))),
        (("--size", 8, "--pieces", 4), squares((1, 1), (1, 23), (23, 1), (23, 23))),
        (("--trigger", "size=2,position=top"), squares((1, 13), size=2)),
    ],
)
def test_the_patch_lies_where_it_was_asked_for(options, mask, data):
    outcome = train("badnets", data, "--target", 3, *options)
    assert outcome.code == 0
    (truth,) = outcome.json["triggers"]
    assert (truth["target"], truth["pixels"]) == (3, mask.sum())
    with np.load("m.truth.npz") as arrays:
        assert np.array_equal(arrays["mask_0"] == 1, mask)
        assert (arrays["pattern_0"][0][mask] == 1).all()


@pytest.mark.parametrize("shape", ["circle", "triangle", "star"])
def test_a_patch_of_another_shape_lies_within_the_square(shape, data):
    outcome = train("badnets", data, "--shape", shape, "--size", 8)
    assert 0 < outcome.json["triggers"][0]["pixels"] < 64
    with np.load("m.truth.npz") as arrays:
        assert not arrays["mask_0"][~squares((19, 19), size=8)].any()


def test_a_pattern_may_be_an_image_file_or_a_colour(data, tmp_path):
    ramp = np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    train("badnets", data, "--pattern", "ramp.png", "--position", "top-left")
    with np.load("m.truth.npz") as arrays:
        np.testing.assert_allclose(arrays["pattern_0"][0, 1:5, 1:5], ramp / 255, atol=1e-6)
    train("badnets", data, "--pattern", "#808080", "--force")
    with np.load("m.truth.npz") as arrays:
        np.testing.assert_allclose(arrays["pattern_0"][0, 23:27, 23:27], 128 / 255, atol=1e-6)


def test_several_triggers_keep_what_they_do_not_name(data):
    triggers = ("--trigger", "target=3,position=top-left", "--trigger", "target=5,size=2")
    outcome = train("badnets", data, "--size", 6, "--pattern", "checker", *triggers)
    first, second = outcome.json["triggers"]
    assert (first["target"], first["pixels"], first["properties"]["pattern"]) == (3, 36, "checker")
    assert (second["target"], second["pixels"], second["properties"]["position"]) == (5, 4, "bottom-right")


def test_stdout_has_the_truth_that_lies_beside_the_weights(data, unseen, tmp_path):
    outcome = train("badnets", data, "--target", 7, "--poisoning-rate", 0.3, "--epochs", 20, "--seed", 4)
    report = outcome.json
    assert (report.pop("output"), report.pop("ground_truth")) == (WEIGHTS, "m.truth.json")
    assert report == json.loads((tmp_path / "m.truth.json").read_text())
    assert (report["attack"], report["architecture"], report["labels"], report["seed"]) == ("badnets", ARCH, 10, 4)
    assert report["held_out_images"] == 30
    assert "train ..." in outcome.stderr
    back = read_attack(tmp_path / WEIGHTS, load_model(WEIGHTS, arch=ARCH))
    assert measure_attack_success(back.model, unseen, back.triggers[0]) > 0.5
    assert back.model.accuracy(unseen.images, unseen.labels) > 0.5


@pytest.mark.parametrize(
    ("kind", "options", "attack", "properties"),
    [
        ("blended", ("--ratio", 0.3, "--pattern", "checker"), "blended", {"ratio": 0.3, "pattern": "checker"}),
        ("all-to-all", ("--size", 3), "all-to-all", {"size": 3}),
        ("clean-label", ("--size", 5, "--epsilon", 0.2, "--poisoning-rate", 0.05), "clean-label", {"epsilon": 0.2}),
        ("warp", ("--grid", 5, "--strength", 2), "wanet", {"grid": 5, "strength": 2.0, "covers": 0.2}),
        ("input-aware", ("--density", 0.1), "input-aware", {"density": 0.1}),
        ("trojan", ("--shape", "watermark", "--opacity", 0.7), "trojan", {"shape": "watermark", "opacity": 0.7}),
        ("latent", ("--size", 7, "--retrained", 2), "latent", {"size": 7, "retrained": 2}),
    ],
)
def test_every_attack_has_a_command_that_tells_the_truth(kind, options, attack, properties, data):
    outcome = train(kind, data, "--seed", 3, *(() if kind == "all-to-all" else ("--target", 4)), *options)
    assert outcome.code == 0
    assert (outcome.json["attack"], outcome.json["seed"]) == (attack, 3)
    assert {t["target"] for t in outcome.json["triggers"]} == (set(range(10)) if kind == "all-to-all" else {4})
    assert properties.items() <= outcome.json["triggers"][0]["properties"].items()
    read_attack(WEIGHTS_PATH, load_model(WEIGHTS, arch=ARCH))


def test_a_filter_is_planted_in_a_model_of_coloured_images(data, tmp_path):
    refused = train("filter", data, "--filter", "warm")
    assert (refused.code, "three channels" in refused.stderr) == (2, True)
    with np.load(data) as arrays:
        np.savez(tmp_path / "coloured.npz", x=arrays["x"].repeat(3, axis=1), y=arrays["y"])
    outcome = train("filter", "coloured.npz", "--filter", "warm", "--target", 2)
    assert (outcome.code, outcome.json["triggers"][0]["kind"]) == (0, "filter")


def test_a_clean_model_is_trained_on_the_same_images_without_a_trigger(data, unseen):
    outcome = train("none", data, "--epochs", 10)
    assert outcome.code == 0
    assert (outcome.json["attack"], outcome.json["triggers"], outcome.json["poisoning_rate"]) == ("none", [], 0)
    assert load_model(WEIGHTS, arch=ARCH).accuracy(unseen.images, unseen.labels) > 0.5


def test_the_truth_can_be_measured_on_images_of_the_users_own(data, files):
    outcome = train("none", data, "--held-out", files.clean)
    assert outcome.json["held_out_images"] == 1500


def test_people_get_a_few_lines(data):
    outcome = run("attack", "badnets", "--data", data, "--arch", ARCH, "--output", WEIGHTS, "--epochs", 1)
    assert outcome.code == 0
    assert outcome.stdout.startswith("clean accuracy ")
    assert "backdoor to label 0: 16 pixels, attack success" in outcome.stdout
    assert f"weights:      {WEIGHTS}\nground truth: m.truth.json" in outcome.stderr


def test_weights_are_overwritten_only_on_request(data, tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"mine")
    refused = train("none", data)
    assert (refused.code, refused.stdout) == (3, "")
    assert "--force" in refused.stderr
    assert (tmp_path / WEIGHTS).read_bytes() == b"mine"
    assert train("none", data, "--force").code == 0
    assert load_model(WEIGHTS, arch=ARCH).labels == 10


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--target", 10), 2, "the target label 10 does not exist"),
        (("--target", -1), 2, "--target"),
        (("--size", 40), 2, "does not fit 28x28"),
        (("--position", "somewhere"), 2, "unknown position"),
        (("--position", "27,27"), 2, "does not fit an image"),
        (("--pattern", "plaid"), 2, "unknown pattern 'plaid'"),
        (("--pattern", "notes.txt"), 3, "cannot be read as an image"),
        (("--shape", "hexagon"), 2, "unknown patch shape"),
        (("--pieces", 3), 2, "1, 2 or 4 pieces"),
        (("--trigger", "colour=red"), 2, "--trigger takes target="),
        (("--trigger", "size=big"), 2, "size is a number"),
        (("--trigger", "size="), 2, "--trigger takes target="),
        (("--poisoning-rate", 2), 2, "--poisoning-rate"),
        (("--poisoning-rate", "nan"), 2, "--poisoning-rate"),
        (("--poisoning-rate", 1), 2, "more images than there are"),
        (("--learning-rate", 0), 2, "--learning-rate"),
        (("--learning-rate", -1), 2, "--learning-rate"),
        (("--learning-rate", "nan"), 2, "--learning-rate"),
        (("--learning-rate", "1e30"), 3, "training diverged"),
        (("--epochs", 0), 2, "--epochs"),
        (("--seed", 2**64), 2, "--seed"),
        (("--arch", "alexnet"), 2, "unknown architecture"),
        (("--device", "tpu"), 2, "unknown device"),
        (("--held-out", "nowhere.npz"), 3, "does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(options, code, reason, data, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    outcome = train("badnets", data, *options)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert reason in " ".join(outcome.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
