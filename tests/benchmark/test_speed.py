"""``bench speed``: every image that a network is shown is counted, and the plain loop beside it is timed."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch import nn

from neuralsanitizer import config
from neuralsanitizer.benchmark import grid
from neuralsanitizer.benchmark.run import Bench
from neuralsanitizer.benchmark.speed import KINDS, bench_speed, count_images, floors, measure_speed, speed_markdown
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.progress import NoProgress
from quick import QUICK, TARGET

STRAIGHTFORWARD = Path(__file__).parents[2] / "benchmarks" / "straightforward.py"


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def forward(self, images):
        return self.dense(images.flatten(1))


def test_images_are_counted_by_what_they_are_shown_for():
    network, other, images = Tiny(), nn.Linear(4, 3), torch.rand(5, 1, 2, 2)
    with count_images(Tiny) as counts:
        network(images)
        with torch.no_grad():
            network(images[:2])
        network.requires_grad_(False)
        network(images.clone().requires_grad_())
        network(images[:1])
        other(images.flatten(1))
    assert counts == {"other": {"train": 5, "search": 5, "look": 3}}
    network(images)
    assert counts["other"]["look"] == 3


def test_a_plain_loop_takes_longer_with_a_way_back(clean, attacked):
    each = floors(attacked.model, clean)
    assert set(each) == set(KINDS)
    assert 0 < each["look"] < each["search"]
    assert each["look"] < each["train"]


@pytest.fixture(scope="module")
def score(attacked, clean):
    detector = NeuralSanitizer(
        replace(QUICK, reconstruct=replace(QUICK.reconstruct, steps=20, size=config.SizeSchedule(give_up=10)))
    )
    return measure_speed("quick", attacked.model, clean, detector, seed=0, progress=NoProgress())


def test_all_work_of_a_scan_is_counted_by_stage(score):
    references = score.stages["references"].images
    assert references["train"] == 3 * 120 * QUICK.references.fresh_batch
    assert references["look"] > 0
    reconstructed = score.stages["reconstruct"].images
    assert reconstructed["search"] % (2 * QUICK.reconstruct.images) == 0  # the suspect and a guide
    assert reconstructed["search"] <= 2 * 10 * 20 * QUICK.reconstruct.images
    assert reconstructed["train"] == 0
    assert sum(stage.seconds for stage in score.stages.values()) == pytest.approx(score.total, rel=1e-6)
    assert score.floor == pytest.approx(sum(stage.floor for stage in score.stages.values()))
    assert score.stages["references"].floor >= score.seconds_per_image["train"] * references["train"]


def test_the_table_has_every_stage(score):
    page = speed_markdown(score)
    for stage in score.stages:
        assert f"| {stage} |" in page
    assert "| **total** |" in page
    assert score.peak_mb > 100  # torch alone needs more
    assert f"Memory at most: {score.peak_mb:,.0f} MB." in page


def test_the_straightforward_way_finds_a_planted_patch(attacked, clean, monkeypatch):
    """As it is timed, but with fewer steps for its references."""
    spec = spec_from_file_location("straightforward", STRAIGHTFORWARD)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 200)
    suspect = attacked.model
    labels = clean.labels
    mask, pattern = module.reconstruct(
        suspect.module, suspect.module, suspect.normalise(clean.images), labels, TARGET, (-1.0, 1.0)
    )
    assert mask.shape == (28, 28)
    reference = module.tune(suspect.module, suspect.normalise(clean.images), labels, {0, 1, 2})
    with torch.no_grad():
        right = (reference(suspect.normalise(clean.images)).argmax(1) == labels).float().mean()
    assert right > 0.9
    assert pattern.min() >= -1.0


def test_what_stands_beside_is_timed_and_a_file_without_it_is_told(attacked, clean, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def scan(module, images, labels, count):\n    return [count - 1]\n")
    monkeypatch.setattr(Bench, "given", lambda *_: (attacked, clean))
    monkeypatch.setitem(config.PRESETS, "quick", QUICK)
    bench = Bench(tmp_path, tmp_path, torch.device("cpu"), 0, NoProgress())
    case = grid.cases("development")[0]
    with pytest.raises(UsageError, match="has no verdict"):
        bench_speed(bench, case, "neural-sanitizer/quick", (f"{tmp_path / 'own.py'}:verdict",))
    with pytest.raises(UsageError, match="no Python file"):
        bench_speed(bench, case, "neural-sanitizer/quick", (f"{tmp_path / 'none.py'}:scan",))
    with pytest.raises(UsageError, match="unknown executor 'cluster'"):
        bench_speed(bench, case, "neural-sanitizer/quick", ("neural-sanitizer/quick@cluster",))
    own, elsewhere = f"{tmp_path / 'own.py'}:scan", "neural-sanitizer/quick@processes"
    score = bench_speed(bench, case, "neural-sanitizer/quick", (own, elsewhere))
    assert score.others[own].infected == (9,)
    assert score.others[elsewhere].infected == score.infected == (TARGET,)
    assert (tmp_path / "speed" / f"{case.name}--neural-sanitizer-quick--{score.environment.dtype}.json").is_file()
