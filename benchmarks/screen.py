"""Whether the short look at many labels lets the infected ones through.

``python benchmarks/screen.py DATA BENCH`` takes the infected models of 1,307 labels that `bench cases` lists, trained
first unless BENCH has them, and scans some of the labels of each: the planted one and every tenth other. It prints the
place of the planted label in the order in which long looks follow, and what the scan says of it; BENCH/screen.json has
the numbers. Only the labels in front get a long look here, so the scan is short; a label's short look depends on no
other label's, so its place among a tenth of the labels stands for its place among all. ``--every 1`` takes all.
What the file has of other models stays there, and an interrupted scan goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from neuralsanitizer.benchmark.grid import cases
from neuralsanitizer.benchmark.run import Bench
from neuralsanitizer.cli.console import progress_bar
from neuralsanitizer.config import neural_sanitizer_config
from neuralsanitizer.detectors.base import GLANCE, SCREENED, Evidence
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.detectors.neural_sanitizer.screen import by_suspicion
from neuralsanitizer.execution.executors import executor_named
from neuralsanitizer.execution.store import FolderStore
from neuralsanitizer.pipeline import scan
from neuralsanitizer.provenance import environment
from neuralsanitizer.records import to_json
from neuralsanitizer.storage import RunFolder, write_json


def main() -> None:
    """Train, look, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("bench", type=Path, help="benchmark folder")
    parser.add_argument("--only", default="many-*", help="names of cases")
    parser.add_argument("--every", type=int, default=10, help="of how many labels one is scanned")
    parser.add_argument("--executor", default="local")
    args = parser.parse_args()
    usual = neural_sanitizer_config("default")
    if usual.screen is None:
        raise SystemExit("the default preset has no short look")
    told = args.bench / "screen.json"
    rows: dict[str, dict[str, object]] = {}
    if told.exists():
        rows = {row["case"]: row for row in json.loads(told.read_text()) if row["every"] == args.every}
    with progress_bar() as progress:
        bench = Bench(args.data, args.bench, torch.device("cpu"), 0, progress)
        for case in cases("attacks", [args.only]):
            attacked, clean = bench.given(case)
            (planted,) = {trigger.target for trigger in attacked.truth.triggers}
            labels = sorted({planted, *range(0, case.config.labels, args.every)})
            # The same share of the labels gets a long look as of all labels would, in batches of as small a share.
            batch = math.ceil(usual.screen.batch * len(labels) / case.config.labels)
            screen = replace(usual.screen, batch=batch, least_labels=1)
            folder = RunFolder(args.bench / "screens" / f"{case.name}-{args.every}")
            saved = scan(
                attacked.model,
                clean,
                method=NeuralSanitizer(replace(usual, screen=screen), FolderStore(bench.references)),
                labels=labels,
                output=folder.path,
                resume=folder.state.exists(),
                executor=executor_named(args.executor),
                progress=progress,
            )
            store = FolderStore(folder.state)
            glances = [Evidence.kept(store, label, attacked.model, (GLANCE,)) for label in labels]
            order = by_suspicion([glance for glance in glances if glance is not None])
            finding = next(f for f in saved.run.verdict.labels if f.label == planted)
            rows[case.name] = {
                "case": case.name,
                "target": planted,
                "every": args.every,
                "labels": len(labels),
                "place": order.index(planted) + 1,
                "long looks": sum(SCREENED not in f.metrics for f in saved.run.verdict.labels),
                "finding": finding.finding.value,
                "infected": list(saved.run.verdict.infected_labels),
                "timings": saved.run.timings,
                "environment": to_json(environment(torch.device("cpu"))),
            }
            progress.note(json.dumps(rows[case.name]))
            write_json(told, list(rows.values()))
    print(json.dumps(list(rows.values()), indent=1))


if __name__ == "__main__":
    main()
