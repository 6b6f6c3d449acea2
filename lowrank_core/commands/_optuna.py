"""The trials of a search as a study of Optuna, which optuna-dashboard opens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_core.extras import extra
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import Choice
from lowrank_core.scoring.scores import Score
from lowrank_core.selection._problem import Problem, Quantity, Trial
from lowrank_core.store.files import whole_or_nothing
from lowrank_core.store.kinds import STUDY_MARK


def check_optuna() -> None:
    """Raise MissingExtra where Optuna is not installed, before anything is searched."""
    with extra("optuna", "search --optuna"):
        import optuna  # noqa: F401


def write_study(problem: Problem, rule: str, trials: Sequence[Trial], score: Score, path: Path) -> int:
    """Write the trials that were measured, the answer last with its whole score; how many there are.

    Two values each: the score, and what the plan takes of the first budget's quantity, else multiplies. Parameters: the
    method of each layer, and the rank of each axis where it is not dense. The file takes its place whole.
    """
    import optuna

    quantity: Quantity = next(iter(dict(problem.budgets)), "multiplies")
    told = [*(trial for trial in trials[:-1] if trial.score is not None and not trial.score.not_finite)]
    with whole_or_nothing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{temporary}")
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=f"{problem.workspace.name}, {rule}",
                directions=["maximize" if score.higher_is_better else "minimize", "minimize"],
            )
            study.set_metric_names([score.metric, quantity])
            study.set_user_attr(STUDY_MARK, problem.workspace.profile.fingerprint)
            methods = _methods(problem, trials)
            for trial in told:
                assert trial.score is not None
                study.add_trial(_frozen(problem, trial, trial.score, quantity, methods, {"note": trial.note}))
            about = {"note": trials[-1].note, "answer": True}
            study.add_trial(_frozen(problem, trials[-1], score, quantity, methods, about))
        finally:
            storage.remove_session()
            storage.engine.dispose()
            optuna.logging.set_verbosity(verbosity)
    return len(told) + 1


def _methods(problem: Problem, trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """What each layer was in any trial, dense first: the choices of a categorical parameter are the same in all."""
    used: dict[str, dict[str, None]] = {layer.name: {"dense": None} for layer in problem.workspace.profile.layers}
    for trial in trials:
        for name, choice in trial.candidate.plan.choices:
            used[name][choice.method] = None
    return {name: tuple(methods) for name, methods in used.items()}


def _frozen(
    problem: Problem,
    trial: Trial,
    score: Score,
    quantity: Quantity,
    methods: dict[str, tuple[str, ...]],
    about: dict[str, Any],
) -> Any:
    import optuna

    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for layer in problem.workspace.profile.layers:
        choice = trial.candidate.plan.get(layer.name)
        if len(methods[layer.name]) > 1:
            params[f"{layer.name}: method"] = "dense" if choice is None else choice.method
            distributions[f"{layer.name}: method"] = optuna.distributions.CategoricalDistribution(methods[layer.name])
        for axis, rank, top in _ranks(layer, choice):
            params[f"{layer.name}: {axis}"] = rank
            distributions[f"{layer.name}: {axis}"] = optuna.distributions.IntDistribution(1, max(rank, top))
    cost = trial.cost
    known = {"bytes": cost.bytes, "multiplies": cost.multiplies, "parameters": cost.parameters, "drop": score.drop}
    interval = {"drop_low": score.drop_low, "drop_high": score.drop_high, "samples": score.samples}
    return optuna.trial.create_trial(
        values=[score.value, problem.amount(quantity, trial.candidate.plan)],
        params=params,
        distributions=distributions,
        user_attrs={**known, **interval, **{name: value for name, value in about.items() if value}},
    )


def _ranks(layer: Layer, choice: Choice | None) -> list[tuple[str, int, int]]:
    """(what a rank counts, rank, the largest) for each axis."""
    if choice is None:
        return []
    method = METHODS[choice.method]
    axes = ["rank"] if len(method.axes) == 1 else [f"rank {axis}" for axis in method.axes]
    return list(zip(axes, choice.rank, method.max_rank(layer.spec), strict=True))
