"""The input filter: what it flags, what it costs, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from neuralsanitizer.config import FilterConfig
from neuralsanitizer.errors import DataError, RefusedInputError, RunError, UsageError
from neuralsanitizer.functional import stamped_with
from neuralsanitizer.mitigation.filtering import GuardedModel, fit_filter, load_filter, save_filter
from neuralsanitizer.storage import RunFolder
from quick import TARGET


@pytest.fixture(scope="module")
def triggers(quick_folder):
    return [RunFolder(quick_folder).read().triggers[TARGET]]


@pytest.fixture(scope="module", params=["discriminant", "neural-cleanse"])
def fitted(request, attacked, triggers, clean):
    return fit_filter(attacked.model, triggers, clean, config=FilterConfig(score=request.param, false_alarms=0.1))


def test_planted_triggers_are_flagged_and_clean_inputs_pass(fitted, attacked, unseen):
    guarded = GuardedModel(attacked.model, fitted)
    others = unseen.images[unseen.labels != TARGET]
    stamped = guarded(stamped_with(attacked.triggers[0], others))
    hits = stamped.logits.argmax(dim=1) == TARGET
    assert hits.float().mean() > 0.9
    assert stamped.flagged[hits].float().mean() > 0.9
    clean = guarded(unseen.images)
    assert clean.flagged.float().mean() < 0.15
    assert torch.equal(clean.logits, attacked.model.logits_of(unseen.images))


def test_only_what_goes_to_the_label_is_judged_by_the_discriminant(attacked, triggers, clean, unseen):
    filter_ = fit_filter(attacked.model, triggers, clean)
    flagged = GuardedModel(attacked.model, filter_)(unseen.images)
    assert not flagged.flagged[flagged.logits.argmax(dim=1) != TARGET].any()
    (label,) = filter_.record.labels
    assert label.false_alarms <= 0.05
    assert label.false_alarm_interval[0] <= label.false_alarms <= label.false_alarm_interval[1]
    assert filter_.record.false_alarms <= label.false_alarms
    assert label.missed < 0.05
    assert all(0 <= p.false_alarms <= 1 and 0 <= p.missed <= 1 for p in label.curve)
    assert [p.false_alarms for p in label.curve] == sorted(p.false_alarms for p in label.curve)
    assert filter_.record.seconds_per_input > 0
    assert filter_.record.seconds_per_input_without > 0


def test_refusing_names_the_rows(fitted, attacked, unseen):
    other = unseen.images[unseen.labels != TARGET][:4]
    stamped = stamped_with(attacked.triggers[0], other)
    guarded = GuardedModel(attacked.model, fitted, refuse=True)
    expected = tuple(GuardedModel(attacked.model, fitted)(stamped).flagged.nonzero().flatten().tolist())
    with pytest.raises(RefusedInputError) as error:
        guarded(stamped)
    assert error.value.rows == expected != ()


def test_a_filter_survives_the_disk(fitted, attacked, unseen, tmp_path):
    written = save_filter(fitted, tmp_path / "f.safetensors")
    back = load_filter(tmp_path / "f.safetensors")
    assert back.record == written == replace(fitted.record, tensors_sha256=written.tensors_sha256)
    both = (GuardedModel(attacked.model, filter_)(unseen.images).flagged for filter_ in (fitted, back))
    assert torch.equal(*both)


def test_another_model_s_filter_is_refused(fitted, honest):
    with pytest.raises(RunError, match="fitted for another model"):
        GuardedModel(honest.model, fitted)


def test_files_that_do_not_belong_together_are_refused(fitted, attacked, triggers, clean, tmp_path):
    save_filter(fitted, tmp_path / "a.safetensors")
    other = fit_filter(attacked.model, triggers, clean, seed=5)
    save_filter(other, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    with pytest.raises(RunError, match="is not what"):
        load_filter(tmp_path / "a.safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        load_filter(tmp_path / "none.safetensors")
    (tmp_path / "a.json").write_text(json.dumps([]), encoding="utf-8")
    with pytest.raises(RunError):
        load_filter(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"NAME\.safetensors"):
        load_filter(tmp_path / "a.json")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_rates_that_are_none_are_refused(attacked, triggers, clean, rate):
    with pytest.raises(UsageError, match="between 0 and 1"):
        fit_filter(attacked.model, triggers, clean, config=FilterConfig(false_alarms=rate))


def test_it_needs_triggers_and_images(attacked, triggers, clean):
    with pytest.raises(UsageError, match="no trigger"):
        fit_filter(attacked.model, [], clean)
    with pytest.raises(DataError, match="add some"):
        fit_filter(attacked.model, triggers, clean.split([0.1], seed=0)[0])
