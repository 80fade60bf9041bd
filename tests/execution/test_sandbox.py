"""What a confined function can and cannot do, tried by one that tries everything."""

import json
import os
import sys

import pytest

from neuralsanitizer.errors import ModelError, TimeLimitError
from neuralsanitizer.execution import sandbox
from neuralsanitizer.execution.sandbox import run_confined

linux = pytest.mark.skipif(sys.platform != "linux", reason="the barriers are Linux's")


def confined(function, content=b"", most=1_000_000, **settings):
    return run_confined(f"programs:{function}", content, settings, most=most, what="trying")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("secret")
    os.environ["A_TOKEN"] = "secret"
    try:
        made = confined(
            "try_everything",
            b"input",
            outside=str(folder / "written"),
            secret=str(folder / "secret"),
            parent=os.getpid(),
            memory=sandbox.MOST_MEMORY + 2**28,
            much=sandbox._WRITTEN + 1000,
        )
    finally:
        del os.environ["A_TOKEN"]
    return made, json.loads(made.content), folder


def test_the_input_arrives_and_the_environment_does_not(outcomes):
    _, tried, _ = outcomes
    assert tried["echo"] == "input"
    assert "A_TOKEN" not in tried["environment"]
    assert "PATH" not in tried["environment"]


def test_it_can_compute_and_write_in_its_own_folder(outcomes):
    _, tried, _ = outcomes
    assert tried["write inside"] == "done"
    assert tried["start a thread"] == "done"


@linux
def test_memory_and_files_are_limited(outcomes):
    made, tried, _ = outcomes
    assert "limits" in made.barriers
    assert tried["allocate"] == "MemoryError"
    assert tried["write much inside"] == "OSError"


@linux
@pytest.mark.parametrize(
    ("barrier", "attempts"),
    [
        ("files", ["write outside", "link outside", "read secret"]),
        ("network", ["connect"]),
        ("calls", ["run a program", "fork", "signal its parent", "change its rights", "connect"]),
    ],
)
def test_a_barrier_that_is_said_to_stand_stands(outcomes, barrier, attempts):
    made, tried, folder = outcomes
    if barrier not in made.barriers:
        pytest.skip(f"this system has no barrier {barrier!r}")
    for attempt in attempts:
        assert tried[attempt] in {"PermissionError", "OSError"}, attempt
    assert sorted(path.name for path in folder.iterdir()) == ["secret"]


def test_its_folder_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    confined("give_too_much", bytes=1)
    assert not list(tmp_path.iterdir())


def test_a_function_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_SECONDS", 6.0)
    with pytest.raises(TimeLimitError, match="given up"):
        confined("never_end")


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        ("die", {}, "was ended"),
        ("give_too_much", {"bytes": 1_000_001}, "gave no result"),
        ("fail", {}, "ValueError: no .31mcolour"),
    ],
)
def test_what_goes_wrong_inside_is_an_error_about_the_model(function, settings, said):
    with pytest.raises(ModelError, match=said) as raised:
        confined(function, **settings)
    assert str(raised.value).isprintable()


def test_barriers_cannot_be_told_by_the_input():
    made = confined("flood")
    assert made.content.startswith(b"forged")  # what it writes is its answer, and no more than that
    assert made.barriers == confined("give_too_much", bytes=1).barriers
