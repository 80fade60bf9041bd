"""Runs, repairs and verifications for a person at a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralsanitizer.records import (
    FilterRecord,
    Finding,
    IndexEntry,
    LabelFinding,
    Repair,
    RepairedTrigger,
    Run,
    Verification,
)
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun

__all__ = ["print_filter", "print_index", "print_parted", "print_repair", "print_run", "print_verification"]

_STYLES = {Finding.INFECTED: "bold red", Finding.CLEAN: "green", Finding.INCONCLUSIVE: "bold yellow"}
_ALL = 20  # up to so many labels the table has them all
_SMALLEST = 10  # beyond, these beside the infected and the open ones
_NARROWEST = 20  # columns that lines are wrapped at, however narrow the terminal is
_WIDE = 120  # columns from which on the table has room for every label's reason


def print_run(saved: SavedRun, console: Console) -> None:
    """Verdict, labels, references, timings, assumptions."""
    _print_scan(saved.run, console)
    if saved.repair is not None:
        console.print()
        print_repair(saved.repair, console)
    if saved.verification is not None:
        console.print()
        print_verification(saved.verification, console)
    if saved.filter is not None:
        console.print()
        print_filter(saved.filter, console)


def print_repair(repair: Repair, console: Console) -> None:
    """What was removed, and what it cost."""
    done = "nothing is found there any more" if repair.complete else "something is still found"
    if repair.tried:
        done = "verified" if repair.complete else "no method passed, this one left the least"
    _say(console, f"repair ({repair.method}): {_count(len(repair.triggers), 'trigger')} removed, {done}", "bold")
    _print_triggers(repair.triggers, console)
    _print_accuracy(repair.clean_accuracy_before, repair.clean_accuracy_after, repair.held_out_images, console)
    for attempt in repair.tried:
        _say(console, f"{'kept:  ' if attempt.kept else 'tried: '}{attempt.method} - {attempt.reason}")
    _say(console, _seconds(repair.timings))


def print_verification(verification: Verification, console: Console) -> None:
    """The proof, and what it rests on."""
    line = Text("repaired model: ", style="bold")
    line.append(verification.finding.value, style=_STYLES[verification.finding])
    line.append(f" - {clean_text(verification.reason)}", style="not bold")
    console.print(line)
    _print_triggers(verification.triggers, console)
    _print_accuracy(
        verification.clean_accuracy_before, verification.clean_accuracy_after, verification.held_out_images, console
    )
    _say(console, _seconds(verification.timings))


def print_filter(record: FilterRecord, console: Console) -> None:
    """What an input filter does, on images that it was not fitted to."""
    _say(console, f"input filter ({record.score}) for {_count(len(record.labels), 'infected label')}", "bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("label", "clean images judged", "flagged", "95 % interval", "stamped images", "let pass"):
        table.add_column(heading, justify="left" if heading == "label" else "right")
    for f in record.labels:
        name = f"{f.label}" if f.name == str(f.label) else f"{f.label} {clean_text(f.name, 40)}"
        interval = " to ".join(f"{end:.1%}" for end in f.false_alarm_interval)
        cells = (str(f.clean_images), f"{f.false_alarms:.1%}", interval, str(f.stamped_images), f"{f.missed:.1%}")
        table.add_row(Text(name), *cells)
    console.print(table)
    low, high = record.false_alarm_interval
    _say(
        console,
        f"of all {_count(record.clean_images, 'clean image')} it flags {record.false_alarms:.2%} "
        f"({low:.2%} to {high:.2%}), measured crosswise: each fifth at what the others set",
    )
    ours, alone = 1e6 * record.seconds_per_input, 1e6 * record.seconds_per_input_without
    _say(console, f"{ours:.0f} us an input, {alone:.0f} us without the filter")
    if record.seconds_single:
        ours, alone = 1e6 * record.seconds_single, 1e6 * record.seconds_single_without
        _say(console, f"one input a call: {ours:.0f} us, {alone:.0f} us without the filter")


def print_index(entries: Sequence[IndexEntry], console: Console) -> None:
    """Many models, a line each."""
    table = Table(box=None, pad_edge=False)
    for name in ("model", "verdict", "infected labels", "clean accuracy"):
        table.add_column(name, overflow="fold")
    for e in entries:
        verdict = "not scanned" if e.finding is None else e.finding.value
        accuracy = "" if e.finding is None else f"{e.clean_accuracy:.1%}"
        labels = ", ".join(map(str, e.infected)) if e.finding is not None else e.reason
        table.add_row(*(Text(clean_text(cell, 300)) for cell in (e.model, verdict, labels, accuracy)))
    console.print(table)


def print_parted(accepted: Sequence[str], rejected: Sequence[str], console: Console) -> None:
    """How many inputs a filter accepts, and which it rejects."""
    _say(console, f"{_count(len(accepted), 'input')} accepted, {len(rejected)} rejected", "bold")
    for name in rejected[:_ALL]:
        _say(console, f"rejected: {name}")
    if len(rejected) > _ALL:
        _say(console, f"... and {len(rejected) - _ALL} more: --output writes them all", "dim")


def _print_scan(run: Run, console: Console) -> None:
    verdict = run.verdict
    line = Text(f"{clean_text(run.model.name or run.model.architecture, 60)}: ", style="bold")
    line.append(verdict.finding.value, style=_STYLES[verdict.finding])
    line.append(f" - {clean_text(verdict.reason, 400)}", style="not bold")
    console.print(line)
    check = run.self_check
    _say(console, f"clean accuracy {check.clean_accuracy:.1%} on {_count(check.images, 'image')}")
    if verdict.labels:
        _print_labels(verdict.labels, run.model.input_shape[1] * run.model.input_shape[2], console)
    if run.references:
        used = [r for r in run.references if r.usable]
        worst = min((r.agreement for r in used), default=0.0)
        text = f"references: {len(used)} of {len(run.references)} usable"
        _say(console, text + (f", each agrees with the model on {worst:.1%} of clean images or more" if used else ""))
    _say(console, _seconds(run.timings))
    first = "assumed: "
    for i, assumption in enumerate(verdict.assumptions):
        lines = textwrap.wrap(clean_text(assumption, 1000), max(console.width - len(first), _NARROWEST))
        for j, part in enumerate(lines):
            _say(console, f"{first if not (i or j) else ' ' * len(first)}{part}", "dim")


def _print_labels(labels: Sequence[LabelFinding], pixels: int, console: Console) -> None:
    shown = labels
    if len(labels) > _ALL:
        marked = [f for f in labels if f.finding is not Finding.CLEAN]
        rest = sorted((f for f in labels if f.finding is Finding.CLEAN), key=lambda f: f.mask_size)
        shown = [*marked, *rest[:_SMALLEST]]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("label", max_width=18, no_wrap=True)
    table.add_column("finding")
    for heading in ("success", "mask", "transfer"):
        table.add_column(heading, justify="right", no_wrap=True)
    wide = console.width >= _WIDE
    if wide:
        table.add_column("why", overflow="fold")
    for f in shown:
        name = f"{f.label}" if f.name == str(f.label) else f"{f.label} {clean_text(f.name, 40)}"
        transfer = f"{max(f.transfer):.0%}" if f.transfer else "-"
        table.add_row(
            Text(name),
            Text(f.finding.value, _STYLES[f.finding]),
            f"{f.attack_success:.0%}",
            f"{f.mask_size:.0f} px {f.mask_size / pixels:.0%}",
            transfer,
            *([Text(clean_text(f.reason, 400))] if wide else []),
        )
    console.print(table)
    if len(shown) < len(labels):
        _say(console, f"... and {len(labels) - len(shown)} more clean labels with larger masks", "dim")
    if not wide:
        for f in shown:
            if f.finding is not Finding.CLEAN:
                _say(console, f"label {f.label}: {clean_text(f.reason, 400)}")


def _print_triggers(triggers: Iterable[RepairedTrigger], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("reversed trigger", "mask", "success before", "after"):
        table.add_column(heading, justify="left" if heading == "reversed trigger" else "right")
    for t in triggers:
        found = "" if not t.round else f" (found by scan {t.round + 1})"
        before, after = f"{t.attack_success_before:.1%}", f"{t.attack_success_after:.1%}"
        table.add_row(f"to label {t.label}{found}", f"{t.mask_size:.0f} px", before, after)
    console.print(table)


def _print_accuracy(before: float, after: float, images: int, console: Console) -> None:
    _say(console, f"clean accuracy {before:.1%} before, {after:.1%} after, on {_count(images, 'held-out image')}")


def _seconds(timings: Mapping[str, float]) -> str:
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in timings.items() if name != "total" and value >= 0.5)
    return f"{timings.get('total', 0.0):.0f} s in all" + (f" ({stages})" if stages else "")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _say(console: Console, text: str, style: str = "") -> None:
    indent = text[: len(text) - len(text.lstrip())]
    console.print(Text(indent + clean_text(text, 1000), style=style))  # a run folder may come from anywhere
