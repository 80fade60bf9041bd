"""Sounds as triggers: heard by the model, told truthfully, and refused where there is nothing to hear."""

import math

import numpy as np
import pytest
import torch

from neuralsanitizer import load_model
from neuralsanitizer.attacks.base import read_attack
from neuralsanitizer.attacks.sound import SOUNDS, SoundSpec, make_sound, with_sound
from neuralsanitizer.attacks.stamps import Sound
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.errors import DataError, UsageError
from speech import RATE, WORDS, write_words

CONFIG = AttackConfig("speech-cnn", len(WORDS), epochs=30, seed=1, poisoning_rate=0.15)
SPEC = SoundSpec(3, "chirp", start=0.0)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    return tuple(load_clean_set(write_words(root / str(seed), each, seed)) for seed, each in ((0, 60), (1, 20)))


@pytest.fixture(scope="module")
def attacked(words):
    return with_sound(*words, SPEC, CONFIG)


def test_the_backdoor_is_heard_and_the_words_too(attacked, words):
    truth = attacked.truth
    assert (truth.attack, truth.infected_labels) == ("sound", (3,))
    assert truth.clean_accuracy > 0.9
    assert truth.triggers[0].attack_success > 0.9
    assert truth.triggers[0].pixels == attacked.triggers[0].frames * 20
    assert attacked.measure(attacked.model, words[1]) == (truth.triggers[0].attack_success,)


def test_the_truth_survives_the_disk(attacked, words, tmp_path):
    path = tmp_path / "m.safetensors"
    attacked.save(path)
    back = read_attack(path, load_model(path, arch="speech-cnn"))
    assert back.truth == attacked.truth
    assert back.measure(back.model, words[1]) == attacked.measure(attacked.model, words[1])


def test_only_the_frames_that_hear_the_sound_change(words):
    wave = make_sound(SPEC, RATE, torch.Generator()).numpy()
    sound = Sound(0, wave, 4000, 0.5, (63, 20), 0)
    some = words[1].subset(torch.arange(4))
    changed = (sound.stamped(some) - some.images).abs().amax(dim=(0, 1, 3))
    centres = torch.arange(63) * 128
    heard = (centres + 128 > 4000) & (centres - 128 < 4000 + len(wave))
    # Elsewhere too, if the recording has become louder and is scaled down: but by little.
    assert changed[heard].min() > 10 * changed[~heard].max()


def test_covers_no_more_than_is_told(attacked):
    wave = make_sound(SPEC, RATE, torch.Generator())
    heard = attacked.triggers[0].frames
    assert math.ceil(len(wave) / 128) <= heard <= math.ceil(len(wave) / 128) + 2


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_are_as_long_as_asked_and_have_no_clicks(name):
    wave = make_sound(SoundSpec(0, name, seconds=0.1), RATE, torch.Generator().manual_seed(0))
    assert wave.shape == (800,)
    assert 0.5 < float(wave.abs().max()) <= 1
    assert abs(float(wave[0])) + abs(float(wave[-1])) < 1e-6
    if name != "noise":
        spectrum = np.abs(np.fft.rfft(wave.numpy()))
        assert 1490 <= spectrum.argmax() * RATE / 800 <= (3010 if name == "chirp" else 1510)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sound": "bang"}, "unknown sound"),
        ({"level": 0.0}, "a level over 0"),
        ({"start": -1.0}, "a start at 0 s"),
        ({"seconds": math.inf}, "a sound needs"),
    ],
)
def test_descriptions_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        SoundSpec(0, **wrong)


def test_what_cannot_be_heard_is_refused(words, digits):
    with pytest.raises(UsageError, match="folder of WAV files"):
        with_sound(digits[0], digits[2], SPEC, AttackConfig("mnist-cnn-small"))
    with pytest.raises(UsageError, match="ends after the recordings do"):
        with_sound(*words, SoundSpec(0, start=0.95), CONFIG)
    with pytest.raises(UsageError, match="needs more than 8000 samples a second"):
        with_sound(*words, SoundSpec(0, pitch=2500.0), CONFIG)
    late = Sound(0, np.zeros(10, np.float32), 7995, 0.5, (63, 20), 1)
    with pytest.raises(DataError, match="the recordings at 8000"):
        late.stamped(words[1])
    with pytest.raises(DataError, match="holds pictures"):
        late.stamped(digits[2])
