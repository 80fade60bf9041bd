"""Settings of a whole scan that costs a second; what it finds means nothing."""

from dataclasses import replace

from neuralsanitizer.config import CounterpartConfig, PreserveConfig, TransferConfig
from quick import QUICK

TINY = replace(
    QUICK,
    preset="tiny",
    references=replace(
        QUICK.references,
        guides=QUICK.references.guides[:1],
        fresh_cycles=(30,),
        attempts=1,
        least_accuracy=0.0,
    ),
    reconstruct=replace(QUICK.reconstruct, steps=20),
)

HASTY = replace(
    TINY,
    preset="hasty",
    references=replace(TINY.references, fresh_cycles=(3,), tests=TINY.references.tests[:1]),
    reconstruct=replace(TINY.reconstruct, steps=2, images=2),
    preserve=PreserveConfig(images=2),
    transfer=TransferConfig(images=5),
    counterparts=CounterpartConfig(stand_ins=0, steps=1),
)
"""A whole scan in a blink, for tests of what stands around it."""
