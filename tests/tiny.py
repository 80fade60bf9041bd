"""Settings of a whole scan that costs a second; what it finds means nothing."""

from dataclasses import replace

from quick import QUICK

TINY = replace(
    QUICK,
    preset="tiny",
    references=replace(
        QUICK.references,
        guides=QUICK.references.guides[:1],
        fresh_cycles=(30,),
        attempts=1,
        least_agreement=0.0,
    ),
    reconstruct=replace(QUICK.reconstruct, steps=20),
)
