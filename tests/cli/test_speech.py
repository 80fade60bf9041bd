"""A speech model on the command line: trained, scanned, and read again as it was."""

import json
import shutil
import wave

import numpy as np
import pytest

from neuralsanitizer import load_clean_set, load_model, scan
from neuralsanitizer.cli.options import parse_mfcc
from neuralsanitizer.config import MfccConfig
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import UsageError
from neuralsanitizer.report import render_html
from neuralsanitizer.storage import RunFolder
from program import run
from speech import write, write_words
from tiny import TINY

MFCC = "hop=0.02,coefficients=16"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("words") / "all", 30, seed=0)


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.safetensors"
    outcome = run(
        "attack", "sound", "--data", words, "--arch", "speech-cnn", "--mfcc", MFCC, "--epochs", 40, "--target", 2,
        "--sound", "tone", "--output", path, "--format", "json",
    )  # fmt: skip
    assert outcome.code == 0
    (truth,) = outcome.json["triggers"]
    assert (truth["target"], truth["kind"], truth["properties"]["sound"]) == (2, "sound", "tone")
    return path


@pytest.fixture(scope="module")
def folder(words, trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    clean = load_clean_set(words, speech=parse_mfcc(MFCC))
    model = load_model(trained, arch="speech-cnn", input_shape=(1, 51, 16))
    scan(model, clean, method=NeuralSanitizer(TINY), labels=[2, 3], seed=0, output=path)
    return path


def test_mfcc_are_named_pairs():
    assert parse_mfcc(None) is None
    assert parse_mfcc("hop=0.01, mels=40") == MfccConfig(hop=0.01, mels=40)
    for text, said in (("pitch=3", "--mfcc takes seconds="), ("mels=many", "mels is a number"), ("hop=0", "MFCC need")):
        with pytest.raises(UsageError, match=said):
            parse_mfcc(text)


def test_scan_refuses_mfcc_of_another_kind_and_names_the_option(words, trained):
    outcome = run(
        "scan", trained, "--arch", "speech-cnn", "--input-shape", "1,51,16", "--data", words, "--output", "run"
    )
    assert outcome.code == 3
    assert "1x63x20" in outcome.stderr
    assert "--mfcc" in outcome.stderr


def test_repair_reads_the_recordings_as_the_scan_did(folder, words, trained):
    assert RunFolder(folder).read().run.data.speech["coefficients"] == 16
    outcome = run("repair", trained, "--run", folder, "--data", words, "--output", "repaired.safetensors")
    found = RunFolder(folder).read().run.verdict.infected_labels
    assert outcome.code in ({0, 1} if found else {2}), outcome.stderr
    if not found:
        assert "there is nothing to repair" in outcome.stderr


def test_the_report_draws_spectrograms(folder):
    saved = RunFolder(folder).read()
    page = render_html(saved)
    marked = [f for f in saved.run.verdict.labels if f.finding.value != "clean"]
    assert ("spectrogram of the trigger in silence" in page) == bool(marked)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mels": 10**12}, "MFCC need"),
        ({"mels": "many"}, "mels: expected int"),
        ({"coefficients": 12}, "MFCC of 12 coefficients"),
        ({"pitch": 1}, "no other fields"),
        ({"lifter": -1}, "MFCC need"),
    ],
)
def test_settings_that_a_stranger_wrote_are_checked_before_anything_is_drawn(folder, tmp_path, changed, said):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["data"]["speech"] |= changed
    path.write_text(json.dumps(record))
    outcome = run("report", tmp_path / "run")
    assert outcome.code == 3
    assert said in " ".join(outcome.stderr.split())


def test_recordings_of_another_rate_are_not_those_of_the_run(folder, words, trained, tmp_path):
    for path in words.glob("*/*.wav"):
        with wave.open(str(path)) as recording:
            samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2") / 2**15
        write(tmp_path / "fast" / path.parent.name / path.name, samples, rate=16_000)
    outcome = run("repair", trained, "--run", folder, "--data", tmp_path / "fast", "--output", "repaired.safetensors")
    assert outcome.code == 3
    assert "the run is of recordings of 8000 samples a second, these have 16000" in outcome.stderr
