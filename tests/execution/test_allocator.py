import ctypes
import subprocess
import sys

import pytest

from neuralsanitizer.execution import allocator

FAULTS = """
import resource, sys
import torch
from neuralsanitizer.execution.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    torch.ones(20_000_000)  # the first ones are of memory that nobody has had
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept):
    done = subprocess.run([sys.executable, "-c", FAULTS, kept], check=True, capture_output=True, text=True)
    return int(done.stdout)


def takes_large_pieces():
    """Whether the C library is GNU's, and young enough to keep pieces as large as those of the test."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and mallopt(allocator._MMAP_THRESHOLD, allocator._LARGE) == 1


@pytest.mark.skipif(not takes_large_pieces(), reason="the GNU C library's")
def test_memory_that_was_freed_is_not_asked_for_again():
    # The best of three: where the heap happens to lie, by chance, below something else, it cannot grow.
    assert min(faults("kept") for _ in range(3)) < faults("usual") / 2


def test_an_older_c_library_keeps_what_it_can(monkeypatch):
    taken = []

    class Older:
        def mallopt(self, option, value):
            taken.append((option, value))
            return int(option != allocator._MMAP_THRESHOLD or value <= 1 << 25)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Older())
    assert allocator.keep_freed_memory()
    assert taken[-2:] == [(allocator._MMAP_THRESHOLD, 1 << 25), (allocator._TRIM_THRESHOLD, 1 << 30)]


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
