"""What a plan costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lowrank_core.commands import Answer, command
from lowrank_core.commands._opening import COUNTED, opened, plan_of
from lowrank_core.commands._options import AS_FREE, MODEL, PLAN
from lowrank_core.commands._terminal import cost_columns, table
from lowrank_core.figures import share
from lowrank_core.plans.cost import Cost, plan_cost


@command
@MODEL
@PLAN
@AS_FREE
def cost(model: str, plan: Path, free: bool | None) -> Answer:
    """What the network costs as it is and under a plan, exactly."""
    workspace = opened(model, plan=plan)
    choices = plan_of(workspace, plan, free=free).plan
    dense, compressed = plan_cost(workspace.profile), plan_cost(workspace.profile, choices)
    rows = [["dense", *cost_columns(dense)], ["compressed", *cost_columns(compressed)]]
    shares = [share(new / old) if old else "-" for new, old in _pairs(compressed, dense)]
    rows.append(["share", *shares])
    text = f"{table(['', 'parameters', 'bytes', 'multiplies'], rows)}\n\nMultiplies are for one sample."
    return {"dense": asdict(dense), "compressed": asdict(compressed), "counted": COUNTED}, text


def _pairs(a: Cost, b: Cost) -> list[tuple[int, int]]:
    return [(a.parameters, b.parameters), (a.bytes, b.bytes), (a.multiplies, b.multiplies)]
