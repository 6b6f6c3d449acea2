"""Artefacts: each file of this package writes one kind, and says how it is loaded."""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_core.compression.precision import Storage, stored_as
from lowrank_core.errors import InvalidFile, LowRankError
from lowrank_core.exports._reload import largest_difference
from lowrank_core.layers.data import Inputs, data_hash
from lowrank_core.methods import METHODS
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.scoring.scores import Score
from lowrank_core.store.files import remove_left, temporary_name
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What is exported: a compressed copy, the plan it follows, what was fitted, and the score it reached.

    tuned: how its weights were trained (`finetune.told`), None where they follow from the plan.
    storage: how its weights are written; `model` is the network that comes out of that.
    """

    model: nn.Module
    plan: RankPlan
    score: Score | None = None
    correction: dict[str, Any] | None = None
    tuned: dict[str, Any] | None = None
    storage: Storage = Storage()  # noqa: RUF009

    def stored(self, workspace: Workspace, storage: Storage) -> Compressed:
        """What is written instead: no score yet, since it is another network; see `storage.stored_as`."""
        model = stored_as(self.model, workspace.model, workspace.profile, storage)
        return replace(self, model=model, score=None, storage=storage)


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, reloaded and compared.

    max_abs_diff: largest distance of any output; None where the file computes nothing.
    """

    path: str
    bytes: int
    max_abs_diff: float | None
    score: Score | None


@dataclass(frozen=True, slots=True)
class Snippet:
    """Lines of code that load an artefact, and what they need.

    partial: whether they are for plans that factorise layers which are not `plain`; None for every plan.
    loader: what the code begins with where that could be a file of its own.
    """

    label: str
    code: str
    partial: bool | None = None
    loader: str = ""


@dataclass(frozen=True, slots=True)
class Export:
    """One kind of artefact. write(workspace, compressed, path, progress); snippets(model reference, file name).

    dtypes: what its weights can be written in beside their own.
    """

    name: str
    label: str
    suffix: str
    write: Callable[[Workspace, Compressed, Path, Callable[[str], None]], Exported]
    snippets: Callable[[str, str], tuple[Snippet, ...]]
    dtypes: tuple[str, ...] = ()


EXPORTS: dict[str, Export] = {}
REFERENCE_SAMPLES = 64


def register(export: Export) -> Export:
    """Make a kind of artefact known."""
    if export.name in EXPORTS:
        raise ValueError(f"export {export.name!r} is registered twice")
    EXPORTS[export.name] = export
    return export


def loading(export: Export, workspace: Workspace, plan: RankPlan, file: str) -> list[Snippet]:
    """The snippets for a file of this plan."""
    partial = not all(workspace.profile.layer(name).plain for name, _ in plan.choices)
    return [s for s in export.snippets(workspace.opened.ref, file) if s.partial in (None, partial)]


def reloaded(
    kind: str,
    workspace: Workspace,
    network: nn.Module,
    written: Path,
    path: Path,
    progress: Callable[[str], None],
    *,
    tolerance: float,
) -> float:
    """Largest distance of outputs after reloading in a fresh process; see `largest_difference`.

    written: the temporary name of what will be `path`.
    """
    progress("reloading in a fresh process")
    inputs, ref = reference_inputs(workspace), workspace.opened.ref
    return largest_difference(kind, ref, written, network, inputs, tolerance=tolerance, name=str(path))


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary name in the same folder, which takes the place of `path` at the end; removed where anything fails.

    What a killed process left of an earlier attempt is removed once it is an hour old.
    """
    if path.is_dir():
        raise InvalidFile(f"{path} is a folder; give the name of a file.")
    if not path.parent.is_dir():
        raise InvalidFile(f"there is no folder {path.parent}; create it first.")
    remove_left(path.parent, path.name)
    temporary = temporary_name(path)
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files private
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidFile(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def reference_inputs(workspace: Workspace) -> Inputs:
    """The first evaluation samples, or the example inputs where there is no usable evaluation set."""
    try:
        return workspace.reference.dataset.pick(slice(0, REFERENCE_SAMPLES)).inputs
    except LowRankError:
        return workspace.opened.example_inputs


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
    found: dict[str, Any] = {
        "model": {"name": workspace.name, "fingerprint": profile.fingerprint, "source": _source(workspace.opened.ref)},
        "cost": {"dense": plain(plan_cost(profile)), "compressed": plain(plan_cost(profile, compressed.plan))},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    if compressed.score is not None:
        found["score"] = plain(compressed.score)
    if compressed.tuned is not None:
        found["tuned"] = compressed.tuned
    if compressed.storage.told:
        found["storage"] = compressed.storage.told
    data: dict[str, Any] = {}
    if compressed.score is not None and compressed.score.samples:
        data["evaluation"] = workspace.reference.hash
    if compressed.correction is not None:
        data["calibration"] = compressed.correction.get("data")
    elif any(METHODS[choice.method].data_aware for _, choice in compressed.plan.choices):
        data["calibration"] = data_hash(workspace.calibration.inputs)
    if data:
        found["data"] = data
    return found


def plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON knows them; NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _source(ref: str) -> dict[str, str]:
    path = Path(ref)
    if not path.is_file():
        return {"ref": ref}
    return {"ref": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


for _module in sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")):
    importlib.import_module(f"{__name__}.{_module}")
