"""Parameters that hold one matrix for each expert of a mixture: found by how their modules read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from lowrank_core.errors import Cancelled
from lowrank_core.layers.computed import sharing, with_stand_ins
from lowrank_core.layers.data import Inputs, answer, evaluating, generators_untouched
from lowrank_core.layers.experts import matrix
from lowrank_core.layers.parts import ExpertRead, Experts
from lowrank_core.networks.profile import LINEAR_MAPS, is_conv1d

BESIDE_EXPERTS = "beside the matrices of its experts, which are layers, it holds vectors: nothing to factorise"


class Trial(Experts):
    """In place of a parameter while a network is looked at: computes with it as it is, and notes how it is read.

    A parameter of two axes is one of experts where it is viewed as (experts, rows, columns) before it is read.
    turned: None until a product tells. fault: a read that is no product of an expert's matrix; "" where all were.
    """

    note: Callable[[Trial, int, int], None] = staticmethod(lambda trial, number, rows: None)
    """note(trial, number of the expert, rows): called with each product."""

    def __init__(self, values: nn.Parameter, host: nn.Module) -> None:
        nn.Module.__init__(self)
        self.values, self.fault, self.experts = values, "", len(values) if values.ndim == 3 else 0
        self.turned: bool | None = None  # type: ignore[assignment]
        vars(self)["host"] = host  # which is around it, not inside

    @property
    def flat(self) -> bool:
        """Whether the matrices lie one behind the other in two axes."""
        return self.values.ndim == 2

    @property
    def matrices(self) -> Tensor:
        """(experts, ., .) of the parameter."""
        return self.values.view(self.experts, -1, self.values.shape[-1])

    @property
    def like(self) -> Tensor:
        """The parameter."""
        return self.values

    @property
    def in_features(self) -> int:  # type: ignore[override]
        """Before a product told, the last axis."""
        return self.matrices.shape[1 if self.turned else 2]

    @property
    def out_features(self) -> int:  # type: ignore[override]
        """The other one."""
        return self.matrices.shape[2 if self.turned else 1]

    def view(self, *shape: Any) -> Any:
        """The matrices of the experts, which a parameter of two axes is viewed as."""
        viewed = self.values.view(*shape)
        fits = viewed.ndim == 3 and len(viewed) > 1 and viewed.shape[-1] == self.values.shape[-1]
        if not fits or (self.experts and self.experts != len(viewed)):
            return self._whole("view", lambda w: viewed)
        self.experts = len(viewed)
        return ExpertRead(self)

    reshape = view

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return self._whole("its rows", lambda w: w[index]) if self.flat else ExpertRead(self)[index]

    def __getattr__(self, name: str) -> Any:
        if self._parameters and name in self.READ and self.flat:
            plain = name in ("shape", "ndim", "dtype", "device", "dim", "size")
            return getattr(self.values, name) if plain else self._whole(name, lambda w: getattr(w, name))
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or not hasattr(Tensor, name):
                raise
            return self._whole(name, lambda w: getattr(w, name))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for trial in tree_flatten((args, kwargs or {}))[0]:
            if isinstance(trial, Trial) and trial.flat:
                own = tree_map(partial(_instead, trial), (args, kwargs or {}))
                trial.fault = trial.fault or f"by {func.__name__}"
                return func(*own[0], **own[1])
        return super().__torch_function__(func, types, args, kwargs)

    def _whole(self, how: str, otherwise: Callable[[Tensor], Any]) -> Any:
        """Note a read of the parameter as it is, and do it."""
        self.fault = self.fault or f"by {how}"
        return otherwise(self.values)

    def times(self, number: int, x: Tensor, turned: bool) -> Tensor:
        """The product, with the numbers of the parameter; raises nothing where it is read in two ways."""
        if self.turned is None:
            self.turned = turned
        elif self.turned != turned:
            self.fault = "in both orientations"
        self.note(self, number, x.shape[:-1].numel())
        return x @ matrix(self.matrices, number, turned).mT

    def refuse(self, read: ExpertRead, how: str, otherwise: Callable[[Any], Any]) -> Any:
        """Note it, and do it with the numbers of the parameter."""
        self.fault = self.fault or f"by {how}"
        values = self.matrices if read.number is None else self.matrices[read.number]
        return otherwise(values.mT if read.flipped else values)


def _instead(trial: Trial, leaf: Any) -> Any:
    return trial.values if leaf is trial else leaf


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: Trial, *others: Any) -> Any:
        return self._whole(name.strip("_"), lambda w: getattr(w, name)(*others))

    return operator


for _name in ("add", "sub", "mul", "truediv", "matmul", "pow", "neg", "lt", "gt", "le", "ge"):
    setattr(Trial, f"__{_name}__", _operator(f"__{_name}__"))


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
    hosts = [(looked.get_submodule(name), leaf) for name, leaf in places]
    trials = [(leaf, Trial(host.get_parameter(leaf), host)) for host, leaf in hosts]
    named = (f"{name}.{leaf}".removeprefix(".") for name, leaf in places)
    with_stand_ins(looked, dict(zip(named, (trial for _, trial in trials), strict=True)))
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
            elif trial.fault == "by an index of many" or (trial.fault and trial.turned is not None):
                reasons[trial.host] = f"{how}, so it is not one matrix for each expert alone"
        else:
            reasons.setdefault(trial.host, BESIDE_EXPERTS)
    return looked, reasons


def _may_be_fused(module: nn.Module, parameter: Tensor) -> bool:
    """Three axes, or two with many rows, in a module that is none of PyTorch's and no other kind of layer."""
    if type(module).__module__.startswith("torch.") or isinstance(module, LINEAR_MAPS) or is_conv1d(module):
        return False
    if not parameter.is_floating_point() or min(parameter.shape, default=0) < 2:
        return False
    return parameter.ndim == 3 or (parameter.ndim == 2 and parameter.shape[0] > parameter.shape[1])
