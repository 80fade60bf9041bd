"""The input filter: what it flags, what it costs, and what it refuses."""

import copy
import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuralsanitizer.config import FilterConfig
from neuralsanitizer.errors import DataError, RefusedInputError, RunError, UsageError
from neuralsanitizer.functional import stamped_with
from neuralsanitizer.mitigation.filtering import GuardedModel, fit_filter, load_filter, save_filter
from neuralsanitizer.models import state_dict_hash
from neuralsanitizer.records import to_json
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
    assert label.false_alarm_interval[0] <= 0.05 <= label.false_alarm_interval[1]
    assert label.false_alarm_interval[0] <= label.false_alarms <= label.false_alarm_interval[1]
    assert filter_.record.false_alarms <= label.false_alarms
    assert label.missed < 0.05
    assert all(0 <= p.false_alarms <= 1 and 0 <= p.missed <= 1 for p in label.curve)
    assert [p.false_alarms for p in label.curve] == sorted(p.false_alarms for p in label.curve)
    assert filter_.record.seconds_per_input > 0
    assert filter_.record.seconds_per_input_without > 0
    assert filter_.record.seconds_single > filter_.record.seconds_per_input
    assert filter_.record.seconds_single_without > 0


def test_false_alarms_are_measured_on_images_that_set_no_threshold(attacked, triggers, clean):
    """At the threshold that they set, never more than the wanted share of images would be flagged."""
    config = FilterConfig(score="neural-cleanse")
    records = [fit_filter(attacked.model, triggers, clean, config=config, seed=seed).record for seed in range(5)]
    assert max(record.false_alarms for record in records) > 0.05
    assert all(record.false_alarm_interval[0] <= 0.05 <= record.false_alarm_interval[1] for record in records)


def test_many_labels_raise_no_more_false_alarms_than_one(attacked, quick_folder, clean, unseen):
    four = [RunFolder(quick_folder).read().triggers[label] for label in (1, 3, 5, TARGET)]
    filter_ = fit_filter(attacked.model, four, clean, config=FilterConfig(score="neural-cleanse"))
    assert all(label.false_alarms < 0.05 for label in filter_.record.labels)
    assert filter_.record.false_alarm_interval[0] <= 0.05 <= filter_.record.false_alarm_interval[1]
    assert GuardedModel(attacked.model, filter_)(unseen.images).flagged.float().mean() < 0.08


def test_threads_get_their_own_answers(fitted, attacked, unseen):
    guarded = GuardedModel(attacked.model, fitted)
    others = unseen.images[unseen.labels != TARGET]
    stamped = stamped_with(attacked.triggers[0], others)
    inputs = [stamped[:50], others[:30], stamped[50:70], others[30:31]]
    alone = [guarded(images).flagged for images in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        answers = [(i, pool.submit(guarded, inputs[i])) for _ in range(50) for i in range(len(inputs))]
    assert all(torch.equal(answer.result().flagged, alone[i]) for i, answer in answers)


def test_a_guarded_network_can_be_copied_and_pickled_and_stays_frozen(fitted, attacked, unseen):
    guarded, again = (GuardedModel(attacked.model, fitted) for _ in range(2))
    for copied in (copy.deepcopy(guarded), again):
        assert torch.equal(copied(unseen.images).flagged, guarded(unseen.images).flagged)
    module = pickle.loads(pickle.dumps(attacked.model.module))
    assert torch.equal(attacked.model.with_module(module).logits_of(unseen.images), guarded(unseen.images).logits)
    assert set(guarded.state_dict()) == {f"module.{name}" for name in attacked.model.module.state_dict()}
    assert not any(parameter.requires_grad for parameter in guarded.parameters())


def test_a_model_in_memory_is_known_by_its_weights(fitted, attacked, honest, unseen):
    unnamed = replace(attacked.model, sha256="")
    filter_ = replace(fitted, record=replace(fitted.record, model_sha256=state_dict_hash(unnamed.module)))
    assert len(GuardedModel(unnamed, filter_)(unseen.images).flagged) == len(unseen.images)
    with pytest.raises(RunError, match="fitted for another model"):
        GuardedModel(replace(honest.model, sha256=""), filter_)


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


@pytest.mark.parametrize("part", ["weights", "offsets", "scales", "targets"])
def test_parts_of_other_shapes_are_refused(part, fitted, tmp_path):
    """Also where the record was made to fit: whoever changes one file can change both."""
    record = save_filter(fitted, tmp_path / "a.safetensors")
    parts = load_file(tmp_path / "a.safetensors")
    save_file({**parts, part: parts[part].flatten()[0].clone()}, tmp_path / "a.safetensors")
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    (tmp_path / "a.json").write_text(json.dumps(to_json(replace(record, tensors_sha256=digest))), encoding="utf-8")
    with pytest.raises(RunError, match="is damaged"):
        load_filter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_rates_that_are_none_are_refused(attacked, triggers, clean, rate):
    with pytest.raises(UsageError, match="between 0 and 1"):
        fit_filter(attacked.model, triggers, clean, config=FilterConfig(false_alarms=rate))


def test_it_needs_triggers_and_images(attacked, triggers, clean):
    with pytest.raises(UsageError, match="no trigger"):
        fit_filter(attacked.model, [], clean)
    with pytest.raises(DataError, match="add some"):
        fit_filter(attacked.model, triggers, clean.split([0.1], seed=0)[0])
