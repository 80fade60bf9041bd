"""The report page: one file, no JavaScript, nothing fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from neuralsanitizer.records import Finding, IndexEntry, LabelFinding, to_json
from neuralsanitizer.report.curves import pruning_svg, roc_svg
from neuralsanitizer.report.figures import TriggerPictures, index_svg, ranking_svg, trigger_pictures
from neuralsanitizer.report.text import clean_text
from neuralsanitizer.storage import SavedRun

__all__ = ["render_html", "render_index"]

_CARDS = 12  # labels shown with all their pictures; a model may have thousands of infected ones
_EXAMPLES = 4
_HEADLINES = {
    Finding.INFECTED: "Infected",
    Finding.CLEAN: "No backdoor found",
    Finding.INCONCLUSIVE: "Inconclusive",
}
_SYMBOLS = {Finding.INFECTED: "◆", Finding.CLEAN: "●", Finding.INCONCLUSIVE: "▲"}


def render_html(saved: SavedRun) -> str:
    """The page of a run: verdict, triggers, ranking, repair and proof, assumptions, provenance.

    Every text is escaped; names lose control characters and marks that reorder text.
    """
    run = saved.run
    labels = run.verdict.labels
    marked = [f for f in labels if f.finding is not Finding.CLEAN]
    marked.sort(key=lambda f: (f.finding is not Finding.INFECTED, f.mask_size))
    pixels = run.model.input_shape[1] * run.model.input_shape[2]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            repair=saved.repair,
            curve=Markup(pruning_svg(saved.repair.curve)) if saved.repair and saved.repair.curve else "",  # noqa: S704
            verification=saved.verification,
            filter_=saved.filter,
            roc=Markup(roc_svg(saved.filter.labels)) if saved.filter else "",  # noqa: S704
            headline=_HEADLINES[run.verdict.finding],
            pixels=pixels,
            cards=[(f, _pictures(saved, f)) for f in marked[:_CARDS]],
            more=max(0, len(marked) - _CARDS),
            # The SVG is built from numbers and names that it escapes itself.
            ranking=Markup(ranking_svg(labels, pixels)) if labels else "",  # noqa: S704
            indices=Markup(index_svg(labels)),  # noqa: S704 - likewise
            table=labels
            if len(labels) <= _LONGEST_TABLE
            else sorted(labels, key=lambda f: f.mask_size)[:_LONGEST_TABLE],
            metric_names=sorted({name for f in labels for name in f.metrics}),
            settings=json.dumps(to_json(run.settings), indent=2),
        )
    )


def render_index(entries: Sequence[IndexEntry]) -> str:
    """The page of many runs: each model with its verdict and a link to its report, the infected ones first."""
    ranked = sorted(entries, key=lambda e: (_RANKS[e.finding], e.model))
    counts = {name: sum(e.finding is finding for e in entries) for finding, name in _COUNTED.items()}
    return _environment().get_template("index.html.j2").render(entries=ranked, counts=counts)


_RANKS = {Finding.INFECTED: 0, None: 1, Finding.INCONCLUSIVE: 2, Finding.CLEAN: 3}
_COUNTED = {
    Finding.INFECTED: "infected",
    None: "not scanned",
    Finding.INCONCLUSIVE: "inconclusive",
    Finding.CLEAN: "nothing found",
}
_LONGEST_TABLE = 2000


def _pictures(saved: SavedRun, finding: LabelFinding) -> TriggerPictures | None:
    trigger = saved.triggers.get(finding.label)
    if trigger is None:
        return None
    labels, speech = saved.example_labels.tolist(), saved.run.data.speech
    return trigger_pictures(trigger, saved.examples, labels, _EXAMPLES, speech)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("neuralsanitizer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "clean": clean_text,
        "percent": lambda value, digits=1: f"{value:.{digits}%}",
        "symbol": lambda finding: _SYMBOLS[finding],
        "name": _name,
    }
    environment.filters.update(filters)
    return environment


def _name(finding: LabelFinding) -> str:
    """``label 7``, or ``label 14 (stop)`` where it has a name of its own."""
    number = f"label {finding.label}"
    return number if finding.name == str(finding.label) else f"{number} ({clean_text(finding.name, 60)})"
