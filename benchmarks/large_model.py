"""What a scan of a large network with many labels costs: a real scan of some of the labels, and the sum for all.

``python benchmarks/large_model.py FOLDER`` scans ``vgg16`` of 2,622 labels (VGG-Face's size) with random weights, at
32x32 pixels unless ``--size`` says otherwise, and prints what it took; ``FOLDER/large_model.json`` has the numbers. The
weights, images and labels are random, and references are trained for a few steps: what is measured is cost, and the
verdict says nothing. The references' sum is the least that their training can take. Labels that would be compared with
clean models cost more than these. Memory is told at each tenth of every stage: with a small network, as ``--arch
mnist-cnn-small --some 400``, it shows whether memory grows with the labels that are done.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch

from neuralsanitizer import CleanSet, SuspectModel, scan
from neuralsanitizer.benchmark.speed import floors
from neuralsanitizer.cli.console import progress_bar
from neuralsanitizer.config import NeuralSanitizerConfig, neural_sanitizer_config
from neuralsanitizer.detectors.base import SCREENED
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.models import architectures
from neuralsanitizer.provenance import environment, peak_memory_mb
from neuralsanitizer.records import to_json


def main() -> None:
    """Scan, add up, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="vgg16")
    parser.add_argument("--labels", type=int, default=2622, help="of the network")
    parser.add_argument("--size", type=int, default=32, help="edge of the images, in pixels")
    parser.add_argument("--some", type=int, default=16, help="labels that are scanned")
    parser.add_argument("--steps", type=int, default=20, help="that each reference is trained for")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    usual = neural_sanitizer_config("default")
    suspect, clean = random_network(args.arch, args.labels, args.size)
    before = peak_memory_mb()
    started = time.perf_counter()
    with progress_bar() as bars:
        progress = Watched(bars)
        saved = scan(
            suspect,
            clean,
            method=NeuralSanitizer(cheap(usual, args.steps)),
            labels=range(args.some),
            output=args.folder / "run",
            progress=progress,
        )
    clock = saved.run.timings
    # By the plain loop: in a few steps, what stands around the training takes longer than the training.
    shown = len(saved.run.references) * sum(usual.references.fresh_cycles) * usual.references.fresh_batch
    training = shown * floors(suspect, clean)["train"]
    short = clock["screen"] / args.some * args.labels
    looks = sum(SCREENED not in finding.metrics for finding in saved.run.verdict.labels)
    long = (clock["total"] - clock["screen"] - clock["references"]) / looks
    share = usual.screen.least_share if usual.screen else 1.0
    told = {
        "architecture": args.arch,
        "labels": args.labels,
        "edge": args.size,
        "scanned": args.some,
        "long looks": looks,
        "timings": clock,
        "seconds": time.perf_counter() - started,
        "peak_mb_before": before,
        "peak_mb": peak_memory_mb(),
        "memory": progress.stages,
        "hours_for_all": {
            "references": training / 3600,
            "short look": short / 3600,
            "long look": long * share * args.labels / 3600,
        },
        "environment": to_json(environment(suspect.device)),
    }
    (args.folder / "large_model.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


class Watched:
    """Passes on what it is told, and writes down the process's memory at each tenth of a stage.

    Attributes:
        stages: Name of each stage, with megabytes at its start, after a tenth of its steps, and so on to its end.
    """

    def __init__(self, progress: Progress) -> None:
        self.stages: list[tuple[str, list[float]]] = []
        self._progress = progress
        self._done, self._total = 0, 1

    def start(self, stage: str, total: int) -> None:
        """A stage begins."""
        self._done, self._total = 0, total
        self.stages.append((stage, [resident_mb()]))
        self._progress.start(stage, total)

    def advance(self, steps: int = 1) -> None:
        """The stage went on."""
        self._done += steps
        memory = self.stages[-1][1]
        if self._done * 10 >= self._total * len(memory):
            memory.append(resident_mb())
        self._progress.advance(steps)

    def note(self, message: str) -> None:
        """Pass it on."""
        self._progress.note(message)


def resident_mb() -> float:
    """Memory that this process has now, in megabytes; where the system does not tell, the most that it had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory_mb() or 0.0
    return pages * resource.getpagesize() / 1e6


def random_network(arch: str, labels: int, size: int) -> tuple[SuspectModel, CleanSet]:
    """A network with random weights, and random images with random labels."""
    torch.manual_seed(0)
    shape = (3, size, size)
    suspect = SuspectModel(architectures.build(arch, labels, 3, (size, size)), shape, labels, architecture=arch)
    return suspect, CleanSet(torch.rand(_IMAGES, *shape), torch.randint(labels, (_IMAGES,)))


_IMAGES = 2000


def cheap(usual: NeuralSanitizerConfig, steps: int) -> NeuralSanitizerConfig:
    """The default preset, with references of a few steps, and nothing that a random network would fail at."""
    references = replace(usual.references, fresh_cycles=(steps,), attempts=1, least_accuracy=0.0)
    self_check = replace(usual.self_check, least_gain_over_chance=-100.0, least_images_per_label=0)
    screen = usual.screen and replace(usual.screen, least_labels=1)
    return replace(usual, preset="cost", references=references, self_check=self_check, screen=screen)


if __name__ == "__main__":
    main()
