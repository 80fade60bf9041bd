"""Many labels: a short look at all of them, and the order in which long looks follow.

On models of few labels a trigger shows early: an infected label's patch works within 40 steps. So all labels get a
short look, and the long one, with all tests, goes to them batch by batch, the most suspicious first. It ends after a
batch without an infected label: labels that are left open send for no others, as where references are weak, most of a
thousand labels exceed them. Nothing is assumed of how many labels are infected: where all are, every batch holds
some, and all labels get their long look.
"""

from __future__ import annotations

from collections.abc import Sequence

from neuralsanitizer.detectors.base import Evidence

__all__ = ["COLOUR_LEAD", "by_suspicion"]

COLOUR_LEAD = "colour_lead"
"""Name of the metric: attack success of a change of colours on the suspect, less that on the guides, [-1, 1]."""


def by_suspicion(glances: Sequence[Evidence]) -> list[int]:
    """Labels in the order of suspicion: by patches that work and are small, and by changes of colours, in turns.

    Args:
        glances: Of each label: the smallest patch that works so far, with ``reached_goal`` whether one does and
            ``fitted_success`` among the metrics, and :data:`COLOUR_LEAD` if changes of colours were looked for.
    """

    def patch(one: Evidence) -> tuple[bool, float, int]:
        works = one.metrics["reached_goal"] > 0
        return not works, one.trigger.size if works else -one.metrics["fitted_success"], one.trigger.label

    def colours(one: Evidence) -> tuple[float, int]:
        return -one.metrics[COLOUR_LEAD], one.trigger.label

    turns = [sorted(glances, key=patch), sorted((g for g in glances if COLOUR_LEAD in g.metrics), key=colours)]
    order = [of[place].trigger.label for place in range(len(glances)) for of in turns if place < len(of)]
    return list(dict.fromkeys(order))
