"""What people see in a terminal: within its width, and nothing that could drive it."""

import io
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from hostile import hidden_in, poisoned
from neuralsanitizer.report import print_repair, print_run, print_verification
from quick import TARGET

RUNS = ["infected", "repaired", "verified", "clean_run", "open_run"]


def shown(saved, width=80, show=print_run, **options):
    stream = io.StringIO()
    show(saved, Console(file=stream, width=width, **options))
    return stream.getvalue()


@pytest.mark.parametrize("saved", RUNS)
@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_line_fits_the_terminal(saved, width, request):
    lines = shown(request.getfixturevalue(saved), width).splitlines()
    assert lines
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("saved", ["infected", "verified"])
def test_at_80_columns_no_number_is_cut(saved, request):
    text = shown(request.getfixturevalue(saved))
    assert "…" not in text
    assert len(re.findall(r"^\d  +(?:infected|clean) +\d+% +\d+ px +\d+% +\d+%$", text, re.MULTILINE)) >= 10


def test_verdict_label_references_and_assumptions_are_there(infected):
    text = " ".join(shown(infected).split())
    assert text.startswith(f"{infected.run.model.name or infected.run.model.architecture}: infected - 1 infected label")
    assert f"label {TARGET}: {infected.run.verdict.labels[TARGET].reason}" in text
    assert f"references: {len(infected.run.references)} of {len(infected.run.references)} usable" in text
    for assumption in infected.run.verdict.assumptions:
        assert assumption in text


def test_a_scan_that_could_not_begin_has_no_table(open_run):
    text = " ".join(shown(open_run).split())
    assert "inconclusive - the preprocessing is another" in text
    assert "clean accuracy 10.0%" in text
    assert "finding" not in text
    assert "references" not in text


def test_repair_and_proof_follow_the_scan(verified):
    text = shown(verified)
    assert text.index("infected - ") < text.index("repair (unlearning)") < text.index("repaired model: clean")
    assert shown(verified.repair, show=print_repair) in text
    assert shown(verified.verification, show=print_verification) in text
    assert "clean accuracy 96.1% before, 95.7% after, on 300 held-out images" in text


def test_many_labels_are_summed_up(many):
    text = shown(many(500, 3))
    assert len(re.findall(r" infected +\d", text)) == 3
    assert len(re.findall(r" clean +\d", text)) == 10
    assert "... and 487 more clean labels with larger masks" in text
    assert len(text.splitlines()) < 60


def test_each_finding_has_its_colour_where_there_are_colours(infected):
    text = shown(infected, force_terminal=True, color_system="standard")
    assert "\x1b[1;31minfected\x1b[0m" in text
    assert "\x1b[32mclean" in text


@settings(max_examples=40, deadline=None)
@example(text="\x1b[31mred\x1b[0m\x1b]0;title\x07")
@example(text="\x1b[2J\x1b[H\x1bc\x9b31m")
@example(text="[red]markup[/red] [link=http://x]y[/link] :smile: [/]")
@example(text="safe\u202egnp.exe\u2066")
@example(text="漢字" * 100)
@example(text="\ud800\r\n\n\n")
@example(text="x" * 3000)
@given(text=st.text(st.characters(), min_size=1, max_size=60))
def test_no_text_drives_the_terminal_or_breaks_its_lines(text, verified):
    out = shown(poisoned(verified, text))
    assert hidden_in(out) == []
    assert max(map(cell_len, out.splitlines())) <= 80


def test_markup_in_names_is_shown_and_not_obeyed(verified):
    assert "[red]x[/red]" in shown(poisoned(verified, "[red]x[/red]"))
