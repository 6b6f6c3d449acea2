"""A network that comes from Python: a live `nn.Module` and its data as a ModelContract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel
from lowrank_core.layers.computed import copied
from lowrank_core.layers.data import BatchAxes
from lowrank_core.networks.batch_axes import batch_axes
from lowrank_core.networks.wrappers import check_tree, unwrapped
from lowrank_core.scoring.metrics import Metric
from lowrank_core.sources._contract import ModelContract, dataset_of


def live_contract(
    model: nn.Module,
    example_inputs: Any,
    eval_data: Any = None,
    train_data: Any = None,
    metric: Callable[[Tensor, Tensor], Any] | Metric | str | None = None,
    *,
    outputs: Any = (),
    evaluate: Callable[[nn.Module], Any] | None = None,
    higher_is_better: bool = True,
    name: str | None = None,
) -> ModelContract:
    """The arguments of `Workspace.of`. The model is copied once; data that are no function are read here.

    Raises InvalidData where they cannot be read.
    """
    model = unwrapped(model)
    copy_of_it = cache(lambda: _copy(model))
    contract = ModelContract(
        name=name or type(model).__name__,
        build_model=copy_of_it,
        example_inputs=_function(example_inputs),
        eval_data=_function(eval_data),
        train_data=_function(train_data),
        metric=metric,
        outputs=outputs,
        evaluate=evaluate,
        higher_is_better=higher_is_better,
        description=f"{type(model).__qualname__}, from Python.",
    )
    given = [data for data in (eval_data, train_data) if data is not None and not callable(data)]
    axes = _axes(copy_of_it(), contract.example_inputs) if given else None
    return replace(
        contract,
        eval_data=_read(contract, "eval_data", eval_data, axes),
        train_data=_read(contract, "train_data", train_data, axes),
        axes=axes,
    )


def _function(value: Any) -> Callable[[], Any] | None:
    return value if value is None or callable(value) else lambda: value


def _axes(model: Any, example_inputs: Callable[[], Any] | None) -> BatchAxes | None:
    """Where the network has its batch, as far as that can be seen before it is checked."""
    if example_inputs is None or not isinstance(model, nn.Module):
        return None
    try:
        return batch_axes(model, example_inputs())
    except Exception:  # is refused in words once the network is opened
        return None


def _read(contract: ModelContract, argument: str, value: Any, axes: BatchAxes | None) -> Callable[[], Any] | None:
    """A function as it is; other data read once: a generator is then empty, and a loader may shuffle anew."""
    return value if value is None or callable(value) else _function(dataset_of(contract, argument, axes))


def _copy(model: Any) -> Any:
    """A copy of a module; what is none is given back, to be refused."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return model  # the one is refused, of the other a new network is made
    check_tree(model)
    try:
        return copied(model)
    except Exception as error:  # whatever an attribute of a module says that cannot be copied
        raise InvalidModel(
            f"model cannot be copied ({type(error).__name__}: {' '.join(str(error).split())[:200]}), and it is a copy "
            "that is compressed; take what cannot be copied out of its attributes."
        ) from error
