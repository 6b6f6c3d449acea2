"""A plan from a file: data, never code. What does not fit is refused and the plan stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from lowrank_core.figures import how_many
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import read_plan
from lowrank_core.workspace import Workspace
from pages.ui.state import plans


@dataclass(frozen=True, slots=True)
class Taken:
    """What to say of a plan that was taken: of its correction, and what may not be as its writer thought."""

    correction: str
    warnings: tuple[str, ...]


def take(workspace: Workspace, content: bytes) -> Taken:
    """Make the plan of a file this session's own, with the correction it asks for; raises LowRankError."""
    read = read_plan(content)
    warnings = check_plan(workspace.profile, read.plan)
    plans.open_file(workspace, read)
    own, said = plans.correction_of(workspace, read), ""
    if read.correction is None:
        said = "The file says that its factors are not corrected, so the correction is off now."
    elif not read.correction:
        said = "The file does not say how its factors are corrected: they are by the quick correction, as of old."
    elif own is not None:
        said = (
            f"The file asks for a correction of its own, with which plans are measured now: {own.depth or own.kind} on "
            f"{how_many(own.samples, 'sample')}, seed {own.seed}, ridge {own.ridge:g}."
        )
    return Taken(said, tuple(f"{warning}." for warning in warnings))
