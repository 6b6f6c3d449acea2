"""What a training takes, before it starts."""

from __future__ import annotations

from dataclasses import replace

from lowrank_core.measure.effort import Effort, Work, effort
from lowrank_core.training.finetune import training_data
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace


def training_effort(workspace: Workspace, settings: Settings, runs: int) -> Effort:
    """What so many runs take here at most: every epoch of each, and its score on all evaluation samples at the end.

    Raises InvalidData where there is nothing to learn from.
    """
    trained = runs * settings.passes * len(training_data(workspace))
    return replace(effort(workspace, Work(answers=runs, corrected=False, trained=trained)), measurements=0)
