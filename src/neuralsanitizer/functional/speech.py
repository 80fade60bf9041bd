"""Speech as a picture: mel-frequency cepstral coefficients (MFCC) of a recording.

Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", 1980. The steps and
their conventions (Hann window, centred frames, silence beyond both ends, Slaney's mel scale and filters of unit area,
orthonormal DCT-II) are librosa's, against which the tests check them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neuralsanitizer.config import MfccConfig

__all__ = ["cepstra", "features", "fixed_length", "log_mel", "mel_filters"]

_FLOOR = 1e-8  # of the mel power: silence is -80 dB


def fixed_length(waveform: Tensor, samples: int) -> Tensor:
    """Waveforms (..., n) cut or filled up with silence at their end to (..., samples).

    >>> fixed_length(torch.ones(2), 3).tolist()
    [1.0, 1.0, 0.0]
    """
    return torch.nn.functional.pad(waveform[..., :samples], (0, max(0, samples - waveform.shape[-1])))


def mel_filters(rate: int, fft: int, mels: int) -> Tensor:
    """Triangular filters, evenly spaced on Slaney's mel scale from 0 to half the rate, each of unit area.

    Args:
        rate: Samples a second.
        fft: Samples a frame.
        mels: Number of filters.

    Returns:
        float32 (mels, fft // 2 + 1).
    """
    frequencies = torch.linspace(0, rate / 2, fft // 2 + 1, dtype=torch.float64)
    top = _to_mel(torch.tensor(rate / 2, dtype=torch.float64))
    edges = _from_mel(torch.linspace(0, float(top), mels + 2, dtype=torch.float64))
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


_BREAK = 1000.0  # hertz: linear below, logarithmic above (Slaney's Auditory Toolbox)
_LINEAR = 200.0 / 3  # hertz a mel below the break
_LOG_STEP = math.log(6.4) / 27


def _to_mel(hertz: Tensor) -> Tensor:
    return torch.where(
        hertz < _BREAK, hertz / _LINEAR, _BREAK / _LINEAR + (hertz.clamp_min(_BREAK) / _BREAK).log() / _LOG_STEP
    )


def _from_mel(mel: Tensor) -> Tensor:
    at_break = _BREAK / _LINEAR
    return torch.where(mel < at_break, mel * _LINEAR, _BREAK * ((mel - at_break).clamp_min(0) * _LOG_STEP).exp())


def log_mel(waveforms: Tensor, rate: int, config: MfccConfig) -> Tensor:
    """Mel spectrogram in decibels.

    Args:
        waveforms: (N, samples) in [-1, 1].
        rate: Samples a second.
        config: Length of windows and hops, number of filters.

    Returns:
        float32 (N, frames, mels), at least -80.
    """
    fft, hop = round(config.window * rate), round(config.hop * rate)
    window = torch.hann_window(fft, device=waveforms.device)
    spectrum = torch.stft(waveforms, fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square()  # (N, fft // 2 + 1, frames)
    mel = mel_filters(rate, fft, config.mels).to(waveforms.device) @ power
    return 10 * mel.clamp_min(_FLOOR).log10().transpose(1, 2)


def _dct(mels: int, coefficients: int) -> Tensor:
    """Orthonormal DCT-II, float32 (coefficients, mels)."""
    place = torch.arange(mels, dtype=torch.float64) + 0.5
    order = torch.arange(coefficients, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / mels * order * place) * math.sqrt(2 / mels)
    basis[0] /= math.sqrt(2)
    return basis.float()


def cepstra(waveforms: Tensor, rate: int, config: MfccConfig) -> Tensor:
    """MFCC of waveforms (N, samples) in [-1, 1]: float32 (N, frames, coefficients), in decibels, liftered."""
    found = log_mel(waveforms, rate, config) @ _dct(config.mels, config.coefficients).to(waveforms.device).T
    return found * _lifting(config).to(waveforms.device)


def _lifting(config: MfccConfig) -> Tensor:
    """By how much each coefficient is raised, float32 (coefficients,)."""
    if not config.lifter:
        return torch.ones(config.coefficients)
    place = torch.arange(1, 1 + config.coefficients)
    return 1 + config.lifter / 2 * torch.sin(math.pi * place / config.lifter)


def features(waveforms: Tensor, rate: int, config: MfccConfig) -> Tensor:
    """MFCC as pictures, scaled to [0, 1]: what takes an image's place.

    The first coefficient, the loudness, runs from silence at 0 to a full-scale tone at 1; 1/2 is zero for the others.

    Args:
        waveforms: (N, samples); only their shape counts, each is scaled to a peak of 1.
        rate: Samples a second.
        config: How they are computed, and their scale.

    Returns:
        float32 (N, 1, frames, coefficients): time runs down, the coefficient across.
    """
    found = cepstra(_as_loud_as_can_be(waveforms), rate, config)
    scaled = found / config.scale + 0.5
    scaled[..., 0] = found[..., 0] / _loudness_range(config) + 1
    return scaled.clamp(0, 1)[:, None]


def _loudness_range(config: MfccConfig) -> float:
    """By how much the first coefficient of a full-scale tone in all bands exceeds that of silence."""
    return -10 * math.log10(_FLOOR) * math.sqrt(config.mels) * float(_lifting(config)[0])


def _as_loud_as_can_be(waveforms: Tensor) -> Tensor:
    """Each waveform scaled to a peak of 1: people speak a hundred times as loud as others into their microphones."""
    peaks = waveforms.abs().amax(dim=1, keepdim=True)
    return waveforms / torch.where(peaks > 0, peaks, 1.0)
