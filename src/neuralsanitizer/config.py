"""Every setting, with where its default comes from. Nothing else in the package holds a threshold or a seed.

Sources: "NS" is NeuralSanitizer (Zhu et al., IEEE TIFS 2024), "NS code" its authors' public code, "NC" is Neural
Cleanse (Wang et al., IEEE S&P 2019), "NC code" its authors' public code; "measured" is our own trial on
development models, often of few models and one seed: where no command is named, a lead that the benchmark's ablations
have yet to confirm. What the whole does on other models is in docs/benchmarks.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neuralsanitizer.errors import UsageError

__all__ = [
    "NEURAL_CLEANSE_PRESETS",
    "PRESETS",
    "UNLEARN_PRESETS",
    "AttackConfig",
    "ColourConfig",
    "CounterpartConfig",
    "MfccConfig",
    "NeuralCleanseConfig",
    "NeuralSanitizerConfig",
    "PreserveConfig",
    "ReconstructConfig",
    "ReferenceConfig",
    "ReferencePlan",
    "ScreenConfig",
    "SelfCheckConfig",
    "SizeSchedule",
    "TransferConfig",
    "UnlearnConfig",
    "VerdictConfig",
    "VerifyConfig",
    "neural_sanitizer_config",
]


@dataclass(frozen=True)
class MfccConfig:
    """How recordings of speech become pictures of their MFCC.

    Raises:
        UsageError: A value is out of range.
    """

    seconds: float = 1.0
    """Recordings are cut or filled up with silence to this length. 99 % of the Free Spoken Digit Dataset's are shorter
    than 0.92 s (measured)."""
    window: float = 0.032
    """Seconds a frame: 256 samples at 8 kHz, within the usual 20 to 40 ms."""
    hop: float = 0.016
    """Seconds from frame to frame: half a window, as usual."""
    mels: int = 32
    """Mel filters (librosa has 128, for music at 22 kHz; 8 kHz leave no room for so many)."""
    coefficients: int = 20
    """Cepstral coefficients (librosa)."""
    lifter: int = 22
    """Higher coefficients, which are small, are raised to the size of the lower ones (HTK: 22); 0: they are not."""
    scale: float = 1000.0
    """Decibels of a liftered coefficient that the range of pixel values, 1, stands for. Of the same data no coefficient
    should leave it: before liftering they reach 135, the second one, and less (estimated from these)."""

    def __post_init__(self) -> None:
        if not (0 < self.hop <= self.window <= self.seconds <= 60 and 1 <= self.coefficients <= self.mels <= 512):
            raise UsageError(
                "MFCC need 0 < hop <= window <= seconds <= 60 and 1 <= coefficients <= mels <= 512, got "
                f"hop={self.hop:g}, window={self.window:g}, seconds={self.seconds:g}, "
                f"coefficients={self.coefficients}, mels={self.mels}"
            )
        if not (0 < self.scale < float("inf") and (self.lifter == 0 or self.lifter >= self.coefficients)):
            raise UsageError(
                "MFCC need a positive scale and a lifter of 0 or at least the number of coefficients, got "
                f"scale={self.scale:g}, lifter={self.lifter}"
            )


ReferenceKind = Literal["tuned", "scratch", "distilled", "derived"]


@dataclass(frozen=True)
class SelfCheckConfig:
    """When a scan refuses to judge, because the model does not do its job on the clean set."""

    held_out_share: float = 0.2
    """Share of the clean set that no reference trains on and no trigger is fitted to (measured: 200 images and more
    tell an attack success of 0.95 from 0.80)."""
    least_images_per_label: int = 5
    """Fewer images of a label than this leave its references without a notion of it."""
    least_gain_over_chance: float = 0.5
    """The accuracy must reach this share of the way from chance to 1: wrong preprocessing of a sound model lands near
    chance, while the weakest sound models that we scanned were above 0.9."""


@dataclass(frozen=True)
class ReferencePlan:
    """One reference: how it is made.

    Attributes:
        kind: ``tuned``, ``scratch``, ``distilled`` or ``derived``.
        layers: For ``tuned``: which of the last three layers are re-initialised (1 is the third-last).
    """

    kind: ReferenceKind
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Short name, without a number."""
        return f"{self.kind}-{'+'.join(map(str, self.layers))}" if self.layers else self.kind


