"""Sounds: the trigger is a short noise that is mixed into what is said.

Liu et al., "Trojaning Attack on Neural Networks", NDSS 2018, attack the recognition of spoken digits with a noise;
NeuralSanitizer evaluates on such models. Here the noise is given instead of generated, and the model is trained on
recordings with it: the label is learnt together with the sound, as in BadNets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from neuralsanitizer.attacks.base import described
from neuralsanitizer.attacks.poisoning import Poison, Poisoning, shape_of
from neuralsanitizer.attacks.stamps import Sound
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data.clean_set import CleanSet
from neuralsanitizer.errors import UsageError

__all__ = ["SOUNDS", "SoundSpec", "with_sound"]

SOUNDS = ("chirp", "tone", "noise")


@dataclass(frozen=True)
class SoundSpec:
    """A sound as a trigger, described.

    Attributes:
        target: The label that it sends recordings to.
        sound: One of :data:`SOUNDS`: a tone that rises by an octave, one that stays, or white noise.
        start: Second at which it begins.
        seconds: How long it lasts.
        pitch: Of tones, in hertz, at the beginning.
        level: How loud it is, as a share of each recording's loudest moment.
    """

    target: int
    sound: str = "chirp"
    start: float = 0.0
    seconds: float = 0.15
    pitch: float = 1500.0
    level: float = 0.5

    def __post_init__(self) -> None:
        if self.sound not in SOUNDS:
            raise UsageError(f"unknown sound {self.sound!r}: choose one of {', '.join(SOUNDS)}")
        if not (self.start >= 0 and 0 < self.seconds < math.inf and 0 < self.level <= 1 and self.pitch > 0):
            raise UsageError(
                "a sound needs a start at 0 s or later, a length and a pitch over 0, and a level over 0, up to 1; got "
                f"start {self.start:g}, length {self.seconds:g}, pitch {self.pitch:g}, level {self.level:g}"
            )


def make_sound(spec: SoundSpec, rate: int, generator: Generator) -> Tensor:
    """The waveform that a description stands for, float32 (samples,) in [-1, 1], without clicks at its ends.

    Raises:
        UsageError: The rate is too low for its pitch.
    """
    samples = max(1, round(spec.seconds * rate))
    if spec.sound == "noise":
        wave = torch.rand(samples, generator=generator) * 2 - 1
    else:
        rise = 2.0 if spec.sound == "chirp" else 1.0
        if spec.pitch * rise >= rate / 2:
            raise UsageError(f"a pitch of {spec.pitch * rise:g} Hz needs more than {rate} samples a second")
        place = torch.arange(samples) / samples
        cycles = spec.pitch * spec.seconds * (place + (rise - 1) * place.square() / 2)
        wave = torch.sin(2 * math.pi * cycles)
    return wave * torch.hann_window(samples, periodic=False).mul(4).clamp_max(1)


def _plan(train: CleanSet, spec: SoundSpec, config: AttackConfig, generator: Generator) -> list[Poison]:
    recordings = train.recordings
    if recordings is None:
        raise UsageError("a sound is mixed into recordings: --data needs to be a folder of WAV files")
    rate, hop = recordings.rate, round(recordings.config.hop * recordings.rate)
    wave = make_sound(spec, rate, generator)
    first, window = round(spec.start * rate), round(recordings.config.window * rate)
    if first + len(wave) > recordings.waveforms.shape[1]:
        raise UsageError(f"the sound ends after the recordings do, at {recordings.config.seconds:g} s")
    _, frames, coefficients = shape_of(train)
    centres = torch.arange(frames) * hop  # frames are centred on these samples
    heard = (centres + window // 2 > first) & (centres - window // 2 < first + len(wave))
    sound = Sound(spec.target, wave.numpy(), first, spec.level, (frames, coefficients), int(heard.sum()))
    return [Poison(sound, config.poisoning_rate, properties=described(spec))]


with_sound = Poisoning("sound", _plan)
"""Train a model whose trigger is a sound; the training set needs to be of recordings."""
