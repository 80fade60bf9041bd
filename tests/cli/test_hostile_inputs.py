"""Every bad input of ``hostile_inputs.py``, within this process: the right exit code, one named error, nothing run."""

import importlib
import re
import resource
import shlex
from contextlib import contextmanager

import pytest

from hostile_inputs import ENTRIES, complaints, lay_out, make_kit, missing_extra
from neuralsanitizer import config
from program import run
from tiny import HASTY


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    make_kit(folder)
    return folder


@contextmanager
def disk_full_after(size):
    """No file grows beyond ``size`` bytes; without a size, any does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size or soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_all_numbers_have_an_entry_and_no_two_the_same_name():
    titles = [one.title for one in ENTRIES]
    assert len(set(titles)) == len(titles)
    assert {one.number for one in ENTRIES} == set(range(1, 43))


@pytest.mark.parametrize(
    "one", [one for one in ENTRIES if not one.signal], ids=lambda one: re.sub(r"\W+", "-", one.title)
)
def test_a_bad_input_ends_as_it_should(one, kit, tmp_path, monkeypatch):
    if one.gap or missing_extra(one):
        pytest.skip(one.gap or f"needs {one.extra}")
    folder = tmp_path / "here"
    folder.mkdir()
    lay_out(one, kit, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(config.PRESETS, "hasty", HASTY)
    monkeypatch.delitem(importlib.sys.modules, "definition", raising=False)  # the last entry's
    for name, value in one.patches.items():
        module, _, attribute = name.partition(":")
        monkeypatch.setattr(importlib.import_module(module), attribute, value)
    with disk_full_after(one.file_limit):
        ended = run(*shlex.split(one.command))
    assert complaints(one, ended, folder) == [], ended
