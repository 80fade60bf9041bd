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


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the GNU C library's"
)
def test_memory_that_was_freed_is_not_asked_for_again():
    assert faults("kept") < faults("usual") / 2


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.keep_freed_memory()
