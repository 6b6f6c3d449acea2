"""Artefacts: each file of this package writes one kind, and says how it is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lowrank_core.compression.free_ranks import take_gauge_off
from lowrank_core.compression.precision import Storage, stored_as
from lowrank_core.compression.quantised import depthwise_layers, refitted
from lowrank_core.errors import InvalidPlan, LowRankError, OtherAnswers, few
from lowrank_core.exports._reload import answers_of, batches_for
from lowrank_core.exports._rounding import (
    LARGEST,
    SLACK,
    WriteDense,
    dense_difference,
    difference_of,
    own_rounding,
    scores_agree,
)
from lowrank_core.graphs.c_compiled import CompiledSize
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import Dataset, Inputs, run
from lowrank_core.measure.comparison import Comparison
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.registry import enter, register_all
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report
from lowrank_core.scoring.scores import Score
from lowrank_core.workspace import Workspace

Verdict = Literal["same", "rounding", "accepted"]
VERDICTS: tuple[Verdict, ...] = ("same", "rounding", "accepted")
VERDICT_WORDS: dict[Verdict, str] = {
    "same": "",
    "rounding": ", which is rounding",
    "accepted": ", more than rounding explains, and was accepted",
}
"""What stands behind the largest difference of a file."""


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """What is exported: a compressed copy, the plan it follows, what was fitted, and the score it reached.

    tuned: how its weights were trained (`finetune.provenance`), None where they follow from the plan.
    storage: how its weights are written; `model` is the network that comes out of that.
    plain_bytes: how many more are written, where the plan has free ranks and its factors are written plain.
    accept_difference: save a file that answers otherwise than the network all the same, marked so.
    litert_python: the folder of the environment that writes and tries .tflite files.
    accepted: how far the answers of such a file are from the network's. depthwise: layers with factors of one channel
    each, where int8 has one scale for each weight and nothing is refitted.
    """

    model: nn.Module
    plan: RankPlan
    score: Score | None = None
    correction: dict[str, Any] | None = None
    tuned: dict[str, Any] | None = None
    storage: Storage = Storage()  # noqa: RUF009
    plain_bytes: int = 0
    accept_difference: bool = False
    litert_python: Path | None = None
    accepted: float | None = None
    depthwise: tuple[str, ...] = ()

    def stored(self, workspace: Workspace, storage: Storage) -> Compressed:
        """What is written instead: no score yet, since it is another network; see `storage.stored_as`.

        int8 is written with plain factors: what is rounded once should not go through twice as many scales.
        """
        if storage.dtype == "int8" and self.plan != self.plan.plain:
            costs = [plan_cost(workspace.profile, plan).parameters for plan in (self.plan.plain, self.plan)]
            plain = replace(self, model=take_gauge_off(copied(self.model)), plan=self.plan.plain)
            return replace(plain.stored(workspace, storage), plain_bytes=costs[0] - costs[1])
        model = self.model
        if storage.dtype == "int8" and storage.refit and self.plan.choices and not storage.dense:
            model = self._refitted(workspace, storage)
        model = stored_as(model, workspace.model, workspace.profile, storage)
        one_scale = storage.dtype == "int8" and storage.int8 == "per-tensor" and not (storage.refit or storage.dense)
        return replace(
            self,
            model=model,
            score=None if storage.rounds else self.score,
            storage=storage,
            depthwise=depthwise_layers(workspace.profile, self.plan) if one_scale else (),
        )

    def _refitted(self, workspace: Workspace, storage: Storage) -> nn.Module:
        """Its factors fitted to each other as int8 rounds them, on the samples of the usual correction."""
        report(Progress("refitting the factors for int8"))
        usual = workspace.correction
        seen = workspace.corrector.dense_pass(usual)
        about = workspace.model, workspace.profile, self.plan, seen
        return refitted(self.model, *about, int8=storage.int8, ridge=usual.ridge)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is written otherwise than was asked, a sentence each."""
        notes = []
        if self.plain_bytes:
            notes.append(f"int8 is written with plain factors, {self.plain_bytes:,} B more than with free ranks")
        if self.depthwise:
            notes.append(
                f"{few(self.depthwise)}: one int8 scale for all channels of a depthwise factor rounds the small ones "
                "away; the refit, a scale per channel, or spatial_svd in place of cp, keeps them"
            )
        return tuple(notes)


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, reloaded and compared.

    max_abs_diff: largest distance of any output; None where the file computes nothing.
    verdict: "same", "rounding" where two runtimes round otherwise, or "accepted" where somebody took more than that.
    notes: what the file computes otherwise than the plan counts, a sentence each. beside: the other files that belong
    to it, whose bytes are counted with its own.
    compiled: what it takes on a device, where it was compiled. comparison: how a file answers beside the dense network
    whose answers were looked at for its score, as those of int8 are. wide: why most of an int8 file is none, or "".
    """

    path: str
    bytes: int
    max_abs_diff: float | None
    score: Score | None
    verdict: Verdict = "same"
    notes: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    compiled: CompiledSize | None = None
    comparison: Comparison | None = None
    wide: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """What commands answer with, as plain values; what only a page asks for is left out."""
        return {name: value for name, value in asdict(self).items() if name not in ("comparison", "wide")}


@dataclass(frozen=True, slots=True)
class Snippet:
    """Lines of code that load an artefact, in a language, and what they need.

    partial: whether they are for plans that factorise layers which are not `plain`, or have free ranks; None for every
    plan.
    loader: what the code begins with where that could be a file of its own.
    """

    label: str
    code: str
    partial: bool | None = None
    loader: str = ""
    language: str = "python"


@dataclass(frozen=True, slots=True)
class Export:
    """One kind of artefact. write(workspace, compressed, path) reports its steps; snippets(reference or None, file).

    dtypes: what its weights can be written in beside their own. traces: whether exporters of PyTorch take part, which
    set what a whole process shares while they run. options: fields of `Storage` that it knows beside these.
    offered(workspace): whether a page offers it for this network. ready(workspace): raises, before any work, where it
    cannot be written here.
    """

    name: str
    label: str
    suffix: str
    write: Callable[[Workspace, Compressed, Path], Exported]
    snippets: Callable[[str | None, str], tuple[Snippet, ...]]
    dtypes: tuple[str, ...] = ()
    traces: bool = False
    options: tuple[str, ...] = ()
    offered: Callable[[Workspace], bool] = lambda workspace: True
    ready: Callable[[Workspace], object] = lambda workspace: None


EXPORTS: dict[str, Export] = {}
REFERENCE_SAMPLES, FEWEST = 64, 8
"""Samples that both networks answer, at most, and those that they answer however much memory that takes."""


def register(export: Export) -> Export:
    """Make a kind of artefact known."""
    return enter(EXPORTS, export, "export")


def loading(export: Export, workspace: Workspace, plan: RankPlan, file: str) -> list[Snippet]:
    """The lines of code that load a file made by this plan."""
    partial = not all(workspace.profile.layer(name).plain and not choice.free for name, choice in plan.choices)
    return [s for s in export.snippets(workspace.opened.ref, file) if s.partial in (None, partial)]


def reloaded(
    kind: str,
    workspace: Workspace,
    compressed: Compressed,
    written: Path,
    path: Path,
    *,
    tolerance: float,
    write_dense: WriteDense | None = None,
) -> tuple[float, Verdict]:
    """Largest distance of outputs after reloading in a fresh process, and what it is.

    written: the temporary name of what will be `path`. tolerance: relative to the largest output; where it is exceeded
    the network's own rounding is looked at, and how far the dense network is apart (`_rounding`).
    Raises OtherAnswers where the file answers otherwise, InvalidFile where it cannot be used.
    """
    check_answers(compressed.score, path)
    report(Progress("reloading in a fresh process"))
    network, dense, axes = compressed.model, workspace.opened.ref or workspace.model, workspace.opened.axes
    inputs = reference_inputs(workspace)
    batches, began = batches_for(kind, inputs, axes), time.monotonic()
    answers = [run(network, Dataset(batch)) for batch in batches]
    again = answers_of(kind, dense, written, batches, time.monotonic() - began, name=str(path))
    difference = difference_of(answers, again)
    largest, relative = difference.distance, difference.share
    if relative <= tolerance:
        return largest, "same"
    report(Progress("looking whether the difference is rounding"))
    between = 0.0 if write_dense is None else dense_difference(workspace, kind, inputs, write_dense)
    limit = min(LARGEST, max(tolerance, SLACK * max(own_rounding(network, inputs, axes), between)))
    if relative <= limit and scores_agree(workspace, kind, written, network):
        return largest, "rounding"
    if compressed.accept_difference and isfinite(relative):
        return largest, "accepted"
    scored = " and the scores are not alike" if relative <= limit else ""
    reason = ""
    if dense_difference(workspace, kind, inputs, None) > limit:
        reason = "; build_model() gives another network in a fresh process: it is random or reads other files"
    samples = len(Dataset(batches[difference.batch], axes=axes))
    which = f"those of {difference.output!r} " if len(answers[0]) > 1 else ""
    raise OtherAnswers(
        f"{path} was not saved: outputs after reloading must be those of the measured network, but "
        f"{which}differ by {largest:.3g} in a batch of {samples}, "
        f"{relative:.2g} of the largest output, and rounding explains {limit:.2g}{scored}{reason}."
    )


def check_answers(score: Score | None, path: Path) -> None:
    """Refuse to write a network that answers with NaN or infinity where the dense one does not; raises InvalidPlan."""
    if score is not None and score.not_finite:
        raise InvalidPlan(
            f"{path} was not written: under this plan the network answers with NaN or infinity on "
            f"{score.not_finite:,} of {score.samples:,} samples; choose other ranks."
        )


def reference_inputs(workspace: Workspace) -> Inputs:
    """The first evaluation samples, as many as are scored at once; the example inputs where there are none to use."""
    try:
        reference = workspace.reference
        return reference.dataset.pick(slice(0, max(FEWEST, min(REFERENCE_SAMPLES, reference.batch)))).inputs
    except LowRankError:
        return workspace.opened.example_inputs


register_all(__name__, __path__)
