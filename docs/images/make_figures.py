"""Draw the figures of ../benchmarks.md from the scores and remedies in ../benchmarks: no model is opened.

::

    .venv/bin/python docs/images/make_figures.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib import pyplot as plt

from neuralsanitizer.benchmark.remedies import RemedyScore, read_remedies
from neuralsanitizer.benchmark.run import read_scores
from neuralsanitizer.benchmark.score import Score
from neuralsanitizer.functional import anomaly_indices, calibrated_threshold

FOLDER = Path(__file__).parent
INFECTED, CLEAN, INK, SOFT = "#b3261e", "#1f6feb", "#1c2733", "#5b6673"
HATCHED, PLAIN = "//", ""
ORDER = ("fine-tuning", "pruning", "unlearning-neural-cleanse", "unlearning-neural-sanitizer", "distillation",
         "unlearning", "unlearning-longer", "auto")  # fmt: skip


def main() -> None:
    """Draw all figures whose numbers are there."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    everything = [s for s in read_scores(FOLDER.parent / "benchmarks") if s.seed == 0 and ":" not in s.preset]
    remedies = [r for r in read_remedies(FOLDER.parent / "benchmarks") if r.found]
    attacks(everything)
    indices([s for s in everything if (s.method, s.preset) == ("neural-cleanse", "default")])
    sizes(everything)
    if remedies:
        filters(remedies)
        pruning(remedies)
        repairs(remedies)


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure, without the date that would make it another file each time."""
    figure.savefig(FOLDER / f"{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def attacks(scores: Sequence[Score]) -> None:
    """Clean accuracy and attack success of the models, by what was planted."""
    models = {s.case: s for s in scores if s.planted}
    groups = sorted({_kind(s) for s in models.values()})
    figure, axes = plt.subplots(figsize=(7.5, 0.3 * len(groups) + 1))
    for place, group in enumerate(groups):
        of = [s for s in models.values() if _kind(s) == group]
        success, accuracy = fmean(fmean(s.attack_success) for s in of), fmean(s.clean_accuracy for s in of)
        axes.barh(place + 0.2, success, 0.38, color=INFECTED, hatch=HATCHED, edgecolor="white")
        axes.barh(place - 0.2, accuracy, 0.38, color=CLEAN)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_title("Attack success (hatched) and clean accuracy, mean over the models", loc="left")
    save(figure, "attacks")


def _kind(score: Score) -> str:
    family = score.case.partition("-")[0]
    return f"{score.group if score.split == 'attacks' else 'patch'} ({family})"


def indices(scores: Sequence[Score]) -> None:
    """The anomaly index of Neural Cleanse: of the planted labels, and the largest one of clean models."""
    infected, clean = [], []
    for s in scores:
        by_label = dict(enumerate(anomaly_indices(list(s.sizes))))
        if not s.planted:
            clean.append(max(by_label.values()))
        elif len(s.planted) < s.labels / 2:
            infected += [by_label[label] for label in s.planted]
    figure, axes = plt.subplots(figsize=(7.5, 2.2))
    box(axes, [clean, infected], ["clean models,\nlargest index", "planted labels"])
    for value, name, side in (
        (2.0, "classic threshold ", "right"),
        (calibrated_threshold(10, 0.05), " calibrated, 10 labels", "left"),
    ):
        axes.axvline(value, color=SOFT, linestyle=":")
        axes.text(value, 2.6, name, ha=side, color=SOFT)
    axes.set_xscale("symlog")
    axes.set_xticks((ticks := [-3, -1, 0, 1, 3, 10, 30]), [str(tick) for tick in ticks])
    axes.set_xlabel("anomaly index")
    save(figure, "anomaly-index")


def sizes(scores: Sequence[Score]) -> None:
    """Mask sizes of planted labels and of all others, by detector."""
    data, names = [], []
    for method, preset in (("neural-cleanse", "default"), ("neural-sanitizer", "default")):
        of = [s for s in scores if (s.method, s.preset) == (method, preset) and s.split == "reported"]
        of = [s for s in of if s.case.startswith(("small", "mnist", "weak", "overfitted"))]
        planted = [s.sizes[label] for s in of for label in s.planted if s.sizes]
        others = [size for s in of for label, size in enumerate(s.sizes) if label not in s.planted]
        data += [others, planted]
        names += [f"{method},\nother labels", f"{method},\nplanted labels"]
    figure, axes = plt.subplots(figsize=(7.5, 3))
    box(axes, data, names)
    axes.set_xscale("log")
    axes.set_xlabel("L1 norm of the reversed mask, in pixels of 784 (MNIST)")
    save(figure, "mask-sizes")


def box(axes: plt.Axes, data: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Box plots, one a line, infected ones told by colour and hatches."""
    drawn = axes.boxplot(data, orientation="horizontal", patch_artist=True, widths=0.6, tick_labels=names)
    for i, patch in enumerate(drawn["boxes"]):
        patch.set(facecolor=INFECTED if i % 2 else CLEAN, alpha=0.75, hatch=HATCHED if i % 2 else PLAIN)
    for median in drawn["medians"]:
        median.set(color=INK, linewidth=2)


