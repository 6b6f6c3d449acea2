"""Where a file comes from: model, data, cost, score and versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowrank_core.exports import Compressed
from lowrank_core.layers.data import data_hash
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.store.as_json import plain
from lowrank_core.store.kinds import file_hash
from lowrank_core.store.reference import address_of, file_and_part, in_its_folder
from lowrank_core.version import versions
from lowrank_core.workspace import Workspace


def plan_document(workspace: Workspace, compressed: Compressed, **origin: Any) -> str:
    """The plan as a JSON text, with where it comes from, `origin` added, and what it reached."""
    return compressed.plan.to_json(
        model_name=workspace.name,
        correction=compressed.correction,
        provenance=provenance(workspace, compressed) | plain(origin),
    )


def provenance(workspace: Workspace, compressed: Compressed) -> dict[str, Any]:
    """Model, data, cost, score and versions; no path of this machine, and no time of day."""
    profile = workspace.profile
    origin: dict[str, Any] = {
        "model": {"name": workspace.name, "fingerprint": profile.fingerprint, "source": _source(workspace)},
        "cost": {"dense": plain(plan_cost(profile)), "compressed": plain(plan_cost(profile, compressed.plan))},
        "versions": versions(),
    }
    if compressed.score is not None:
        origin["score"] = plain(compressed.score)
    if compressed.tuned is not None:
        origin["tuned"] = compressed.tuned
    if compressed.storage.told:
        origin["storage"] = compressed.storage.told
    if compressed.accepted is not None:
        origin["accepted_difference"] = compressed.accepted
    data: dict[str, Any] = {}
    if compressed.score is not None and compressed.score.samples:
        data["evaluation"] = workspace.reference.hash
    if compressed.correction is not None:
        data["calibration"] = compressed.correction.get("data")
    elif any(METHODS[choice.method].data_aware for _, choice in compressed.plan.choices):
        data["calibration"] = data_hash(workspace.calibration.inputs)
    if data:
        origin["data"] = data
    return origin


def _source(workspace: Workspace) -> dict[str, str]:
    ref = workspace.opened.ref
    if ref is None:
        kind = type(workspace.model)
        return {"class": f"{kind.__module__}.{kind.__qualname__}"}
    address = address_of(ref)
    model, weights = address.model, address.weights
    source = {"ref": in_its_folder(ref)}
    if Path(model).is_file():
        source["sha256"] = file_hash(Path(model))
    if weights is not None and (file := file_and_part(weights)[0]).is_file():
        source["weights_sha256"] = file_hash(file)
    return source
