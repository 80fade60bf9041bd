"""Recordings of speech: reading WAV files, and what a clean set keeps of them beside their MFCC.

Read are uncompressed WAV files (PCM of 8, 16, 24 or 32 bits) with any number of channels, which are averaged.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.data.folder import in_folder
from neuralsanitizer.errors import DataError
from neuralsanitizer.functional.speech import features, fixed_length

__all__ = ["Recordings", "decode_recordings"]

_MAX_SAMPLES = 1 << 30  # of all recordings: 4 GiB as float32
_CHUNK = 512  # recordings whose spectra are computed at once, at most
_MAX_SPECTRA = 1 << 30  # bytes of these spectra


@dataclass(frozen=True, eq=False)
class Recordings:
    """Waveforms, and how their MFCC are computed.

    Attributes:
        waveforms: float32 (N, samples) in [-1, 1], cut or filled up to one length.
        rate: Samples a second.
        config: Of their MFCC.
    """

    waveforms: Tensor
    rate: int
    config: MfccConfig

    def pictures(self) -> Tensor:
        """Their MFCC, float32 (N, 1, frames, coefficients) in [0, 1]."""
        at_once = max(1, min(_CHUNK, _MAX_SPECTRA // self._spectrum_bytes()))
        return torch.cat([features(part, self.rate, self.config) for part in self.waveforms.split(at_once)])

    def _spectrum_bytes(self) -> int:
        """What the complex spectrum of one recording takes."""
        frames = self.waveforms.shape[1] // round(self.config.hop * self.rate) + 1
        return 8 * frames * (round(self.config.window * self.rate) // 2 + 1)

    def check_memory(self) -> None:
        """Raise a DataError if the spectrum of one recording would take more than a GiB."""
        if self._spectrum_bytes() > _MAX_SPECTRA:
            raise DataError(
                f"a spectrum every {self.config.hop:g} s over {self.config.window:g} s takes too much memory: use a "
                "longer hop or a shorter window (--mfcc)"
            )

    def settings(self) -> dict[str, Any]:
        """Sample rate and the settings of the MFCC, for the record."""
        return {"rate": self.rate, **asdict(self.config)}

    def at_speed(self, speed: float) -> Self:
        """The same recordings played faster (over 1) or slower, and so in a higher or deeper voice.

        Resampled by their spectrum, without aliasing; cut or filled up to the same length.
        """
        samples = self.waveforms.shape[1]
        wanted = round(samples / speed)
        played = torch.fft.irfft(torch.fft.rfft(self.waveforms), n=wanted) * (wanted / samples)
        return replace(self, waveforms=fixed_length(played, samples))

    def subset(self, indices: Tensor) -> Self:
        """The recordings at ``indices`` (int64), in that order."""
        return replace(self, waveforms=self.waveforms[indices])


def decode_recordings(files: Sequence[Path], config: MfccConfig) -> tuple[Recordings, tuple[str, ...]]:
    """Read WAV files.

    Args:
        files: At least one.
        config: Their length and their MFCC.

    Returns:
        The recordings, and notes on conversions.

    Raises:
        DataError: A file is damaged, compressed or empty, or has another sample rate than the first.
        OSError: A file cannot be opened; left to the caller.
    """
    waveforms: list[Tensor] = []
    rate = cut = mixed = short = 0
    for file in files:
        found, channels, of_file, whole = _read(file, config.seconds)
        if rate not in {0, of_file}:
            raise DataError(
                f"the recording {in_folder(file)} has {of_file} samples a second, {in_folder(files[0])} has {rate}: "
                "convert all of them to one rate"
            )
        rate = of_file
        mixed += channels > 1
        wanted = min(whole, round(config.seconds * rate))
        cut += whole > wanted
        short += wanted > len(found)
        samples = max(round(config.window * rate), round(config.seconds * rate))
        if samples * len(files) > _MAX_SAMPLES:
            raise DataError(f"the recordings have more than {_MAX_SAMPLES:,} samples: use fewer of them (--limit)")
        waveforms.append(fixed_length(torch.from_numpy(found), samples))
    if round(config.hop * rate) < 1:
        raise DataError(f"the recordings have {rate} samples a second: too few for MFCC every {config.hop:g} s")
    done = (
        (mixed, "averaged over their channels"),
        (cut, f"cut to {config.seconds:g} s"),
        (short, "end earlier than they claim: they may be damaged"),
    )
    notes = tuple(f"{count} of {len(files)} recordings {what}" for count, what in done if count)
    recordings = Recordings(torch.stack(waveforms), rate, config)
    recordings.check_memory()
    return recordings, notes


def _read(file: Path, seconds: float) -> tuple[npt.NDArray[np.float32], int, int, int]:
    """A recording's first seconds in [-1, 1], its channels, its samples a second, and how many it has in all."""
    what = in_folder(file)
    with file.open("rb") as stream:
        try:
            with wave.open(stream) as recording:
                channels, width, rate = recording.getnchannels(), recording.getsampwidth(), recording.getframerate()
                whole = recording.getnframes()
                if not (1 <= channels <= _MOST_CHANNELS and 1 <= rate <= _HIGHEST_RATE and 1 <= width <= 4):
                    claim = f"{channels} channels and {rate} samples a second of {8 * width} bits"
                    raise DataError(f"the recording {what} claims {claim}")
                content = recording.readframes(min(whole, round(seconds * rate)))
        except (wave.Error, EOFError, RuntimeError) as error:
            raise DataError(
                f"the recording {what} cannot be read ({error}): uncompressed WAV of 8, 16, 24 or 32 bits expected"
            ) from error
    if not content or len(content) % (channels * width):
        raise DataError(f"the recording {what} is empty or truncated: replace or remove it")
    samples: npt.NDArray[np.float32] = _samples(content, width).reshape(-1, channels).mean(axis=1).astype(np.float32)
    return samples, channels, rate, whole


_MOST_CHANNELS = 64
_HIGHEST_RATE = 384_000  # of studio equipment


def _samples(content: bytes, width: int) -> npt.NDArray[np.float32]:
    """PCM of 1 to 4 bytes as values in [-1, 1]: one byte counts from 0, with silence at 128; more bytes have a sign."""
    if width == 1:
        return ((np.frombuffer(content, np.uint8).astype(np.float32) - 128) / 128).astype(np.float32)
    little = np.frombuffer(content, np.uint8).reshape(-1, width)
    padded = np.zeros((len(little), 4), np.uint8)
    padded[:, 4 - width :] = little  # the upper bytes of 32
    return (padded.view("<i4")[:, 0] / 2**31).astype(np.float32)
