"""The check of a network as it is opened: whether it can be measured, and which layers a chain can stand for.

Every layer is replaced in the way that compression replaces it, by a chain of full rank that computes what the layer
does; then the network must answer as before, but for rounding. How much that is, the network itself tells: noise of the
size of its rounding is added to what its layers put out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_core.algebra.linalg import MatrixFactorization
from lowrank_core.compression.apply import apply
from lowrank_core.errors import Cancelled, few
from lowrank_core.layers.data import (
    BatchAxes,
    Inputs,
    Outputs,
    answer,
    cloned,
    distance,
    evaluating,
    generators_untouched,
    named_outputs,
    tensors,
)
from lowrank_core.layers.spec import Rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.beside import BESIDE, UNOWNED
from lowrank_core.networks.profile import Layer, ModelProfile, Skipped, module_at, weight_at
from lowrank_core.networks.twin import twin
from lowrank_core.plans.plan import Choice, RankPlan

SAMPLES = 2
"""Of the example inputs that the network is run on."""

ROUNDING = 8.0
"""Outputs this many units of their type's precision apart, of the largest, differ by rounding alone."""

NOISES = 8.0
"""Beyond that, answers may be so many times as far apart as noise of ROUNDING in every layer moves them."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at. ok: nothing is in the way; detail: what was seen, in words."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What a network has told of itself.

    refusal: why it can have no figures, in one line; "" where it can. left_alone: layers that no chain can stand for.
    """

    checked: tuple[Checked, ...]
    refusal: str = ""
    left_alone: tuple[Skipped, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return all(one.ok for one in self.checked)


def self_check(
    model: nn.Module, profile: ModelProfile, inputs: Inputs, axes: BatchAxes | None, *, by_sample: bool = True
) -> SelfCheck:
    """Look at a network with a few calls on its example inputs; it is not changed, nor are shared random generators.

    axes: as found by `batch_axes`. by_sample: whether its outputs are judged sample by sample, so that it can have no
    figures without a batch axis; a model file that scores itself needs none.
    """
    owned = _owned(profile)
    try:
        dense = twin(model, profile.layers)
    except Exception as error:  # whatever an attribute of a module says that cannot be copied
        detail = (
            f"this network cannot be copied ({_short(error)}), and it is a copy that is compressed; take what cannot "
            "be copied out of its attributes"
        )
        return _refused((owned, Checked("copy", False, detail)))
    if axes is not None and axes.proved and axes.samples(inputs) > SAMPLES:
        inputs = axes.pick(inputs, slice(0, SAMPLES))
    with evaluating(dense), generators_untouched():
        answers = _answers(dense, inputs)
        again, finite = _again(dense, inputs, answers), _finite(answers)
        batch = _batch(axes, answers, random=not again.ok)
        seen = (again, batch, finite)
        if not all(one.ok for one in (again, finite)):
            return _refused((again, finite, batch, Checked("full rank", False, "not tried"), owned))
        whole, left_alone = _full_rank(model, dense, profile, inputs, answers)
    checked = (*seen, whole, owned)
    if by_sample and not batch.ok:
        return replace(_refused(checked), left_alone=left_alone)
    return SelfCheck(checked, "", left_alone)


def _refused(checked: tuple[Checked, ...]) -> SelfCheck:
    """Why there are no figures: the first thing that was found of the whole network."""
    reason = next(one.detail for one in checked if not one.ok and one.what not in ("full rank", "owned"))
    return SelfCheck(checked, f"{reason}. So there are no figures and no search; sizes and spectra hold all the same.")


# ---- answers --------------------------------------------------------------------------------------------------------


def _answers(model: nn.Module, inputs: Inputs) -> Outputs:
    return named_outputs(answer(model, inputs))


def _apart(ours: Outputs, dense: Outputs) -> float:
    """The largest distance of two answers in units of precision of the largest number; infinite for other forms."""
    if ours.keys() != dense.keys():
        return torch.inf
    largest = 0.0
    for name, a in dense.items():
        b = ours[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return torch.inf
        if a.is_floating_point() or a.is_complex():
            largest = max(largest, distance(a, b)[1] / torch.finfo(a.dtype).eps)
    return largest


def _share(ours: Outputs, dense: Outputs) -> str:
    """How far two answers are apart, in words."""
    apart = _apart(ours, dense)
    if apart == torch.inf:
        return "their form, their type or what of them is finite"
    eps = max(torch.finfo(t.dtype).eps for t in dense.values() if t.is_floating_point() or t.is_complex())
    return f"{100 * apart * eps:.2g} % of the largest output"


# ---- what is looked at ----------------------------------------------------------------------------------------------


def _owned(profile: ModelProfile) -> Checked:
    names = [skipped.name for skipped in profile.skipped if skipped.reason == UNOWNED]
    if not names:
        return Checked("owned", True, "every layer that runs is in a module list or a module")
    return Checked("owned", False, f"{few(names, repr)} run but are found in no module list: {UNOWNED}")


def _batch(axes: BatchAxes | None, answers: Outputs, *, random: bool) -> Checked:
    outputs = axes.outputs if axes is not None else ()
    if axes is None or all(axis is None for axis in outputs):
        return Checked(
            "batch axis",
            False,
            "no output of this network has a batch axis: none grows with the number of samples, so there is no answer "
            "for each; return one row per sample",
        )
    taken = {axis for axis in axes.inputs if axis is not None}
    words = [f"the batch is axis {' and '.join(map(str, sorted(taken)))} of the inputs"]
    for name, axis in zip(answers, outputs, strict=False):
        words.append(f"axis {axis} of {name}" if axis is not None else f"{name} has none and is not judged")
    if not (axes.proved or random):
        words.append("by shapes alone: an answer depends on the other samples of its batch")
    return Checked("batch axis", True, ", ".join(words))


def _finite(answers: Outputs) -> Checked:
    """Numbers below all others may be there: they leave classes out."""
    floating = {name: t for name, t in answers.items() if t.is_floating_point() or t.is_complex()}
    bad = {}
    for name, value in floating.items():
        count = int((value.isnan() | value.isinf() & ~value.isneginf()).sum()) if not value.is_complex() else 0
        if count:
            bad[name] = f"{count:,} of the {value.numel():,} numbers of {name}"
    kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in floating.values()})) or "whole numbers"
    if bad:
        text = f"the answers of this network are not finite (NaN or Inf): {', '.join(bad.values())}; repair it first"
        return Checked("finite", False, text)
    return Checked("finite", True, f"all answers are finite, {kinds}")


