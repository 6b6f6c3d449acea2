"""Parameters that hold one matrix for each expert of a mixture: found by how their modules read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lowrank_core.errors import Cancelled
from lowrank_core.layers.computed import sharing
from lowrank_core.layers.data import Inputs, answer, evaluating, generators_untouched
from lowrank_core.layers.experts import matrix, put_in
from lowrank_core.layers.parts import ExpertRead, Experts

BESIDE_EXPERTS = "beside the matrices of its experts, which are layers, it holds vectors: nothing to factorise"


class Trial(Experts):
    """In place of a parameter while a network is looked at: computes with it as it is, and notes how it is read.

    turned: None until a product tells. fault: a read that is no product of an expert's matrix; "" where all were.
    """

    note: Callable[[Trial, int, int], None] = staticmethod(lambda trial, number, rows: None)
    """note(trial, number of the expert, rows): called with each product."""

    def __init__(self, values: nn.Parameter, host: nn.Module) -> None:
        nn.Module.__init__(self)
        self.values, self.fault, self.experts = values, "", len(values)
        self.turned: bool | None = None  # type: ignore[assignment]
        vars(self)["host"] = host  # which is around it, not inside

    @property
    def like(self) -> Tensor:
        """The parameter."""
        return self.values

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Before a product told, the last axis."""
        return self.values.shape[1 if self.turned else 2]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """The other one."""
        return self.values.shape[2 if self.turned else 1]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or not hasattr(Tensor, name):
                raise
            return getattr(ExpertRead(self), name)

    def times(self, number: int, x: Tensor, turned: bool) -> Tensor:
        """The product, with the numbers of the parameter; raises nothing where it is read in two ways."""
        if self.turned is None:
            self.turned = turned
        elif self.turned != turned:
            self.fault = "in both orientations"
        self.note(self, number, x.shape[:-1].numel())
        return x @ matrix(self.values, number, turned).mT

    def refuse(self, read: ExpertRead, how: str, otherwise: Callable[[Any], Any]) -> Any:
        """Note it, and do it with the numbers of the parameter."""
        self.fault = self.fault or f"by {how}"
        values = self.values if read.number is None else self.values[read.number]
        return otherwise(values.mT if read.flipped else values)


def with_trials(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, dict[nn.Module, str]]:
    """The network as it is looked at, a copy with trials where parameters are read as experts alone; and the reasons
    why other parameters of three axes are not, by the module that holds them.
    """
    shared = Counter(p for module in model.modules() for p in module._parameters.values() if p is not None)
    places = [
        (name, leaf)
        for name, module in model.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None and shared[parameter] == 1 and _may_be_fused(module, parameter)
    ]
    if not places:
        return model, {}
    looked = sharing(model)
    trials: list[tuple[str, Trial]] = []
    for name, leaf in places:
        host = looked.get_submodule(name)
        trial = Trial(host.get_parameter(leaf), host)
        put_in(host, leaf, trial)
        trials.append((leaf, trial))
    failed = ""
    try:
        with evaluating(looked), generators_untouched():
            answer(looked, inputs)
    except Cancelled:
        raise
    except Exception as error:
        failed = f"and without it the forward pass ends with {type(error).__name__}"
    reasons: dict[nn.Module, str] = {}
    for leaf, trial in trials:
        if failed or trial.fault or trial.turned is None:
            trial.host._modules.pop(leaf)
            trial.host._parameters[leaf] = trial.values
            how = f"its {leaf!r} is read {trial.fault or 'in no product'}"
            if failed:
                reasons[trial.host] = f"{how}, {failed}"
            elif trial.fault and trial.turned is not None:
                reasons[trial.host] = f"{how}, so it is not one matrix for each expert alone"
        else:
            reasons.setdefault(trial.host, BESIDE_EXPERTS)
    return looked, reasons


def _may_be_fused(module: nn.Module, parameter: Tensor) -> bool:
    if type(module).__module__.startswith("torch.") or parameter.ndim != 3 or len(parameter) < 2:
        return False
    return parameter.is_floating_point() and min(parameter.shape) > 1
