"""What a training takes, before it starts."""

from __future__ import annotations

from dataclasses import replace

from lowrank_core.measure.effort import Effort, Measurements, Work, effort
from lowrank_core.training.finetune import training_data
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace


def training_effort(workspace: Workspace, settings: Settings, runs: int, *, watch: int = 0) -> Effort:
    """What so many runs take here at most: every epoch of each, and its score on all evaluation samples at the end.

    watch: evaluation samples that are scored after each epoch. Raises InvalidData where there is nothing to learn from.
    """
    samples, epochs = len(training_data(workspace)), runs * settings.passes
    varied = settings.loss != "labels" and (settings.mix or settings.augment != "none")
    asked = samples if varied else 0  # of the dense network, whose answers to what is new each time cannot be kept
    watched = 0 if workspace.opened.evaluate is not None else min(watch, len(workspace.reference))
    each = (Measurements(epochs, watched + asked),)
    work = Work(each, answers=runs, corrected=False, trained=epochs * samples)
    return replace(effort(workspace, work), measurements=0)
