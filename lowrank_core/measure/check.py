"""check: what a model brings, what is missing and what that costs, found by running every function of the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_core.compression.self_check import SelfCheck
from lowrank_core.errors import LowRankError
from lowrank_core.figures import how_many
from lowrank_core.layers.data import Dataset, first_axes, run, tensors
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.scoring.judging import Judged
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.sources._contract import FUNCTIONS
from lowrank_core.sources._opened import COMPARED, more_notice, not_finite_notice, of_one_class, sorted_by_class
from lowrank_core.workspace import Workspace

SAMPLES = 1000
"""Most samples the dense score is measured on."""

WITHOUT = {
    "example_inputs": "the first evaluation sample is used; multiplies are those of its size",
    "eval_data": "no labels: the score is {score}, not accuracy",
    "train_data": "calibration uses evaluation inputs without their labels; no fine-tuning",
    "metric": "optional: class indices are scored by top-1 accuracy, numbers by R2",
    "evaluate": "optional: the score is computed from eval_data",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One function of the contract. state: "there", "missing" (detail says what that costs) or "refused" (why)."""

    function: str
    state: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check has found of a model: each function of its contract, its layers, cost and dense score."""

    name: str
    fingerprint: str
    findings: tuple[Finding, ...]
    layers: int
    skipped: int
    cost: Cost
    score: Score | None
    judged: Judged | None
    notices: tuple[str, ...]
    self_check: SelfCheck

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings that must be put right before the model can be used."""
        return tuple(finding for finding in self.findings if finding.state == "refused")


def check(workspace: Workspace) -> Report:
    """Run every function of the contract and the dense network on up to 1,000 samples."""
    opened, self_check = workspace.opened, workspace.self_check
    profile = workspace.profile
    findings: list[Finding] = []
    notices = list(opened.notices)

    def score_of() -> str:
        try:
            return workspace.metric.name
        except LowRankError:
            return COMPARED

    def look(function: str, describe: Callable[[], str]) -> None:
        if function not in opened.provides:
            findings.append(Finding(function, "missing", WITHOUT[function].format(score=score_of())))
            return
        try:
            findings.append(Finding(function, "there", describe()))
        except LowRankError as error:
            findings.append(Finding(function, "refused", str(error)))

    def data(load: Callable[[], Dataset], source: str) -> Callable[[], str]:
        def describe() -> str:
            dataset = load()
            run(opened.model, dataset.pick(slice(0, 1)), source=source)
            if dataset.more:
                notices.append(more_notice("evaluation" if source == "eval_data" else "training", dataset))
            if bad := not_finite_notice(f"{source}()", dataset):
                notices.append(bad)
            if of_one_class(dataset):
                notices.append("The labels are all alike: a network that always answers the same is always right.")
            if sorted_by_class(dataset):
                notices.append("The labels come sorted by class; they are shuffled (seed 0) before use.")
            return _described(dataset)

        return describe

    cost = plan_cost(profile)
    findings.append(Finding("build_model", "there", f"{type(opened.model).__name__}, {cost.parameters:,} parameters"))
    look("example_inputs", lambda: _shapes(opened.example_inputs))
    look("eval_data", data(opened.eval_data, "eval_data"))
    look("train_data", data(opened.train_data or opened.eval_data, "train_data"))
    score: Score | None = None
    judged: Judged | None = None
    refused: LowRankError | None = None
    if not any(finding.state == "refused" for finding in findings):
        try:
            judged = None if opened.evaluate is not None else workspace.judged
            score = final_score(workspace.measure(opened.model, samples=SAMPLES))
            if opened.evaluate is None and (bad := workspace.reference.dense_not_finite(SAMPLES)):
                notices.append(
                    f"The network itself answers with NaN or infinity on {bad:,} of {score.samples:,} samples."
                )
        except LowRankError as error:
            refused = error

    def scored() -> str:
        if refused is not None:
            raise refused
        return "not tried" if score is None else f"{score.value:.4g}"

    look("metric", scored)
    look("evaluate", scored)
    if refused is not None and not any(finding.state == "refused" for finding in findings):
        findings.append(Finding("score", "refused", str(refused)))
    return Report(
        name=workspace.name,
        fingerprint=profile.fingerprint,
        findings=tuple(findings),
        layers=len(profile.layers),
        skipped=len(profile.skipped),
        cost=cost,
        score=score,
        judged=judged,
        notices=tuple(dict.fromkeys(notices)),
        self_check=self_check,
    )


def _described(data: Dataset) -> str:
    """A data set in words: '500 samples, (3, 32, 32) float32; 10 classes of 48 to 53 samples'."""
    one = (data.axes or first_axes(data.inputs)).pick(data.inputs, torch.tensor(0))
    text = f"{how_many(len(data), 'sample')} of {_shapes(one)}"
    targets = data.targets
    text += "; weights" if data.weights is not None else ""
    if targets is None:
        return f"{text}; no targets"
    if targets.ndim == 1 and not targets.is_floating_point():
        counts = torch.unique(targets, return_counts=True)[1]
        return f"{text}; {len(counts)} classes of {int(counts.min()):,} to {int(counts.max()):,} samples"
    return f"{text}; targets {_shape(targets[0])}"


def _shapes(inputs: object) -> str:
    return ", ".join(map(_shape, tensors(inputs)))


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


assert set(WITHOUT) | {"build_model"} == set(FUNCTIONS)
