"""Artefacts: each file of this package writes one kind, and says how it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_core.compression.precision import Storage, stored_as
from lowrank_core.errors import LowRankError
from lowrank_core.exports._reload import largest_difference
from lowrank_core.layers.data import Inputs
from lowrank_core.plans.plan import RankPlan
from lowrank_core.registry import register_all
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What is exported: a compressed copy, the plan it follows, what was fitted, and the score it reached.

    tuned: how its weights were trained (`finetune.provenance`), None where they follow from the plan.
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
    """One kind of artefact. write(workspace, compressed, path) reports its steps; snippets(reference or None, file).

    dtypes: what its weights can be written in beside their own.
    """

    name: str
    label: str
    suffix: str
    write: Callable[[Workspace, Compressed, Path], Exported]
    snippets: Callable[[str | None, str], tuple[Snippet, ...]]
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
    """The lines of code that load a file made by this plan."""
    partial = not all(workspace.profile.layer(name).plain for name, _ in plan.choices)
    return [s for s in export.snippets(workspace.opened.ref, file) if s.partial in (None, partial)]


def reloaded(
    kind: str,
    workspace: Workspace,
    network: nn.Module,
    written: Path,
    path: Path,
    *,
    tolerance: float,
) -> float:
    """Largest distance of outputs after reloading in a fresh process; see `largest_difference`.

    written: the temporary name of what will be `path`.
    """
    report(Progress("reloading in a fresh process"))
    inputs, dense = reference_inputs(workspace), workspace.opened.ref or workspace.model
    return largest_difference(
        kind, dense, written, network, inputs, workspace.opened.axes, tolerance=tolerance, name=str(path)
    )


def reference_inputs(workspace: Workspace) -> Inputs:
    """The first evaluation samples, or the example inputs where there is no usable evaluation set."""
    try:
        return workspace.reference.dataset.pick(slice(0, REFERENCE_SAMPLES)).inputs
    except LowRankError:
        return workspace.opened.example_inputs


register_all(__name__, __path__)
