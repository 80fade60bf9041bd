"""How far what a search finds depends on where it starts.

``python benchmarks/searches.py DATA BENCH --only dev-gtsrb-4x4`` takes models that `bench cases` lists, trained first
unless BENCH has them, makes the references of a scan once, and then looks at the planted labels, and at some others
with ``--others``, with one search seed after the other. It prints a line of JSON for each look: the size of the mask,
the attack success, the excess over clean models, and the steps that the search took. ``--again``: second looks, which
search for longer. References are kept in BENCH/searches.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from neuralsanitizer.benchmark.ablations import detector_named
from neuralsanitizer.benchmark.grid import cases
from neuralsanitizer.benchmark.run import Bench
from neuralsanitizer.cli.console import progress_bar
from neuralsanitizer.data.sampling import derive_seed
from neuralsanitizer.detectors.base import Context
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.detectors.neural_sanitizer.families import families_for
from neuralsanitizer.detectors.neural_sanitizer.verdict import EXCESS
from neuralsanitizer.execution.progress import NoProgress
from neuralsanitizer.execution.store import FolderStore


class Counted(NoProgress):
    """Counts the steps of the searches, and says nothing."""

    def __init__(self) -> None:
        self.steps, self.counting = 0, False

    def start(self, stage: str, total: int) -> None:  # noqa: ARG002
        """What begins is a search, or something else."""
        self.counting = stage.startswith("reconstruct")

    def advance(self, steps: int = 1) -> None:
        """So many labels took a step."""
        self.steps += steps * self.counting


def main() -> None:
    """Train, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("bench", type=Path, help="benchmark folder")
    parser.add_argument("--split", default="development")
    parser.add_argument("--only", required=True, help="names of cases")
    parser.add_argument("--detector", default="neural-sanitizer/default", help="METHOD/PRESET[:ABLATION]")
    parser.add_argument("--others", type=int, default=0, help="how many other labels are looked at")
    parser.add_argument("--seeds", type=int, default=16, help="looks at each label")
    parser.add_argument("--again", action="store_true", help="second looks")
    args = parser.parse_args()
    with progress_bar() as progress:
        bench = Bench(args.data, args.bench, torch.device("cpu"), 0, progress)
        for case in cases(args.split, [args.only]):
            attacked, clean = bench.given(case)
            suspect, planted = attacked.model, sorted({t.target for t in attacked.truth.triggers})
            detector = detector_named(args.detector, bench.references)
            if not isinstance(detector, NeuralSanitizer):
                raise SystemExit("a detector that searches under a constraint is wanted")
            suspect.recognise_output(clean.images[:8])
            held_out, work = clean.split([detector.self_check_config.held_out_share], derive_seed(0, "held-out"))
            kept = FolderStore(args.bench / "searches" / f"{case.name}--{args.detector.replace('/', '-')}")
            context = Context(suspect, work, held_out, 0, progress, kept, {})
            references, _ = detector.prepare(context)
            patches, *_ = families_for(suspect, detector.config)
            others = [label for label in range(suspect.labels) if label not in planted][: args.others]
            for label in [*planted, *others]:
                for seed in range(args.seeds):
                    counted = Counted()
                    start = replace(context, seed=derive_seed(0, "search", seed), progress=counted)
                    (found,) = detector.look(start, patches, references, [label], again=args.again)
                    row = {
                        "case": case.name,
                        "label": label,
                        "planted": label in planted,
                        "seed": seed,
                        "size": round(found.trigger.size, 1),
                        "success": round(found.attack_success, 3),
                        "excess": round(found.metrics[EXCESS], 3) if EXCESS in found.metrics else None,
                        "steps": counted.steps,
                    }
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
