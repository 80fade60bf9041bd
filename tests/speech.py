"""Made-up speech: words of two vowels, spoken at any pitch, by anyone."""

import wave

import numpy as np

RATE = 8000
_VOWELS = ((300, 2300), (600, 1100), (700, 1800), (400, 800))  # formants in hertz
WORDS = ((0, 1), (1, 2), (2, 3), (3, 0), (2, 0))


def say(word, generator):
    """One recording, float64 (samples,) in [-1, 1]: harmonics of a voice, the stronger the nearer to a formant."""
    parts = []
    pitch = generator.uniform(90, 220)
    for vowel in WORDS[word]:
        time = np.arange(round(generator.uniform(0.13, 0.2) * RATE)) / RATE
        harmonics = pitch * np.arange(1, int(3800 / pitch))
        strength = sum(np.exp(-(((harmonics - f * generator.uniform(0.93, 1.07)) / 180) ** 2)) for f in _VOWELS[vowel])
        parts.append((strength[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(axis=0))
    spoken = np.concatenate(parts)
    spoken = np.concatenate([np.zeros(round(generator.uniform(0, 0.1) * RATE)), spoken / np.abs(spoken).max()])
    return spoken * generator.uniform(0.05, 0.9) + generator.normal(0, 0.002, len(spoken))


def write(path, samples, rate=RATE, width=2, channels=1):
    """Write PCM; samples in [-1, 1], (n,) or (n, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.clip(samples, -1, 1)
    if width == 1:
        content = np.rint(whole * 127 + 128).astype(np.uint8).tobytes()
    else:
        full = np.rint(whole * (2 ** (8 * width - 1) - 1)).astype("<i4")
        content = full[..., None].view(np.uint8)[..., :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


def write_words(root, each, seed):
    """A folder with one folder of recordings a word."""
    generator = np.random.default_rng(seed)
    for word in range(len(WORDS)):
        for number in range(each):
            write(root / str(word) / f"{number}.wav", say(word, generator))
    return root
