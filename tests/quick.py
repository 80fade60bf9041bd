"""Settings that find the planted trigger and cost seconds. The defaults are measured by the acceptance tests."""

from neuralsanitizer.config import (
    CounterpartConfig,
    NeuralCleanseConfig,
    NeuralSanitizerConfig,
    PreserveConfig,
    ReconstructConfig,
    ReferenceConfig,
    ReferencePlan,
    SizeSchedule,
    TransferConfig,
)

TARGET = 7

QUICK = NeuralSanitizerConfig(
    preset="quick",
    references=ReferenceConfig(
        guides=(ReferencePlan("scratch"),) * 2, tests=(ReferencePlan("scratch"),), fresh_batch=100, fresh_cycles=(120,)
    ),
    reconstruct=ReconstructConfig(steps=150, images=10, size=SizeSchedule(give_up=80, patience=50)),
    preserve=PreserveConfig(images=20),
    transfer=TransferConfig(images=100),
    counterparts=CounterpartConfig(stand_ins=2, steps=60),
)
QUICK_CLEANSE = NeuralCleanseConfig(preset="quick", checks=60, batches_per_check=4, images=16, initial_weight=1e-2)