@dataclass(frozen=True)
class ReferenceConfig:
    """How references are made: NS section on PNNIR for tuned ones, our own for the others."""

    guides: tuple[ReferencePlan, ...] = (ReferencePlan("scratch"),) * 3
    """They constrain the reconstruction. Measured: with one guide, clean labels reach 0.9 attack success too, with
    four they do not differ from three. Tuned references often keep the backdoor, and distilled ones learn one that is
    in every image a little, or half there in some; what learnt the true labels alone does not. Measured on GTSRB: 7
    to 81 % attack success on distilled ones (Trojan models of twelve labels, a white 14x14 patch), 0.0 % on those
    from scratch (``bench run --split development --only 'dev-signs-trojan-*'``)."""
    tests: tuple[ReferencePlan, ...] = (ReferencePlan("scratch"),) * 2
    """The transfer test; never the guides, which the trigger was fitted to leave unharmed."""
    weight_bound: float = 0.1
    """NS: re-initialised weights are uniform in [-0.1, 0.1]."""
    batch: int = 100
    """NS: 100 (NS code: 50)."""
    frozen_steps: int = 300
    """NS code: steps with all other layers frozen, for one re-initialised layer."""
    frozen_steps_many: int = 600
    """NS code: the same for two layers and more."""
    steps: int = 3000
    """NS code: at most so many steps of the whole network."""
    learning_rate: float = 1e-3
    """NS: for MNIST, GTSRB and CIFAR-10."""
    stop_accuracy: float = 0.99
    """NS code: stop once a check of 200 images exceeds it."""
    stop_images: int = 200
    """NS code."""
    output_scale: float = 0.3
    """Standard deviation of the outputs of fresh weights that are scaled to unit variance. Measured on
    ``dev-small-14x14`` and ``-17x17``, first looks of eight seeds: with 1 the planted labels exceed references by -0.03
    to 0.72 and 0.49 to 0.83, of the others none by more than 0.40; with 0.3 by 0.28 to 0.93 and 0.55 to 0.83, the
    others by 0.47; with 0.1 by 0.45 to 0.93 and 0.67 to 0.84, the others by 0.71 (0.69 with torch's weights as they
    are). Twelve signs are learnt to 98 to 99 %, 96 to 98 % and 89 to 98 %; with torch's weights, in one cycle of 500
    steps, to 52 to 88 %."""
    fresh_batch: int = 32
    """Images a step of all references but tuned ones (``benchmarks/references.py``). With torch's own fresh weights
    twelve signs need 32,000 images in batches of 64 for 95 %."""
    fresh_cycles: tuple[int, ...] = (120, 400, 800, 1600)
    """Steps of each cycle of a distilled or scratch reference: after one it is done if it reached ``enough_agreement``.
    Measured likewise, share of held-out images that are named rightly: on MNIST 96 to 97 % after the first (3,840
    images), on twelve labels of GTSRB 96 to 98 % after the second, or 99 % after the third; on all 43 labels 97 to 99 %
    after the third (42,240 images; with 2,000 steps in one go in its place, 80,640), on 1,307 labels 73 and 76 % after
    the fourth (70 and 74 % with the 2,000)."""
    derived_cycles: tuple[int, ...] = (100, 200)
    """Likewise of a derived reference, whose ancestor is the first distilled one of the same role. Measured: 300 steps
    reach on GTSRB what a fresh network needs 1,000 for."""
    inherited: float = 0.5
    """Share of the ancestor's weights in a derived reference; the rest is fresh (measured)."""
    fresh_learning_rate: float = 3e-3
    """Peak of each one-cycle schedule (``benchmarks/references.py``)."""
    enough_agreement: float = 0.95
    """Share of the clean images that are not held out on which a reference, to be done, names the suspect's label; one
    from scratch, the true label."""
    enough_images: int = 1000
    """So many of them are asked for it, at most: all 4,000 cost a third of a first cycle (``bench speed``, seconds an
    image)."""
    largest_shift: float = 0.08
    """Images are shifted by up to this share of the edge, to distil on and to train on from scratch (measured)."""
    attempts: int = 2
    """How often a reference that came out unusable is made, each time from other weights."""
    least_agreement: float = 0.7
    """A reference that agrees with the suspect on fewer held-out images constrains too little and is not used: one of
    three distilled GTSRB references once collapsed to a constant (measured)."""
    least_accuracy: float = 0.6
    """One from scratch, which does not learn from the suspect, has to name rightly at least this share of the number
    that the suspect does. Measured on 1,307 labels with eight images each: 0.69 of it, whatever the schedule."""