def _again(dense: nn.Module, inputs: Inputs, answers: Outputs) -> Checked:
    """Whether the network answers the same twice; where it does not, whether numbers are drawn, and where."""
    second = _answers(dense, inputs)
    if _apart(second, answers) <= ROUNDING:
        return Checked("same answer twice", True, "two calls with the same inputs give the same answers")
    share = _share(second, answers)
    place = _first_to_differ(dense, inputs)
    drawn = []
    for _ in range(2):
        _same_draws()
        drawn.append(_answers(dense, inputs))
    if _apart(*drawn) <= ROUNDING:
        text = (
            f"this network is random in eval mode{place}: two calls with the same inputs differ by {share}; switch off "
            "what draws random numbers there, as F.dropout(..., training=self.training) does"
        )
    else:
        text = (
            f"this network gives another answer each time{place}: two calls with the same inputs differ by {share}; it "
            "remembers earlier calls or has a random generator of its own"
        )
    return Checked("same answer twice", False, text)


def _same_draws() -> None:
    """Begin all shared generators anew; `generators_untouched` around it puts them back."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)


def _first_to_differ(dense: nn.Module, inputs: Inputs) -> str:
    """Words for the first module, inner ones before those around them, that answers otherwise to the same inputs."""
    names = {module: name for name, module in dense.named_modules()}
    runs: list[list[tuple[nn.Module, list[Tensor], list[Tensor]]]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        runs[-1].append((module, tensors(cloned((args, kwargs))), tensors(cloned(output))))

    with ExitStack() as hooks:
        for module in names:
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        for _ in range(2):
            runs.append([])
            answer(dense, inputs)
    for (module, taken, given), (other, taken_again, given_again) in zip(*runs, strict=False):
        if module is not other:
            break
        same = len(taken) == len(taken_again) and all(map(_equal, taken, taken_again))
        if same and not (len(given) == len(given_again) and all(map(_equal, given, given_again))):
            return f" (first in {type(module).__name__} {names[module]!r})" if names[module] else ""
    return ""


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


# ---- full rank ------------------------------------------------------------------------------------------------------


MOST_TRIALS = 32
"""Groups of layers that are split to find those at fault; of a group left after that, all are left alone."""


def _full_rank(
    model: nn.Module, dense: nn.Module, profile: ModelProfile, inputs: Inputs, answers: Outputs
) -> tuple[Checked, tuple[Skipped, ...]]:
    """Whether all layers can be chains at once; where not, those that cannot."""
    limit: list[float] = []
    trials = iter(range(MOST_TRIALS))

    def fault(layers: Sequence[Layer]) -> str | None:
        """What is wrong with chains in place of these layers; None where nothing is."""
        try:
            with evaluating(_chained(model, profile, layers)) as chained:
                ours = _answers(chained, inputs)
        except Cancelled:
            raise
        except Exception as error:
            return f"with a chain in its place the forward pass ends with {_short(error)}"
        apart = _apart(ours, answers)
        if apart <= ROUNDING:
            return None
        if apart < torch.inf and not limit:
            limit.append(_noise(dense, profile, inputs, answers))
        if apart < torch.inf and apart <= NOISES * limit[0]:
            return None
        return (
            f"a chain of full rank in its place changes {_share(ours, answers)}: something reads this layer or adds to "
            "what it puts out, beside its own forward"
        )

    layers = profile.layers
    found = [Skipped(x.name, x.type, reason) for x, reason in _culprits(fault, (), layers, trials)] if layers else []
    alone = [*(skipped for skipped in profile.skipped if skipped.reason in BESIDE), *found]
    count = len(layers) - len(found)
    text = f"{count} {'layer' if count == 1 else 'layers'} at full rank answer as the dense network" if count else ""
    if alone:
        shown = "; ".join(f"{skipped.name!r} is left alone: {skipped.reason}" for skipped in alone[:3])
        text = "; ".join(filter(None, (text, shown, f"and {len(alone) - 3} more" if len(alone) > 3 else "")))
    return Checked("full rank", not alone, text or "there is no layer that can be compressed"), tuple(found)


def _culprits(
    fault: Callable[[Sequence[Layer]], str | None], good: Sequence[Layer], part: Sequence[Layer], trials: Iterator[int]
) -> list[tuple[Layer, str]]:
    """The layers of a part that cannot be chains together with the good ones, by halves."""
    reason = fault([*good, *part])
    if reason is None:
        return []
    if len(part) == 1 or next(trials, None) is None:
        return [(layer, reason) for layer in part]
    half = len(part) // 2
    first = _culprits(fault, good, part[:half], trials)
    bad = {layer.name for layer, _ in first}
    return first + _culprits(fault, [*good, *(x for x in part[:half] if x.name not in bad)], part[half:], trials)


def _chained(model: nn.Module, profile: ModelProfile, layers: Sequence[Layer]) -> nn.Module:
    """A copy in which these layers are chains of full rank."""
    choices = {}
    for layer in layers:
        method = METHODS["svd"] if METHODS["svd"].obstacle(layer.spec) is None else layer.methods[0]
        choices[layer.name] = Choice(method.name, method.max_rank(layer.spec))
    return apply(model, profile, RankPlan.of(profile.fingerprint, choices), _FullRank(model, profile))


@dataclass(frozen=True, slots=True)
class _FullRank:
    """Factors of full rank, and cheap ones: of a matrix M and the identity, which no rounding touches."""

    model: nn.Module
    profile: ModelProfile

    def __call__(self, name: str, method: str) -> _Weights:
        layer = self.profile.layer(name)
        return _Weights(layer, method, weight_at(self.model, layer).detach())


@dataclass(frozen=True, slots=True)
class _Weights:
    layer: Layer
    method: str
    weight: Tensor

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One weight per stage."""
        spec, weight = self.layer.spec, self.weight
        factorization = METHODS[self.method].factorize(spec, weight)
        if self.method != "svd" or not isinstance(factorization, MatrixFactorization):
            return factorization.weights(rank)
        groups = 1 if spec.table else spec.groups
        stack = weight.mT[None] if spec.table else weight.reshape(groups, len(weight) // groups, -1)
        rows, columns = stack.shape[1:]
        one = torch.eye(min(rows, columns), dtype=weight.dtype, device=weight.device).expand(groups, -1, -1)
        left, right = (one, stack) if rows <= columns else (stack, one)
        return factorization.to_stages(right, left)


def _noise(dense: nn.Module, profile: ModelProfile, inputs: Inputs, answers: Outputs) -> float:
    """How far noise of ROUNDING units in what every layer puts out moves the answers."""
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
            return output
        noise = torch.rand(output.shape, generator=generator).to(output) * 2 - 1
        return output + noise * (ROUNDING * torch.finfo(output.dtype).eps * output.abs().amax())

    with ExitStack() as hooks:
        for layer in profile.layers:
            hooks.callback(module_at(dense, layer.name).register_forward_hook(disturb).remove)
        return _apart(_answers(dense, inputs), answers)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
