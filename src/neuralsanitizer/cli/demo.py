"""``neuralsanitizer demo``: the whole story on real digits, in a few minutes, without a file of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from neuralsanitizer import report
from neuralsanitizer.attacks.badnets import badnets
from neuralsanitizer.attacks.base import AttackResult, measure_attack_success
from neuralsanitizer.attacks.patches import PatchSpec
from neuralsanitizer.cli import options as o
from neuralsanitizer.cli.attack import describe
from neuralsanitizer.cli.console import guarded, progress_bar, stdout
from neuralsanitizer.cli.scan import write_page
from neuralsanitizer.config import AttackConfig
from neuralsanitizer.data import CleanSet, load_clean_set
from neuralsanitizer.errors import OutputError
from neuralsanitizer.execution.progress import Progress
from neuralsanitizer.models.loading import parse_device
from neuralsanitizer.pipeline import repair, scan, verify
from neuralsanitizer.records import Finding
from neuralsanitizer.storage import RunFolder
from neuralsanitizer.training import steps_of

__all__ = ["demo_command"]

TARGET = 7
PATCH = PatchSpec(target=TARGET, size=4, position="bottom-right", pattern="white")
ARCHITECTURE = "mnist-cnn-small"


@dataclass(frozen=True)
class _Step:
    """One claim of the demo, and whether it came true."""

    claim: str
    holds: bool


@guarded
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.", file_okay=False)
    ] = Path("demo"),
    seed: o.SeedOption = 0,
    device: o.DeviceOption = "auto",
) -> None:
    """Train a backdoored model on real digits, and find it out.

    With a clean one beside it: both are scanned, the first is repaired and verified, and a report is written.

    Exit codes: 0 everything came out as it should, 1 something did not.
    """
    if output.exists() and any(output.iterdir()):
        raise OutputError(f"{output} is not empty: remove it, or choose another folder with --output")
    digits = load_clean_set("mnist5k")
    # The tester's clean images are not those the model was trained on; what the repair is measured on is neither.
    train, clean, unseen = digits.split([0.6, 0.3], seed)
    with progress_bar() as progress:
        steps = _play(output, train, clean, unseen, seed=seed, device=device, progress=progress)
    console = stdout()
    console.print()
    for step in steps:
        console.print(f"{'yes' if step.holds else 'NO '}  {step.claim}", highlight=False, markup=False)
    console.print(f"\nOpen the report: {(output / 'backdoored-run' / 'report.html').resolve()}", soft_wrap=True)
    raise typer.Exit(0 if all(step.holds for step in steps) else 1)


def _play(
    output: Path, train: CleanSet, clean: CleanSet, unseen: CleanSet, *, seed: int, device: str, progress: Progress
) -> list[_Step]:
    console, where = stdout(), parse_device(device)
    config = AttackConfig(ARCHITECTURE, epochs=10, seed=seed)

    def trained(name: str, patches: list[PatchSpec]) -> AttackResult:
        progress.start(f"train the {name} model", steps_of(config, len(train)))
        result = badnets(train, unseen, patches, config, device=where, advance=progress.advance)
        result.model.name = f"{name}.safetensors"  # as if it had been loaded from there: reports show the name
        result.save(output / result.model.name)
        console.print(f"\n[bold]{name} model[/]: {describe(result)}", highlight=False)
        return result

    attacked, honest = trained("backdoored", [PATCH]), trained("clean", [])
    folder, cache = output / "backdoored-run", output / "references"
    infected = scan(attacked.model, clean, seed=seed, output=folder, cache=cache, progress=progress)
    report.print_run(infected, console)
    sound = scan(honest.model, clean, seed=seed, output=output / "clean-run", cache=cache, progress=progress)
    report.print_run(sound, console)
    write_page(sound, output / "clean-run" / "report.html")
    steps = [
        _Step(
            f"the backdoored model is found infected, label {TARGET} alone",
            infected.run.verdict.infected_labels == (TARGET,),
        ),
        _Step("nothing is found in the clean model", sound.run.verdict.finding is Finding.CLEAN),
    ]
    if infected.run.verdict.finding is Finding.INFECTED:
        steps += _repair_and_prove(output, attacked, clean, unseen, seed, progress)
    write_page(RunFolder(folder).read(), folder / "report.html")
    return steps


def _repair_and_prove(
    output: Path, attacked: AttackResult, clean: CleanSet, unseen: CleanSet, seed: int, progress: Progress
) -> list[_Step]:
    folder = output / "backdoored-run"
    fixed = repair(attacked.model, folder, clean, output=output / "repaired.safetensors", seed=seed, progress=progress)
    report.print_repair(fixed.repair, stdout())
    proof = verify(attacked.model, fixed.model, folder, clean, output=output / "verify-run", progress=progress)
    report.print_verification(proof, stdout())
    left = measure_attack_success(fixed.model, unseen, attacked.triggers[0])
    before = attacked.truth.clean_accuracy
    after = fixed.model.accuracy(unseen.images, unseen.labels)
    return [
        _Step(f"the true trigger's attack success fell to {left:.1%} (under 5 %)", left < 0.05),
        _Step(f"clean accuracy went from {before:.1%} to {after:.1%} (within one point)", after > before - 0.01),
        _Step(f"the proof: {proof.reason}", proof.finding is Finding.CLEAN),
    ]