@dataclass(frozen=True)
class SizeSchedule:
    """A weight on the size that finds, for each label, the smallest trigger that works.

    Measured: at a fixed weight infected and clean labels of weak networks both reach full attack success, with masks of
    80 and 300 pixels; scheduled, 7 pixels against 259 and more.
    """

    start: float = 0.003
    every: int = 10
    goal: float = 0.95
    """Mean attack success over ``every`` steps at which the weight grows."""
    grow: float = 1.3
    shrink: float = 1.5
    smallest: float = 1e-4
    largest: float = 0.3
    checked_on: int = 100
    """Images on which what is kept must hold the goal as it is: over the steps before, in which the success is
    averaged, it was larger. Measured on ``dev-signs-trojan-square``: without, a mask of 24 pixels was kept that works
    on 70 % of held-out images, and the label passed for clean; with it one of 28 that works on 95 %."""
    give_up: int = 100
    """A label that never reached the goal by this step is done: it has no trigger under the guides' constraint.
    Measured: infected labels reach it within 40 steps."""
    patience: int = 100
    """A label whose smallest size did not shrink by ``least_gain`` over so many steps is done. Measured on seven
    development models, against 200 steps and a gain of 0.02: half the steps, the masks of infected labels within 15 %.
    Steps after which it was smaller than that, but short of the goal, do not count: it may hold the goal yet. Measured
    (``benchmarks/searches.py --only dev-gtsrb-4x4``, sixteen seeds): the planted 4x4 patch has an excess of 0.87 and
    more with all of them; if all steps counted, with three of them 0.12, 0.28 and 0.59, at masks of 224, 139 and 116
    pixels. The search for it takes 656 steps in place of 471."""
    least_gain: float = 0.05
    """See ``patience``."""


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruction of one potential trigger a label: NS section on potential-trigger reconstruction."""

    steps: int = 800
    """At most. Measured on ``dev-mnist-center``, three seeds: the planted 4x4 patch in the middle of the digits is
    found in one of three with 400 steps (excess 0.27, 0.35, 0.72), in all with 800 (0.82, 0.90, 0.93) (NS: 100)."""
    images: int = 10
    """Images a label and step (NS). 20, tried on two models with another seed, were no better, for twice the time. With
    5 the search takes two thirds of the time, but ends at worse triggers of large patches: measured on
    ``dev-small-14x14``, first looks of eight seeds, references with outputs of 1: a median excess of 0.16, with 10 of
    0.61."""
    learning_rate: float = 0.05
    """In units of the [0, 1] pixel range (NS: 0.1, NS code 0.01, on ranges of width 1)."""
    sharpness: float = 10.0
    """``k`` of the mask (NS)."""
    mask_cells: int = 16
    """The mask has one value a cell, so many along the shorter edge: cells of 2x2 pixels on images of 28x28 and 32x32.
    0: one a pixel (NS). Measured on ``dev-signs-trojan-square``, the infected and three clean labels, 400 steps: pixel
    by pixel the search ends at 114 scattered ones, in whose place clean networks are fooled almost as well (excess
    0.17); by cells at 25 pixels with an excess of 0.94. The clean labels have 0.04 and 0.02 at most."""
    start: float = 0.5
    """Raw mask at the start: half open (NS: 0). Measured: from 0 the second of two triggers was never found."""
    alpha: float = 1.0
    """Weight of the guides' term (NS)."""
    pile_up_share: float = 0.2
    """``v`` as a share of a step's images (NS: v = 2 at 10 images on MNIST and CIFAR-10, 1 elsewhere). Measured on one
    model (25 % trigger), the infected and three other labels, four looks each: the mean excess is 0.64 against 0.37 at
    most at 0.1, and 0.64 against 0.18 at 0.2; single looks come closer (0.58 and 0.44; 0.51 and 0.32)."""
    noise_weight: float = 0.005
    """``beta`` (NS: MNIST, GTSRB, CIFAR-10)."""
    size: SizeSchedule | None = field(default_factory=SizeSchedule)
    """``None``: no size term (NS)."""
    size_again: SizeSchedule | None = field(default_factory=lambda: SizeSchedule(patience=200, least_gain=0.02))
    """Of second looks at labels that are not clear, which are few: the search goes on for longer. Measured on
    ``dev-mnist-14x14``, all looks so: an excess of 0.78 in place of 0.71. ``None``: no size term."""
    label_batch: int = 16
    """Labels that share a forward pass, at most; fewer where their images would fill the memory. The result does not
    depend on it."""


