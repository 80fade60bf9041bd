"""What it saves to keep freed memory: time and page faults of the same work, with and without.

``python benchmarks/allocator.py`` shows images forward and backward to three networks, on one core, twice in turns, and
prints one line of JSON each. Each is a process of its own, as the setting holds for a whole process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.models import architectures

NETWORKS = (
    ("mnist-cnn", (1, 28, 28), 10, 160),
    ("gtsrb-cnn", (3, 32, 32), 43, 160),
    ("deepid", (3, 55, 47), 1307, 320),
)
STEPS = 30


def measured(name: str, shape: tuple[int, int, int], labels: int, images: int) -> dict[str, object]:
    """Microseconds an image, page faults a step, and the largest memory of a search's work."""
    import resource  # noqa: PLC0415 - Unix alone has it

    network = architectures.build(name, labels, shape[0], shape[1:]).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    shown = torch.rand(images, *shape).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        shown.grad = None
        network(shown).log_softmax(dim=1).sum().backward()

    for _ in range(3):
        step()
    faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(STEPS):
        step()
    taken, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "network": name,
        "microseconds an image": round(taken / STEPS / images * 1e6),
        "page faults a step": (after.ru_minflt - faults) // STEPS,
        "peak MB": round(after.ru_maxrss / 1e3),
    }


def main() -> None:
    """Measure, or have it measured."""
    if len(sys.argv) == 1:
        for kept in ("usual", "kept", "usual", "kept"):
            subprocess.run([sys.executable, __file__, kept], check=True)
        return
    torch.set_num_threads(1)
    kept = sys.argv[1] == "kept" and keep_freed_memory()
    for network in NETWORKS:
        print(json.dumps({"kept": kept, **measured(*network)}), flush=True)


if __name__ == "__main__":
    main()
