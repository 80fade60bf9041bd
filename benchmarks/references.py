"""What references from scratch cost, and what they learn, by recipe: the source of the defaults of their training.

``python benchmarks/references.py DATA BENCH CASE BATCH,CYCLE+CYCLE+...,RATE ...`` trains the model of a case that
`bench cases` lists, unless BENCH has it, and then two references for each recipe, with fresh weights as torch makes
them and scaled to unit variance. It prints a line of JSON each: the share of held-out images that the reference names
rightly, the images that it was trained on, seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from neuralsanitizer.benchmark.grid import CASES
from neuralsanitizer.benchmark.run import Bench
from neuralsanitizer.cli.console import progress_bar
from neuralsanitizer.config import ReferenceConfig, ReferencePlan, SelfCheckConfig
from neuralsanitizer.detectors.neural_sanitizer import tune


def main() -> None:
    """Train, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("bench", type=Path, help="benchmark folder")
    parser.add_argument("case", choices=[case.name for case in CASES], metavar="case", help="name of a case")
    parser.add_argument("recipes", nargs="+", help="images a batch, steps a cycle, peak of the learning rate")
    args = parser.parse_args()
    usual, share = ReferenceConfig(), SelfCheckConfig().held_out_share
    with progress_bar() as progress:
        (case,) = (case for case in CASES if case.name == args.case)
        attacked, clean = Bench(args.data, args.bench, torch.device("cpu"), 0, progress).given(case)
        held_out, rest = clean.split([share], seed=0)
        for recipe in args.recipes:
            batch, cycles, rate = recipe.split(",")
            steps = tuple(int(cycle) for cycle in cycles.split("+"))
            config = replace(usual, fresh_batch=int(batch), fresh_cycles=steps, fresh_learning_rate=float(rate))
            for scaled in (False, True):
                for seed in (0, 1):
                    taken: list[int] = []
                    started = time.perf_counter()
                    scale = tune.unit_variance if scaled else _left_as_it_is
                    with mock.patch.object(tune, "unit_variance", scale):
                        made = tune.make_reference(
                            attacked.model,
                            rest,
                            held_out,
                            plan=ReferencePlan("scratch"),
                            name="one",
                            role="guide",
                            config=config,
                            seed=seed,
                            advance=taken.append,
                        )
                    row = {
                        "case": case.name,
                        "recipe": recipe,
                        "unit variance": scaled,
                        "images": sum(taken) * config.fresh_batch,
                        "accuracy": round(made.record.clean_accuracy, 4),
                        "seconds": round(time.perf_counter() - started, 1),
                    }
                    print(json.dumps(row), flush=True)


def _left_as_it_is(*_: object) -> None:
    """Instead of scaling."""


if __name__ == "__main__":
    main()
