"""Compact networks: those that have little to spare, so that a plan needs fine-tuning before it is of use."""

from __future__ import annotations

from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.cost import layer_cost
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Problem

MUCH = 0.02
"""Of the dense score: a plan that is shown to lose more needs fine-tuning."""

MOSTLY = 0.5
"""Share of the layers' multiplies in pointwise convolutions from which a network with depthwise ones is compact."""

HALF = 0.5
"""Of the dense network: a budget from which on down a compact network usually needs fine-tuning."""

COMPACT = (
    "This network was built small (depthwise convolutions): at half of its multiplies or less it usually needs "
    "fine-tuning, which takes no labels."
)

TUNE = "At this size the network needs fine-tuning: its factors then learn the dense network's answers, without labels."


def compact_note(problem: Problem) -> str:
    """What to say before plans of a compact network are looked for within such budgets; "" where nothing is."""
    small = any(limit <= HALF * problem.amount(quantity) for quantity, limit in problem.budgets)
    return COMPACT if small and compact(problem.workspace.profile) else ""


def compact(profile: ModelProfile) -> bool:
    """Whether a network was built small: most of its multiplies mix channels between depthwise convolutions.

    Sandler et al., MobileNetV2, CVPR 2018.
    """
    multiplies = [(layer.spec, layer_cost(layer, None).multiplies) for layer in profile.layers]
    pointwise = sum(count for spec, count in multiplies if set(spec.kernel) == {1})
    depthwise = any(spec.groups == spec.in_channels > 1 for spec, _ in multiplies)
    depthwise |= any("depthwise" in skipped.reason for skipped in profile.skipped)
    return depthwise and pointwise > MOSTLY * sum(count for _, count in multiplies)


def needs_tuning(score: Score | None) -> bool:
    """Whether a plan is shown to lose so much of the dense score that it is of use only after fine-tuning."""
    if score is None or score.drop_low is None or score.not_finite:
        return False
    return score.drop_low > MUCH * abs(score.dense)
