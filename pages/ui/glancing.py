"""What a board is answered about a plan under a held thumb, wherever the board is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from lowrank_core.errors import Cancelled
from lowrank_core.measure.glance import Glances, TooSlow
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.scope import pause, somebody_waits

from .words import score_fields

LINGER_SECONDS = 0.6
"""After an answer other work goes on giving way: while a thumb is held the next question is not far."""


def answers(
    glances: Glances, base: Candidate, choices: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Iterator[dict[str, Any]]:
    """One answer; then the thread stays for a moment, so that others' work goes on giving way.

    choices: {layer: (method, rank)} of the plan that is asked about; base: the plan that is measured, which it is near.
    """
    profile = glances.workspace.profile
    plan = RankPlan.of(profile.fingerprint, {n: Choice(method, rank) for n, (method, rank) in choices.items()})
    check_plan(profile, plan)
    with somebody_waits():
        began = time.monotonic()
        try:
            glance = glances(base, plan)
        except TooSlow as slow:
            yield {"slow": str(slow)}
            return
        milliseconds = round(1e3 * (time.monotonic() - began))
        yield {"score": score_fields(glance.score), "left_out": glance.left_out, "milliseconds": milliseconds}
        with suppress(Cancelled):
            pause(LINGER_SECONDS)