@dataclass(frozen=True)
class ColourConfig:
    """Triggers in feature space, on images of three channels: a change of all colours, as a photo filter's."""

    steps: int = 400
    """At most (NS code: 200). Measured on ``dev-signs-filter-cool-to-1``: an excess of 0.22 with 200, 0.31 with 400."""
    steps_of_like: int = 200
    """Of the search for a change's like on a clean model: NS code's number for the change itself."""
    learning_rate: float = 0.03
    """Measured on the same model (NS code: 0.1)."""
    offset: bool = True
    """Whether each channel is shifted, too: tones brighten shadows. Without, rows sum to at most 1 (NS code)."""
    strongest: float = 3.0
    """Largest absolute value of a coefficient: colours thrice as vivid."""
    least_contrast: float = 0.6
    """The search is kept to changes that keep this share of the images' contrast; 0: to none (NS). A change that leaves
    the picture flat sends every network somewhere, clean ones included: to which label differs from one to the next.
    Measured: photo filters keep 0.8 and more, false alarms on clean traffic-sign networks kept 0.0 to 0.3."""
    contrast_weight: float = 20.0
    """Of the contrast that is missing, in the loss: half of it missing weighs as much as a label that is never reached.
    """
    flat: float = 0.5
    """A change that keeps less contrast than this on held-out images is no trigger; 0: all may be one (NS)."""
    size: SizeSchedule | None = field(default_factory=lambda: SizeSchedule(start=3.0, smallest=0.05, largest=300.0))
    """Likewise, of how much the change changes images: the mean absolute difference in units of the pixel range. The
    likes of it on references may then change as much. ``None``: no size term (NS). Measured on the same model: without
    it the search sends 40 % of images to the planted label, with it all; the numbers of the schedule are not varied."""
    stand_ins: int = 2
    """References that take the suspect's place in the comparison; 0: no comparison (NS)."""


@dataclass(frozen=True)
class ScreenConfig:
    """Which labels of a model with many get the long look: our own.

    Chosen for their cost. On the one model of 1,307 labels that was scanned (``many-8x8``) the planted label is sixth
    in the order of suspicion.
    """

    least_labels: int = 100
    """Fewer labels than these all get the long look at once: GTSRB's 43 take minutes."""
    steps: int = 60
    """Of the short look at a patch: on models of few labels, infected ones reach the goal within 40 (measured). On
    ``many-8x8`` the planted label has the smallest mask of it and 127 others after 60 steps; after 100 of it and 31
    others, by a clearer distance (307 pixels against 531), for nearly twice the time."""
    colour_steps: int = 40
    """Of the short look at a change of colours: a tenth of the long look's at most."""
    images: int = 100
    """Held-out images that the short look is measured on."""
    batch: int = 32
    """Labels that get their long look before it is asked whether to go on."""
    least_share: float = 0.05
    """Share of the labels that get a long look, whatever it finds."""


@dataclass(frozen=True)
class PreserveConfig:
    """Critical-feature preservation: NS section of that name."""

    enabled: bool = False
    """Measured: with several guides it changed no verdict, and a 7x7 heat map removes almost nothing."""
    images: int = 100
    """NS (NS code: 200)."""
    keep: float = 0.95
    """NS: share of the attack success that must remain."""
    step: float = 0.01
    """NS: resolution of the threshold."""


