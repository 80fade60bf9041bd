"""MFCC: as librosa has them, and back again."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.errors import UsageError
from neuralsanitizer.functional.speech import cepstra, features, fixed_length, log_mel, mel_filters
from neuralsanitizer.report.speech import spectrogram

librosa = pytest.importorskip("librosa")

RATES = ((8000, MfccConfig()), (16000, MfccConfig(window=0.025, hop=0.01, mels=40, coefficients=13)))


@pytest.fixture
def waveforms():
    """Noise that fades, a rising tone, and silence."""
    time = torch.arange(8000) / 8000
    noise = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.2 * (1 - time)
    tone = torch.sin(2 * torch.pi * (300 + 900 * time) * time)
    return torch.stack([noise, tone, torch.zeros(8000)])


@pytest.mark.parametrize(("rate", "config"), RATES)
def test_filters_are_librosas(rate, config):
    fft = round(config.window * rate)
    theirs = librosa.filters.mel(sr=rate, n_fft=fft, n_mels=config.mels)
    np.testing.assert_allclose(mel_filters(rate, fft, config.mels).numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize(("rate", "config"), RATES)
def test_cepstra_are_librosas(rate, config, waveforms):
    fft, hop = round(config.window * rate), round(config.hop * rate)
    ours = cepstra(waveforms, rate, config)
    for found, waveform in zip(ours, waveforms, strict=True):
        mel = librosa.feature.melspectrogram(
            y=waveform.numpy(), sr=rate, n_fft=fft, hop_length=hop, n_mels=config.mels, center=True, pad_mode="constant"
        )
        decibels = librosa.power_to_db(mel, ref=1.0, amin=1e-8, top_db=None)
        theirs = librosa.feature.mfcc(S=decibels, n_mfcc=config.coefficients, lifter=config.lifter)
        np.testing.assert_allclose(found.numpy(), theirs.T, atol=0.2)  # of hundreds of decibels


def test_features_are_pictures_that_do_not_know_how_loud_a_recording_is(waveforms):
    config = MfccConfig()
    pictures = features(waveforms, 8000, config)
    assert pictures.shape == (3, 1, 63, 20)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    torch.testing.assert_close(features(waveforms[:2] * 0.01, 8000, config), pictures[:2], atol=1e-4, rtol=0)
    assert pictures[2, 0, :, 0].max() < 1e-5  # silence
    torch.testing.assert_close(pictures[2, 0, :, 1:], torch.full((63, 19), 0.5))


@pytest.mark.parametrize("lifter", [0, 40])
def test_with_all_coefficients_the_report_shows_the_spectrum(waveforms, lifter):
    config = MfccConfig(coefficients=32, lifter=lifter, scale=8000.0)
    spectrum = log_mel(waveforms[:1] / waveforms[:1].abs().max(), 8000, config)[0]
    shown = spectrogram(features(waveforms[:1], 8000, config)[0].numpy(), asdict(config))
    assert shown.shape == (1, 32, 63)
    np.testing.assert_allclose(shown[0, ::-1].T, (1 + spectrum.numpy() / 80).clip(0, 1), atol=2e-3)


def test_recordings_are_cut_or_filled_up_with_silence():
    assert fixed_length(torch.ones(5), 3).tolist() == [1, 1, 1]
    assert fixed_length(torch.ones(1), 3).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [{"hop": 0.0}, {"hop": 0.1}, {"coefficients": 33}, {"mels": 0}, {"seconds": 61.0}, {"scale": 0.0}, {"lifter": 19}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError):
        MfccConfig(**wrong)
