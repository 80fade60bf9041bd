"""Detectors with one thing changed, by name: what each part of the method is worth.

``METHOD/PRESET`` is a detector as users have it, ``METHOD/PRESET:ABLATION`` the same with a change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from neuralsanitizer.config import NeuralSanitizerConfig, ReferencePlan, SizeSchedule, neural_sanitizer_config
from neuralsanitizer.detectors.base import Detector
from neuralsanitizer.detectors.neural_sanitizer import NeuralSanitizer
from neuralsanitizer.errors import UsageError
from neuralsanitizer.pipeline import build_detector

__all__ = ["ABLATIONS", "Ablation", "detector_named"]


@dataclass(frozen=True)
class Ablation:
    """One change to NeuralSanitizer's settings.

    Attributes:
        name: As on the command line.
        what: What is other than usual, for the tables.
        change: Makes the changed settings.
    """

    name: str
    what: str
    change: Callable[[NeuralSanitizerConfig], NeuralSanitizerConfig]


def _without_guides(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """Neural Cleanse's question, "how small can it be?", and the rest of the method as it is."""
    reconstruct = replace(
        config.reconstruct, steps=800, learning_rate=0.05, mask_cells=0, start=0.5, size=SizeSchedule()
    )
    references = replace(config.references, guides=())
    return replace(config, references=references, reconstruct=reconstruct)


def _tuned(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """As many references of each role as usual, all tuned as published."""
    layers = iter(((1, 2, 3), (2, 3), (1, 2), (1, 3), (2,), (3,), (1,)))
    guides = tuple(ReferencePlan("tuned", next(layers)) for _ in config.references.guides)
    tests = tuple(ReferencePlan("tuned", next(layers)) for _ in config.references.tests)
    return replace(config, references=replace(config.references, guides=guides, tests=tests))


def _distilled(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """As many references of each role as usual, all of which learn the suspect's own outputs."""
    guides, tests = (
        tuple(ReferencePlan("derived" if number else "distilled") for number, _ in enumerate(plans))
        for plans in (config.references.guides, config.references.tests)
    )
    return replace(config, references=replace(config.references, guides=guides, tests=tests))


def _any_size(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """Changes of colours without a size term, as published."""
    return config if config.colours is None else replace(config, colours=replace(config.colours, size=None))


def _one_look(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    return replace(config, verdict=replace(config.verdict, restarts=0, doubtful_looks=0))


def _long_search(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """Labels are searched twice to four times as long before they are let go."""
    if config.reconstruct.size is None:
        return config
    size = replace(config.reconstruct.size, give_up=400, patience=200, least_gain=0.02)
    return replace(config, reconstruct=replace(config.reconstruct, size=size))


def _long_references(config: NeuralSanitizerConfig) -> NeuralSanitizerConfig:
    """References whose first cycle has 6.5 times as many images, and which are done a little later."""
    references = replace(config.references, fresh_batch=100, fresh_cycles=(250, 1000), enough_agreement=0.97)
    return replace(config, references=references)


def _tuned_at(rate: float) -> Callable[[NeuralSanitizerConfig], NeuralSanitizerConfig]:
    return lambda c: replace(c, references=replace(c.references, learning_rate=rate))


ABLATIONS = {
    ablation.name: ablation
    for ablation in (
        Ablation("nc-inversion", "no guides: Neural Cleanse's reconstruction", _without_guides),
        Ablation(
            "one-guide",
            "one guide instead of several",
            lambda c: replace(c, references=replace(c.references, guides=c.references.guides[:1])),
        ),
        Ablation("tuned-references", "references tuned as published, instead of trained from scratch", _tuned),
        Ablation("distilled-references", "references that learnt the suspect's outputs from scratch", _distilled),
        Ablation("patches-only", "changes of colours are not looked for", lambda c: replace(c, colours=None)),
        Ablation(
            "closed-start",
            "the mask starts closed",
            lambda c: replace(c, reconstruct=replace(c.reconstruct, start=0.0)),
        ),
        Ablation(
            "pixel-mask",
            "a mask of pixels, not of cells",
            lambda c: replace(c, reconstruct=replace(c.reconstruct, mask_cells=0)),
        ),
        Ablation(
            "no-size",
            "no size term",
            lambda c: replace(c, reconstruct=replace(c.reconstruct, size=None, size_again=None)),
        ),
        Ablation(
            "critical-features",
            "critical features preserved",
            lambda c: replace(c, preserve=replace(c.preserve, enabled=True)),
        ),
        Ablation(
            "no-critical-features",
            "critical features not preserved",
            lambda c: replace(c, preserve=replace(c.preserve, enabled=False)),
        ),
        Ablation(
            "no-comparison",
            "no comparison with clean models",
            lambda c: replace(c, counterparts=replace(c.counterparts, stand_ins=0)),
        ),
        Ablation("one-look", "no further look at unclear or doubtful labels", _one_look),
        Ablation("colours-of-any-size", "changes of colours without a size term", _any_size),
        Ablation("long-search", "the reconstruction goes on two to four times as long", _long_search),
        Ablation("long-references", "references with a first cycle of 6.5 times as many images", _long_references),
        Ablation(
            "ten-images",
            "ten images a label and step in the comparison with clean models instead of five",
            lambda c: replace(c, counterparts=replace(c.counterparts, images=10)),
        ),
        *(
            Ablation(f"tuned-at-{rate:g}", f"references tuned with a learning rate of {rate:g}", _tuned_at(rate))
            for rate in (1e-2, 1e-4, 1e-5)
        ),
    )
}


def detector_named(name: str, cache: Path | None = None) -> Detector:
    """The detector that ``METHOD/PRESET`` or ``METHOD/PRESET:ABLATION`` stands for.

    Args:
        name: As on the command line.
        cache: As for :func:`neuralsanitizer.pipeline.build_detector`.

    Raises:
        UsageError: There is no such method, preset or ablation, or the method has no ablations.
    """
    method, _, rest = name.partition("/")
    preset, _, ablation = rest.partition(":")
    detector = build_detector(method, preset or "default", cache)
    if not ablation:
        return detector
    if ablation not in ABLATIONS:
        raise UsageError(f"unknown ablation {ablation!r}: choose one of {', '.join(ABLATIONS)}")
    if not isinstance(detector, NeuralSanitizer):
        raise UsageError(f"{method} has no ablations; NeuralSanitizer has")
    changed = ABLATIONS[ablation].change(neural_sanitizer_config(detector.preset))
    return NeuralSanitizer(replace(changed, preset=f"{detector.preset}:{ablation}"), detector.shared)