@dataclass(frozen=True)
class TransferConfig:
    """TNDA, the transfer test: NS section of that name."""

    images: int = 200
    """NS: 100 (NS code: 200)."""
    threshold: float = 0.4
    """NS: attack success on a reference at which a trigger "transfers", few labels."""
    threshold_many: float = 0.2
    """NS: the same for many labels."""
    many: int = 40
    """From this number of labels on they are many: GTSRB's 43 is (NS gives 0.4 in one section and 0.2 in another)."""
    transfers_to: int = 1
    """``q``: transfers to at least so many references: an adversarial patch (NS)."""


@dataclass(frozen=True)
class CounterpartConfig:
    """How well a label's mask works on models without a backdoor: our own."""

    stand_ins: int = 3
    """References that take the suspect's place; 0: no comparison (NS)."""
    steps: int = 100
    """Measured: 150 and 200 give the same rates within their scatter."""
    images: int = 5
    """Images a label and step. Measured on 184 triggers of ``dev-small-14x14``, ``-17x17`` and ``-center``: with 10 the
    excess of 172 is the same to 0.05, for twice the time (the ablation ``ten-images``)."""
    enough: float | None = 0.9
    """Attack success over ten steps at which the search on a stand-in is over: clean models have the like of this
    trigger, and how much better it could be made says nothing more. Chosen, as what leaves a clean label's excess at
    a tenth or so; what it changes is in docs/benchmarks.md. ``None``: all steps are taken."""


@dataclass(frozen=True)
class VerdictConfig:
    """When a label is infected."""

    least_attack_success: float = 0.75
    """On held-out images (NS: 0.6). Measured: real triggers keep about 0.9 and more under the guides' constraint."""
    infected_excess: float = 0.55
    """The excess of a label is the attack success on the suspect, less the mean of what the same mask reaches on models
    without a backdoor. From this one on a label is infected, unless the model's other labels have the like (chosen on
    development models and on the demo's)."""
    certain_excess: float = 0.85
    """From this excess on a label is infected whatever the others have: all of them may be. Measured (``bench run
    --split development --only 'dev-overfitted-*'``): a texture planted in a network that learnt 1,500 images by heart
    makes it easier to send to other labels too, with an excess of up to 0.91 and masks of 37 pixels and more."""
    certain_excess_of_small: float = 0.75
    """The same of a label whose mask is small. Measured (``--only 'dev-*-every-label'``): with all labels infected the
    excess is 0.85 and more, the masks 2 to 14 pixels."""
    certain_excess_of_first: float = 0.7
    """The same of the label with the smallest mask of all, where all others have to be ``rides_along`` times larger.
    Measured (``--only 'dev-*'``): where a large trigger or a texture is planted, other labels exceed their references
    too, and the planted one has an excess of 0.71 to 0.78 with masks of 44 and 104 pixels, the smallest of the model;
    no clean model's label reaches 0.5."""
    lead: float = 0.25
    """A label whose mask is the smallest in that way, and whose excess is over that of all others by so much, is
    infected from ``clean_excess`` on. Measured (``--only dev-signs-trojan-square``): 0.46, where all others have 0.06
    and less; on clean models no label of such a mask leads by more than 0.1."""
    small_mask: float = 0.03
    """Largest share of the picture that a small mask covers (measured likewise)."""
    certain_excess_of_any: float = 0.95
    """From this excess on a label is infected whatever its mask and the others: with other labels infected too, a mask
    of 30 pixels may be larger than theirs. Nothing that rode along has come so far (measured as above)."""
    rides_along: float = 1.25
    """A label whose mask is neither small nor within so many times the smallest mask of those from ``certain_excess``
    on is not certain before that, and left open if it stands out all the same. Measured (``--only
    'dev-overfitted-*'``): next to a planted texture of 11, 36 and 56 pixels other labels reach an excess of 0.85 to
    0.92 with masks of 24, 52 and 299 pixels and more."""
    outlier: float = 3.0
    """Of a label that is not certain, how far its excess lies over the median of the other labels, in robust standard
    deviations: a network that is easily fooled exceeds its references on every label (measured likewise)."""
    restarts: int = 2
    """How often a label is looked at again, with other starts and the references in other roles, whose excess is within
    ``unclear``. The mean of the second looks alone counts then: the first one chose the label."""
    unclear: tuple[float, float] = (0.25, 0.8)
    """Excess from which and up to which a label is looked at again. Measured on ``dev-small-14x14`` and ``-17x17``,
    first looks of eight seeds in float32: the planted labels have 0.28 and more; of 48 other looks eight are over 0.25.
    In bfloat16, with other seeds, four of eight had less, before searches that were a step too far went on: see
    ``patience`` and ``doubtful``."""
    doubtful: float = 0.1
    """Where no label is infected, labels are looked at again from this excess on, before they are called clean: a first
    look that ended too early, at a mask ten times the trigger's size, has no more than a clean label's. Measured
    (``bench run --only dev-small-14x14 --seed 1`` to ``8``, bfloat16): the planted label is found with all eight seeds.
    """
    doubtful_looks: int = 3
    """How many such looks there are. The later ones are at the few labels that any look found unclear: a second one may
    miss what the first one half saw. Chosen for its cost, not varied."""
    doubtful_share: float = 0.1
    """How few: at most this share of the labels, ..."""
    doubtful_least: int = 3
    """... or so many, if that is more. Both are chosen for their cost."""
    still_unclear: float = 0.35
    """From this excess on, and up to the same as before, a third look follows the second. Measured on four models with
    patches of 14x14 and 17x17, references with outputs of 1: planted triggers had 0.54 and more at the second look."""
    clean_excess: float = 0.45
    """Up to this excess a label is clean; up to ``infected_excess`` it is inconclusive (measured likewise)."""
    infected_excess_of_colours: float = 0.5
    """The same as ``infected_excess`` of a change of colours. Measured (``bench run --split development --only
    'dev-signs-filter-*' --only dev-gtsrb-clean-27``): the planted filters have 0.65, 0.92 and 0.96; of 76 other
    labels none comes so far as to be compared: their changes of colours work on references too."""
    clean_excess_of_colours: float = 0.3
    """Likewise."""
    filter_contrast: float = 0.78
    """A change of colours that stands out, but keeps less contrast than this, is left open: the photo filters of
    :mod:`neuralsanitizer.attacks.filters` keep 0.8 to 1.03 of it. Introduced after four labels of reported models
    (``signs-*``), in which other triggers are planted, had been called infected at 0.65 to 0.76; the planted filters
    that are found keep 0.89 and more."""


