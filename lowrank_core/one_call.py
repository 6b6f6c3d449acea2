"""From a live network to a compressed one in one call: open, choose the ranks, compress, correct, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank_core.errors import InvalidFile
from lowrank_core.exports import EXPORTS, Compressed, Exported
from lowrank_core.figures import drop_text, how_many, score_text, share
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import Cost, plan_cost
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report as tell
from lowrank_core.running.scope import scope
from lowrank_core.scoring.metrics import Metric
from lowrank_core.scoring.scores import Score, final_score
from lowrank_core.selection import Rule, check_answer, make, of_all_samples, search
from lowrank_core.selection._problem import problem_of
from lowrank_core.store.cache import Cache
from lowrank_core.store.files import weights_beside
from lowrank_core.store.kinds import EXPORTED
from lowrank_core.workspace import Workspace


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Compression:
    """A compressed network, the plan it follows, and its figures beside those of the dense network; print it to read.

    model: in eval mode, with parameters of its own. score: on all evaluation samples, paired with the dense network.
    correction: what was fitted, None where nothing was. workspace: for everything else, such as other plans.
    """

    model: nn.Module
    plan: RankPlan
    cost: Cost
    dense_cost: Cost
    score: Score
    correction: Correction | None
    workspace: Workspace

    def __str__(self) -> str:
        cost, dense, score, layers = self.cost, self.dense_cost, self.score, len(self.workspace.profile.layers)
        percent = self.workspace.opened.evaluate is None and self.workspace.metric.share
        value, drop = partial(score_text, percent=percent), partial(drop_text, percent=percent)
        interval = f" ({score.why_none})" if score.too_few else ""
        if score.drop_low is not None and score.drop_high is not None:
            interval = f" (95 % interval {drop(score.drop_low)} to {drop(score.drop_high)})"
        samples = f" on {how_many(score.samples, 'sample')}" if score.samples else ""
        each = "".join(f"\n{output.name}: {value(output.value)}; drop {drop(output.drop)}" for output in score.outputs)
        each = each if len(score.outputs) > 1 else ""
        return (
            f"{self.workspace.name}: {len(self.plan.choices)} of {layers} layers compressed, "
            f"{share(cost.multiplies / max(1, dense.multiplies))} of the multiplies, "
            f"{share(cost.bytes / max(1, dense.bytes))} of the bytes\n"
            f"{score.metric} {value(score.value)}{samples}; dense {value(score.dense)}; "
            f"drop {drop(score.drop)}{interval}{each}"
        )

    def __repr__(self) -> str:
        return f"<Compression of {self}>"

    def export(
        self, path: str | Path, *, format: str | None = None, report: Callable[[Progress], None] | None = None
    ) -> Exported:
        """Write a file, reload it in a fresh process and compare; `path` is there whole and right, or as it was.

        format: a key of `EXPORTS`; without one the ending of the path tells (.safetensors, .pt2, .onnx, .pte, .h,
        .json; .zip is a bundle).
        Raises InvalidFile or InvalidModel where it cannot be written, or answers otherwise once it is read.
        """
        path = Path(path)
        kinds = {export.suffix: name for name, export in EXPORTS.items() if name != "hf"}
        kind = format or kinds.get(path.suffix)
        if kind not in EXPORTS:
            raise InvalidFile(
                f"{path} ends in none of {', '.join(kinds)}; name it so, or give format, one of {', '.join(EXPORTS)}."
            )
        check_beside(kind, path)
        fitted = None if self.correction is None else self.correction.to_dict()
        compressed = Compressed(self.model, self.plan, self.score, fitted)
        with scope(report=report):
            return EXPORTS[kind].write(self.workspace, compressed, path)


def check_beside(kind: str, path: Path) -> None:
    """Raise InvalidFile where the weights of an export would take the place of a file that nobody named."""
    beside = weights_beside(path)
    if EXPORTED[kind].beside and beside.exists() and not EXPORTED[kind](beside):
        raise InvalidFile(
            f"{beside}, where the weights go, is not of a {path.name} of ours; remove it, or give another name."
        )


def compress(
    model: nn.Module,
    example_inputs: Any,
    eval_data: Any = None,
    train_data: Any = None,
    metric: Callable[[Tensor, Tensor], Any] | Metric | str | None = None,
    *,
    outputs: str | int | Sequence[str | int] = (),
    multiplies: float | None = None,
    bytes: float | None = None,
    max_drop: float | str | None = None,
    rule: str | Rule = "budget",
    methods: str | Iterable[str] = (),
    lock: str | Iterable[str] = (),
    multiple_of: int = 1,
    correct: bool = True,
    free_ranks: bool = False,
    samples: int = 1000,
    evaluate: Callable[[nn.Module], Any] | None = None,
    higher_is_better: bool = True,
    cache: Cache | None = None,
    name: str | None = None,
    report: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Compression:
    """A compressed copy of a live network, its plan and its measured figures. The network itself is never changed.

    model, example_inputs, eval_data, train_data, metric, outputs, evaluate, higher_is_better, cache, name: see
    `Workspace.of`.
    multiplies, bytes: at most so many; up to 1 a share of the dense network. max_drop: the largest drop of the score,
    in its own unit, 0.01 or "1%" is one point of an accuracy. rule: how ranks are chosen, a name of `selection.RULES`
    or a rule with settings. methods: decompositions that may be used, without any the rule's own. lock: layers to
    leave dense, or patterns with a *. multiple_of: every rank is a multiple of it. correct: teach the factors the
    dense answers, without labels. free_ranks: store factors with rows of the identity (`layers.spec.free_form`), which
    allows higher ranks at the same cost. samples: of one measurement inside the search; the answer is measured on all.
    report(progress) hears what goes on, in words; cancelled() ends it once it is true.

    Raises InvalidModel or InvalidData for what is handed over, InvalidSearch for what is asked, Cancelled.

    >>> import torch
    >>> network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> found = compress(network, torch.randn(1, 16), eval_data=torch.randn(200, 16), multiplies=0.5)
    >>> found.cost.multiplies / found.dense_cost.multiplies <= 0.5, found.score.metric
    (True, 'agreement with the dense network')
    """
    with scope(report=report, cancelled=cancelled):
        workspace = Workspace.of(
            model,
            example_inputs,
            eval_data,
            train_data,
            metric,
            outputs=outputs,
            evaluate=evaluate,
            higher_is_better=higher_is_better,
            cache=cache,
            name=name,
        )
        problem = problem_of(
            workspace,
            multiplies=multiplies,
            bytes=bytes,
            max_drop=max_drop,
            methods=_names(methods),
            lock=_names(lock),
            multiple_of=multiple_of,
            corrected=correct,
            free=free_ranks,
            samples=samples,
        )
        *_, answer = search(make(rule, {}) if isinstance(rule, str) else rule, problem)
        plan, correction = answer.candidate.plan, answer.candidate.correction
        compressed = workspace.compress(plan, correction)
        score = of_all_samples(problem, answer)
        if score is None:
            tell(Progress("measuring the answer"))
            score = final_score(workspace.measure(compressed))
        check_answer(score)
    dense = plan_cost(workspace.profile)
    return Compression(compressed, plan, answer.cost, dense, score, correction, workspace)


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
