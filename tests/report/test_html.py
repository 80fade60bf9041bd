"""The page: what it says, that it fetches nothing, and that no text can change its structure."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hostile import HOSTILE, hidden_in, poisoned
from neuralsanitizer.records import Run, Trigger, from_json, to_json
from neuralsanitizer.report import render_html
from neuralsanitizer.storage import RunFolder
from pages import Page
from quick import TARGET

RUNS = ["infected", "repaired", "verified", "clean_run", "open_run", "guarded", "cleansed"]


@pytest.fixture(params=RUNS)
def page(request):
    return Page(render_html(request.getfixturevalue(request.param)))


def test_the_page_fetches_nothing_and_runs_nothing(page):
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video", "image", "use"}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has {name}"
            assert name not in {"href", "srcset", "action", "background", "poster", "style"}, f"{tag} has {name}"
            if name == "src":
                assert value.startswith("data:image/png;base64,")
            elif name != "xmlns":  # a name, which nobody fetches
                assert "://" not in (value or "")
    assert not re.search(r"url\(|@import|expression\(|://", page.style)


def test_every_picture_is_a_png_of_the_input_and_says_what_it_is(infected):
    pictures = Page(render_html(infected)).all("img")
    assert len(pictures) == 3 + 1 + 2 * 4  # mask, pattern, both; heat; four pairs
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2], validate=True))) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (28, 28))
        assert picture["alt"]


def decoded(picture):
    with Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))) as image:
        return np.asarray(image)


def test_the_pictures_show_the_trigger_and_what_it_does(infected):
    trigger = infected.triggers[TARGET]
    mask, pattern, applied, _, *pairs = map(decoded, Page(render_html(infected)).all("img"))
    np.testing.assert_array_equal(mask, np.rint(trigger.mask * 255))
    np.testing.assert_array_equal(pattern, np.rint(trigger.pattern[0] * 255))
    np.testing.assert_array_equal(applied, np.rint(trigger.pattern[0] * trigger.mask * 255))
    others = infected.examples[infected.example_labels != TARGET][:, 0]
    assert len(pairs) == 8
    for before, after, clean in zip(pairs[::2], pairs[1::2], others, strict=False):
        np.testing.assert_array_equal(before, clean)
        stamped = clean / 255 * (1 - trigger.mask) + trigger.pattern[0] * trigger.mask
        np.testing.assert_allclose(after, stamped * 255, atol=0.6)


def test_verdict_label_numbers_and_assumptions_are_there(infected):
    page = Page(render_html(infected))
    finding = infected.run.verdict.labels[TARGET]
    assert "◆ Infected" in page.visible
    assert f"◆ label {TARGET}: infected" in page.visible
    assert page.visible.count(": infected ") == 1
    assert f"{finding.attack_success:.1%}" in page.visible
    assert f"{finding.mask_size:.0f} px" in page.visible
    assert infected.run.model.sha256 in page.visible
    for assumption in infected.run.verdict.assumptions:
        assert assumption in page.visible
    for reference in infected.run.references:
        assert reference.name in page.visible


@pytest.mark.parametrize(
    ("saved", "said", "unsaid"),
    [
        ("infected", ["Infected", "The triggers"], ["Before and after repair", "No backdoor found"]),
        ("clean_run", ["No backdoor found", "What was assumed"], ["The triggers", "Infected", "Before and after"]),
        ("open_run", ["Inconclusive", "the preprocessing is another"], ["The triggers", "What was assumed"]),
        ("repaired", ["Before and after repair", "Repaired, not yet verified"], ["After repair:"]),
        ("verified", ["After repair: proven clean of what was found", "The fresh scan of the repaired model"],
         ["not yet verified"]),
    ],
)  # fmt: skip
def test_what_was_not_done_is_not_shown(saved, said, unsaid, request):
    visible = Page(render_html(request.getfixturevalue(saved))).visible
    assert [text for text in said if text not in visible] == []
    assert [text for text in unsaid if text in visible] == []


def test_before_and_after_are_the_repairs_numbers_and_later_the_proofs(repaired, verified):
    visible = Page(render_html(repaired)).visible
    (trigger,) = repaired.repair.triggers
    assert f"to label {TARGET}" in visible
    for rate in (trigger.attack_success_before, trigger.attack_success_after, repaired.repair.clean_accuracy_after):
        assert f"{rate:.1%}" in visible
    assert "98.7%" in Page(render_html(verified)).visible
    assert "95.7%" in Page(render_html(verified)).visible


def test_a_repair_of_another_model_is_marked(repaired):
    assert "another model than this page's scan" not in Page(render_html(repaired)).visible
    other = replace(repaired, repair=replace(repaired.repair, source_sha256="0" * 64))
    assert "another model than this page's scan" in Page(render_html(other)).visible


def test_the_same_run_gives_the_same_page_wherever_its_folder_is(quick_folder, infected):
    assert render_html(RunFolder(quick_folder).read()) == render_html(infected)


def test_labels_are_told_apart_without_colour(infected):
    """By shape and word: red and green are one to many."""
    page = Page(render_html(infected))
    assert [a["class"] for a in page.all("path")] == ["infected"]
    assert [a["class"] for a in page.all("circle")] == ["clean"] * 9
    assert "◆ infected ▲ inconclusive ● clean" in page.visible


@pytest.mark.parametrize(("count", "marked"), [(150, 0), (150, 3), (150, 150), (3000, 20)])
def test_many_labels_stay_within_bounds(many, count, marked):
    html = render_html(many(count, marked))
    page = Page(html)
    assert len(page.all("article")) == min(marked, 12)
    shapes = page.all("path") + page.all("circle")
    assert len(shapes) == 40
    assert len(page.all("path")) == min(marked, 40)  # the infected come first
    assert f"smallest and marked of {count} labels" in page.visible
    rows = [a for a in page.all("tr") if a.get("class") in {"clean", "infected"}]
    assert len(rows) == min(count, 2000)
    assert (f"{marked - 12} further labels" in page.visible) == (marked > 12)
    assert len(html) < 2_000_000


def with_examples(function):
    for text in HOSTILE:
        function = example(text=text)(function)
    return function


@settings(max_examples=40, deadline=None)
@with_examples
@given(text=st.text(st.characters(), max_size=60))
def test_no_text_changes_the_pages_structure_or_hides_in_it(text, verified):
    page = Page(render_html(poisoned(verified, text)))
    assert page.shape == Page(render_html(poisoned(verified, "benign" if text else ""))).shape
    for part in ("".join(page.text), *[value for _, attributes in page.elements for value in attributes.values()]):
        assert hidden_in(part or "") == []


def test_every_text_field_of_a_run_is_poisoned_by_the_test_above(verified):
    """Fields that are added later must be added there too."""

    def texts(value, where=""):
        if isinstance(value, dict):
            return [p for k, v in value.items() for p in texts(v, f"{where}.{k}")]
        if isinstance(value, list):
            return [p for v in value for p in texts(v, where)]
        return [where] if isinstance(value, str) and value and "EVIL" not in value else []

    known = {".verdict.finding", ".verdict.labels.finding"}  # enumerations
    assert set(texts(to_json(poisoned(verified, "EVIL").run))) <= known
    assert from_json(Run, to_json(poisoned(verified, "1.EVIL").run)).verdict.reason == "1.EVIL"  # a folder may hold it


def test_a_long_name_does_not_blow_up_the_page(verified):
    short, long = (len(render_html(poisoned(verified, letter))) for letter in ("x", "x" * 100_000))
    assert long < short + 400_000 + 200_000  # of which the settings, shown as they are, are most


def test_images_of_any_channels_and_size_can_be_shown(infected):
    for shape in ((3, 40, 30), (2, 5, 5), (1, 600, 300)):
        generator = np.random.default_rng(0)
        trigger = Trigger(TARGET, generator.random(shape[1:], np.float32), generator.random(shape, np.float32))
        run = replace(infected.run, model=replace(infected.run.model, input_shape=shape))
        examples = generator.integers(0, 256, (8, *shape), np.uint8)
        saved = replace(infected, run=run, triggers={TARGET: trigger}, examples=examples)
        pictures = [decoded(p) for p in Page(render_html(saved)).all("img")]
        assert all(max(picture.shape[:2]) == min(max(shape[1:]), 256) for picture in pictures)


def test_both_thresholds_of_neural_cleanse_are_drawn(cleansed):
    page = render_html(cleansed)
    metrics = cleansed.run.verdict.labels[TARGET].metrics
    assert "classic threshold 2.0" in page
    assert f"calibrated threshold {metrics['threshold_calibrated']:.1f}" in page
    assert f"{TARGET}: {metrics['anomaly_index']:.1f}" in page


def test_scans_without_an_index_draw_none(infected):
    assert "anomaly ind" not in render_html(infected).lower()


def test_what_pruning_did_and_what_the_filter_passes_are_drawn(guarded):
    page = render_html(guarded)
    assert "What pruning did" in page
    assert "What the filter lets pass" in page
    assert f"label {TARGET}" in page