def filters(remedies: Sequence[RemedyScore]) -> None:
    """What filters let pass, a line a model."""
    figure, both = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
    for axes, name in zip(both, ("discriminant", "neural-cleanse"), strict=True):
        curves = [r.filters[name].curve for r in remedies if name in r.filters]
        for curve in curves:
            axes.plot([p.false_alarms for p in curve], [p.missed for p in curve], color=INFECTED, alpha=0.5)
        axes.axvline(0.05, color=SOFT, linestyle=":")
        axes.set_title(f"{name} ({len(curves)} models)", loc="left")
        axes.set_xlim(0, 0.4)
        axes.set_xlabel("false alarms among clean images judged")
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_formatter("{x:.0%}")
    both[0].set_ylabel("planted attacks that pass")
    save(figure, "filter-roc")


def pruning(remedies: Sequence[RemedyScore]) -> None:
    """Reversed trigger's success and clean accuracy by the share of neurons silenced."""
    figure, axes = plt.subplots(figsize=(7.5, 3))
    for r in remedies:
        curve = [p for p in r.repairs["pruning"].curve if p.layer == "dense"] if "pruning" in r.repairs else []
        axes.plot([p.share for p in curve], [p.attack_success for p in curve], color=INFECTED, alpha=0.6)
        axes.plot([p.share for p in curve], [p.clean_accuracy for p in curve], color=CLEAN, alpha=0.6, linestyle="--")
    axes.set_xlabel("share of the second-to-last layer's neurons silenced")
    axes.set_title("Reversed trigger's success (full lines), clean accuracy (dashed)", loc="left")
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    save(figure, "pruning")


def repairs(remedies: Sequence[RemedyScore]) -> None:
    """The planted trigger's success and the clean accuracy lost, by method."""
    methods = [m for m in ORDER if any(m in r.repairs for r in remedies)]
    scores = [[(r, r.repairs[m].score) for r in remedies if m in r.repairs and r.repairs[m].score] for m in methods]
    left = [[100 * max(score.attack_success) for _, score in of] for of in scores]
    lost = [[100 * (r.clean_accuracy - score.clean_accuracy) for r, score in of] for of in scores]
    figure, both = plt.subplots(1, 2, figsize=(7.5, 0.34 * len(methods) + 1), sharey=True)
    for axes, data, colour, what in zip(
        both,
        (left, lost),
        (INFECTED, CLEAN),
        ("planted ASR after repair, %", "clean accuracy lost, points"),
        strict=True,
    ):
        drawn = axes.boxplot(data, orientation="horizontal", patch_artist=True, widths=0.6, tick_labels=methods)
        for patch in drawn["boxes"]:
            patch.set(facecolor=colour, alpha=0.75)
        for median in drawn["medians"]:
            median.set(color=INK, linewidth=2)
        axes.set_xlabel(what)
    both[0].set_xscale("symlog")
    both[0].axvline(1, color=SOFT, linestyle=":")
    both[1].axvline(0.5, color=SOFT, linestyle=":")
    save(figure, "repairs")


if __name__ == "__main__":
    main()
