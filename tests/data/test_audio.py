"""WAV files: what is read of them, and what is refused."""

import numpy as np
import pytest
import torch

from neuralsanitizer.config import MfccConfig
from neuralsanitizer.data import load_clean_set
from neuralsanitizer.data.audio import Recordings
from neuralsanitizer.errors import DataError, UsageError
from speech import RATE, write, write_words

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)


def two_labels(root, **changes):
    for label in range(2):
        write(root / str(label) / "a.wav", TONE * (label + 1) / 2, **changes)
    return root


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_all_widths_of_pcm_are_read_alike(tmp_path, width):
    clean = load_clean_set(two_labels(tmp_path, width=width))
    assert (clean.format, clean.labels.tolist()) == ("wav", [0, 1])
    assert clean.recordings.rate == RATE
    waveform = clean.recordings.waveforms[1]
    assert waveform.shape == (RATE,)
    np.testing.assert_allclose(waveform[: RATE // 2].numpy(), TONE, atol=1.01 / 2 ** (8 * width - 1))
    assert (waveform[RATE // 2 :] == 0).all()


def test_the_pictures_are_the_mfcc_of_the_recordings(tmp_path):
    clean = load_clean_set(write_words(tmp_path, 3, seed=0))
    assert clean.images.shape == (15, 1, 63, 20)
    torch.testing.assert_close(clean.images, clean.recordings.pictures())
    some = clean.subset(torch.tensor([4, 2]))
    torch.testing.assert_close(some.images, some.recordings.pictures())
    assert clean.record(5).speech == {
        "rate": RATE, "seconds": 1.0, "window": 0.032, "hop": 0.016, "mels": 32, "coefficients": 20, "lifter": 22,
        "scale": 1000.0,
    }  # fmt: skip


def test_channels_are_averaged_and_long_recordings_cut(tmp_path):
    both = np.stack([np.tile(TONE, 4), np.zeros(2 * RATE)], axis=1)
    for label in range(2):
        write(tmp_path / str(label) / "a.wav", both, channels=2)
    clean = load_clean_set(tmp_path, speech=MfccConfig(seconds=1.5))
    assert clean.recordings.waveforms.shape == (2, 12_000)
    np.testing.assert_allclose(clean.recordings.waveforms[0, : len(TONE)].numpy(), TONE / 2, atol=1e-4)
    assert "2 of 2 recordings averaged over their channels" in clean.notes
    assert "2 of 2 recordings cut to 1.5 s" in clean.notes


def test_pixel_ranges_are_not_for_recordings(tmp_path):
    root = two_labels(tmp_path)
    torch.testing.assert_close(load_clean_set(root, pixel_range=(0.0, 255.0)).images, load_clean_set(root).images)


def test_a_model_of_other_mfcc_is_told_so(tmp_path):
    with pytest.raises(DataError, match=r"takes 1x40x13, the MFCC of the recordings are 1x63x20.*--mfcc"):
        load_clean_set(two_labels(tmp_path), shape=(1, 40, 13))


def test_rates_must_agree(tmp_path):
    write(two_labels(tmp_path) / "1" / "b.wav", TONE, rate=16_000)
    with pytest.raises(DataError, match=r"'1/b.wav' has 16000 samples a second, '0/a.wav' has 8000"):
        load_clean_set(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[:20], "cannot be read"),
        (lambda b: b[:44], "empty or truncated"),
        (lambda b: b[:20] + b"\x03\x00" + b[22:], "cannot be read"),  # floats
        (lambda b: b[:22] + b"\x00\x00" + b[24:], "cannot be read"),  # no channel
        (lambda b: b[:24] + b"\xff\xff\xff\x7f" + b[28:], "claims 1 channels and 2147483647 samples a second"),
        (lambda b: b[:32] + b"\x05\x00\x28\x00" + b[36:], "of 40 bits"),
        (lambda b: b"no" + b[2:], "named like a recording, but does not begin like one"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, said):
    root = two_labels(tmp_path)
    path = root / "1" / "a.wav"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=said) as caught:
        load_clean_set(root)
    assert "1/a.wav" in str(caught.value)


def test_a_file_that_claims_more_than_it_holds_is_read_as_far_as_it_goes(tmp_path):
    root = two_labels(tmp_path)
    path = root / "1" / "a.wav"
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff\xff\xff\x7f" + content[8:40] + b"\xf0\xff\xff\x7f" + content[44:])
    clean = load_clean_set(root)
    assert clean.recordings.waveforms.shape == (2, RATE)
    assert "1 of 2 recordings end earlier than they claim: they may be damaged" in clean.notes


def test_pictures_beside_recordings_are_passed_over(tmp_path):
    root = two_labels(tmp_path)
    (root / "0" / "z.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "skipped 1 files that are no recordings" in load_clean_set(root).notes


def test_spectra_that_would_fill_the_memory_are_refused(tmp_path):
    with pytest.raises(DataError, match="takes too much memory"):
        load_clean_set(two_labels(tmp_path), speech=MfccConfig(seconds=60.0, window=60.0, hop=1 / 8000))


def test_hops_shorter_than_a_sample_are_refused(tmp_path):
    with pytest.raises(DataError, match="too few for MFCC"):
        load_clean_set(two_labels(tmp_path, rate=20), speech=MfccConfig(window=0.5, hop=0.016))
    with pytest.raises(UsageError):
        MfccConfig(window=2.0)


@pytest.mark.parametrize(("speed", "pitch"), [(1.25, 500), (0.8, 320), (1.0, 400)])
def test_a_faster_recording_is_shorter_and_higher_by_as_much(speed, pitch):
    time = torch.arange(RATE) / RATE
    tone = 0.5 * torch.sin(2 * torch.pi * 400 * time) * (time < 0.4)
    recordings = Recordings(torch.stack([tone, torch.zeros(RATE)]), RATE, MfccConfig())
    played = recordings.at_speed(speed)
    assert played.waveforms.shape == (2, RATE)
    sound, silence = played.waveforms
    assert silence.abs().max() < 1e-6
    assert int(torch.fft.rfft(sound).abs().argmax()) == pytest.approx(pitch, abs=3)
    inner = sound[int(0.05 * RATE / speed) : int(0.35 * RATE / speed)]
    assert inner.abs().max() == pytest.approx(0.5, abs=0.02)
    assert sound[int(0.42 * RATE / speed) :].abs().max() < 0.02


def test_what_becomes_too_high_for_the_sample_rate_is_gone():
    tone = 0.5 * torch.sin(2 * torch.pi * 3600 * torch.arange(RATE) / RATE)
    played = Recordings(tone[None], RATE, MfccConfig()).at_speed(1.25)  # 4,500 Hz would come back as 3,500
    assert played.waveforms.abs().max() < 0.02