@dataclass(frozen=True)
class NeuralSanitizerConfig:
    """All stages of NeuralSanitizer."""

    preset: str = "default"
    self_check: SelfCheckConfig = field(default_factory=SelfCheckConfig)
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    reconstruct: ReconstructConfig = field(default_factory=ReconstructConfig)
    colours: ColourConfig | None = field(default_factory=ColourConfig)
    """``None``: patches alone are looked for."""
    screen: ScreenConfig | None = field(default_factory=ScreenConfig)
    """``None``: all labels get the long look."""
    preserve: PreserveConfig = field(default_factory=PreserveConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    counterparts: CounterpartConfig = field(default_factory=CounterpartConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)


def _tuned(*subsets: tuple[int, ...]) -> tuple[ReferencePlan, ...]:
    return tuple(ReferencePlan("tuned", layers) for layers in subsets)


PAPER = NeuralSanitizerConfig(
    preset="paper",
    references=ReferenceConfig(
        guides=_tuned((1, 2, 3)),
        tests=_tuned((1,), (2,), (3,), (1, 2), (2, 3), (1, 3)),
        attempts=1,
        least_agreement=0.0,
    ),
    reconstruct=ReconstructConfig(steps=100, learning_rate=0.1, mask_cells=0, start=0.0, size=None, size_again=None),
    colours=ColourConfig(
        steps=200, learning_rate=0.1, offset=False, stand_ins=0, least_contrast=0.0, flat=0.0, size=None
    ),
    screen=None,
    preserve=PreserveConfig(enabled=True),
    transfer=TransferConfig(images=100),
    counterparts=CounterpartConfig(stand_ins=0),
    verdict=VerdictConfig(least_attack_success=0.6),
)
"""NeuralSanitizer as published."""

PRESETS = {"default": NeuralSanitizerConfig(), "paper": PAPER}


def neural_sanitizer_config(preset: str) -> NeuralSanitizerConfig:
    """The settings of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


@dataclass(frozen=True)
class NeuralCleanseConfig:
    """Neural Cleanse's detection: NC section IV and its authors' code."""

    preset: str = "default"
    self_check: SelfCheckConfig = field(default_factory=SelfCheckConfig)
    checks: int = 100
    """At most so many looks at the goal (NC code: 1,000 epochs; early stop ends most labels before)."""
    batches_per_check: int = 10
    """NC code: 31, an epoch of 1,000 images. Measured: the masks found with 10 rank the labels alike."""
    images: int = 32
    """NC code: mini-batch."""
    learning_rate: float = 0.1
    """NC code."""
    betas: tuple[float, float] = (0.5, 0.9)
    """NC code: Adam's."""
    goal: float = 0.99
    """NC code: attack success to hold."""
    initial_weight: float = 1e-3
    """NC code: lambda once the goal was held ``patience`` times."""
    patience: int = 5
    """NC code."""
    multiplier: float = 2.0
    """NC code: 2 on GTSRB, 1.5 by default; down by its power of 1.5."""
    stop_patience: int = 25
    """NC code: checks without improvement, once lambda moved both ways."""
    threshold: float = 2.0
    """NC: the classic threshold of the anomaly index."""
    classic: bool = False
    """Whether the classic threshold decides, or the label-count-aware one."""
    false_alarm_rate: float = 0.05
    """Of the label-count-aware threshold, for the whole model."""
    test_images: int = 200
    """Held-out images that the attack success is measured on."""
    label_batch: int = 16
    """Labels that share a forward pass, at most; fewer where their images would fill the memory."""
    restarts: int = 1
    """Searches a label, each from another start. With several a label's index is their median, and a label is left
    open whose threshold lies between its lowest index and its highest."""
    many: int = 200
    """From this number of labels on all get a short search, and those with the smallest masks a long one (NC: for
    YouTube Face's 1,283 labels)."""
    short_checks: int = 15
    """Looks at the goal that a short search takes: the weight rises at the fifth for the first time."""
    refined: int = 100
    """Labels that get a long search (NC)."""


NEURAL_CLEANSE_PRESETS = {
    "default": NeuralCleanseConfig(),
    "stable": NeuralCleanseConfig(preset="stable", restarts=3),
    "paper": NeuralCleanseConfig(preset="paper", checks=1000, batches_per_check=31, classic=True),
}


@dataclass(frozen=True)
class UnlearnConfig:
    """Removal by unlearning: NS section on removal."""

    share: float = 0.3
    """Share of every batch that each trigger is stamped on (NS: 0.1; NC: 0.2). Measured, ``mnist-cnn-small``, 4x4
    patch, the planted trigger's attack success after 300 steps: 17.9 % with NS's numbers, 1.9 % with these. 0: none is
    stamped, which is fine-tuning on clean images."""
    grown: int = 2
    """Each stamped trigger is grown by up to so many pixels on all sides, with the colours of its rim; 0: as it was
    reversed (NS). A reversed trigger is smaller than the planted one: measured on the demo's model, a fresh scan still
    found label 7 through a larger patch in the same corner after unlearning the reversed trigger alone."""
    adversarial: float = 0.8
    """Share of the stamped images that bear a pattern optimised against the model as it is, in the trigger's mask, in
    place of the reversed one; 0: none (NS, NC). Measured on the development models ``dev-small-4x4``, ``-14x14``,
    ``-17x17`` and ``dev-weak-4x4``, the planted trigger's attack success after the first round: 1.3, 0.9, 13.4 and
    0.8 % with 0, 0.7, 0.6, 3.3 and 0.4 % with 0.5, 0.6, 0.4, 3.2 and 0.3 % with 0.8, for a third more time."""
    adversarial_rate: float = 0.1
    """Of the pattern's sign ascent, one step a step of the training; not varied."""
    adversarial_every: int = 20
    """Steps after which it starts anew, from the reversed pattern and from noise in turns; not varied."""
    targets: Literal["labels", "suspect"] = "labels"
    """What images are tied to, stamped or not: their true labels (NS), or what the suspect gives for them unstamped."""
    steps: int | None = 400
    """Measured likewise (NS: 2000). ``None``: one pass over the images (NC)."""
    batch: int = 100
    """NS."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule (measured likewise; NS: constant 1e-4, 1e-5 on CIFAR-10 and VGG-Face)."""
    one_cycle: bool = True
    """Measured likewise (NS: constant)."""


UNLEARN_PRESETS = {
    "default": UnlearnConfig(),
    "paper": UnlearnConfig(share=0.1, grown=0, adversarial=0, steps=2000, learning_rate=1e-4, one_cycle=False),
    "neural-cleanse": UnlearnConfig(share=0.2, grown=0, adversarial=0, steps=None, learning_rate=1e-3, one_cycle=False),
    "longer": UnlearnConfig(steps=1600),
    "distillation": UnlearnConfig(targets="suspect"),
    "fine-tuning": UnlearnConfig(share=0.0),
}
"""Recipes of unlearning; ``paper`` is NeuralSanitizer's. Neural Cleanse names no learning rate: Adam's own, as its
training code has."""


@dataclass(frozen=True)
class PruneConfig:
    """Removal by neuron pruning: NC section on patching."""

    goal: float = 0.01
    """Pruning ends once no reversed trigger has a larger attack success (NC: near 0)."""
    largest_accuracy_drop: float = 0.02
    """Budget, in absolute terms, on the images that neurons are ranked with. No more is pruned beyond."""
    step: float = 0.02
    """Share of the neurons that go between two looks."""
    images: int = 1000
    """At most so many clean images are ranked and measured on."""
    layers: tuple[Literal["dense", "convolution"], ...] = ("dense", "convolution")
    """Tried in this order until the goal is reached (NC: the second-to-last layer; the last convolution for Trojan)."""


@dataclass(frozen=True)
class RepairConfig:
    """What all repairs have in common."""

    rounds: int = 5
    """How often an infected label is scanned again at most (NS: until nothing is found)."""
    largest_accuracy_drop: float = 0.005
    """Of ``auto``: what a method that is kept may cost of the clean accuracy, in absolute terms."""


@dataclass(frozen=True)
class FilterConfig:
    """The input filter: NC section on detecting adversarial inputs."""

    neurons: float = 0.01
    """NC: share of the second-to-last layer's neurons, those most excited by the reversed trigger."""
    false_alarms: float = 0.05
    """NC: the rate that its miss rates are reported at. Of the clean images that are judged: with ``discriminant``
    those that the model sends to an infected label, a tenth of all where there are ten labels."""
    score: Literal["discriminant", "neural-cleanse"] = "discriminant"
    """Measured on seven development models, share of the planted triggers' hits that pass at a false-alarm rate of 5 %
    of what is judged: ``neural-cleanse`` 0 to 24 % on six models and 83 % on ``dev-signs-trojan-square``;
    ``discriminant``, at a tenth of the false alarms over all inputs, none on the six, and 76 % on the other."""
    shrinkage: float = 0.1
    """Of the discriminant's covariance towards a multiple of the identity: there are more neurons than images of a
    label. Not varied."""


@dataclass(frozen=True)
class VerifyConfig:
    """When a repair counts as proven."""

    largest_attack_success: float = 0.05
    """Of any reversed trigger on the repaired model."""
    largest_accuracy_drop: float = 0.01
    """Clean accuracy, in absolute terms; it must be shown to fall by more at 95 % confidence."""


@dataclass(frozen=True)
class AttackConfig:
    """Training of benchmark models."""

    architecture: str
    labels: int = 0
    """0: as many as the training set has."""
    poisoning_rate: float = 0.1
    """Share of the training set that each trigger is stamped on (BadNets; NS and NC use 0.1 too)."""
    epochs: int = 3
    """Measured: 99 % clean accuracy on MNIST."""
    batch: int = 100
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule (measured)."""
    seed: int = 0
