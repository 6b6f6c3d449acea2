"""Depth: where the error of a compressed network arises, layer by layer as it runs, before and after the correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, prod, sqrt

from torch import Tensor, nn

from lowrank_core.compression.apply import chain_at
from lowrank_core.layers.data import Dataset, call, evaluating
from lowrank_core.layers.parts import Recurrent
from lowrank_core.layers.recurrent import as_layers
from lowrank_core.networks.profile import Layer, ModelProfile, module_at
from lowrank_core.networks.twin import on_call, twin
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import give_way, report
from lowrank_core.workspace import Workspace

SAMPLES = 16
"""Calibration samples that are run; the error of a layer is that of all its outputs on them together."""

AT_ONCE = 8
"""Samples that go through the networks at once, at most."""

OUTPUT_BYTES = 2**28
"""What the dense outputs of samples that go through at once may take, of all layers; fewer samples at once else."""

ANSWERS_ALIKE = 1e-30
"""Squares of a dense layer's outputs below which it puts out nothing that an error could be relative to."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's outputs are from the dense network's: ||ours - dense|| / ||dense||, of all of them together.

    plain: with the plan's factors as they are; corrected: after the correction, None where there is none. Infinite
    where outputs are not finite. why: why it cannot be compared, and then both are None.
    """

    name: str
    plain: float | None = None
    corrected: float | None = None
    why: str = ""

    @property
    def finite(self) -> tuple[float | None, float | None]:
        """(plain, corrected) as JSON can hold them: None for what is none, or infinite."""
        plain, corrected = (
            error if error is not None and error < inf else None for error in (self.plain, self.corrected)
        )
        return plain, corrected


@dataclass(frozen=True, slots=True)
class DepthErrors:
    """The error of every layer, in the order in which they run, on so many calibration samples."""

    samples: int
    layers: tuple[LayerError, ...]


def depth_errors(workspace: Workspace, candidate: Candidate, *, samples: int = SAMPLES) -> DepthErrors:
    """Run the dense network, the plan and the corrected plan side by side, and compare what each layer puts out.

    A dense layer behind a compressed one has the error of what it is given. Raises Cancelled.

    >>> from lowrank_core.plans.plan import Choice, RankPlan
    >>> workspace = Workspace.open("builtin:iris-mlp")
    >>> plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (1,))})
    >>> found = depth_errors(workspace, workspace.candidate(plan, corrected=False))
    >>> [(layer.name, layer.plain > 0, layer.corrected) for layer in found.layers]
    [('fc1', True, None), ('fc2', True, None)]
    """
    plan, correction = candidate.plan.plain, candidate.correction
    report(Progress("comparing layers"))
    models = [workspace.compress(plan)]
    if correction is not None:
        models.append(workspace.compress(plan, correction))
    profile, data = workspace.profile, workspace.calibration
    data = data.pick(slice(0, min(samples, len(data))))
    dense, nothing = twin(workspace.model, profile.layers), RankPlan(profile.fingerprint)
    copies = [_visible(model, profile, plan) for model in models]
    tallies = [_Tally() for _ in models]
    size = max(1, min(AT_ONCE, OUTPUT_BYTES // max(1, _output_bytes(profile))))
    pace = Pace(len(data))
    for start in range(0, len(data), size):
        give_way()
        part = data.pick(slice(start, start + size))
        outputs: dict[str, list[Tensor]] = {}
        with _seen(workspace.model, dense, profile, nothing, partial(_keep, outputs)):
            _run(dense, part)
        for copied, tally in zip(copies, tallies, strict=True):
            tally.begin(outputs)
            with _seen(workspace.model, copied, profile, plan, tally.see):
                _run(copied, part)
            tally.end()
        report(Progress("comparing layers", pace(start + len(part))))
    return DepthErrors(len(data), tuple(_error(layer, tallies) for layer in profile.layers))


class _Tally:
    """Squares of differences and of dense outputs by layer, summed over the batches that one network ran."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.odd: set[str] = set()  # called otherwise than in the dense network, or with other rows
        self._dense: dict[str, list[Tensor]] = {}
        self._calls: dict[str, int] = {}

    def begin(self, dense: dict[str, list[Tensor]]) -> None:
        """What follows is a run on the samples that gave these dense outputs."""
        self._dense, self._calls = dense, dict.fromkeys(dense, 0)

    def see(self, name: str, output: Tensor) -> None:
        """A layer has answered."""
        number = self._calls[name] = self._calls.get(name, 0) + 1
        known = self._dense.get(name, ())
        if number > len(known) or known[number - 1].shape != output.shape:
            self.odd.add(name)
            return
        dense = known[number - 1]
        apart, whole = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = apart + _squares(output - dense), whole + _squares(dense)

    def end(self) -> None:
        """The run is over: which layers have not answered as often as in the dense network."""
        self.odd |= {name for name, known in self._dense.items() if self._calls[name] != len(known)}


def _squares(values: Tensor) -> float:
    return float(values.abs().double().square().sum())


def _keep(outputs: dict[str, list[Tensor]], name: str, output: Tensor) -> None:
    outputs.setdefault(name, []).append(output.clone())  # the network may go on to change it in place


def _run(model: nn.Module, part: Dataset) -> None:
    with evaluating(model):
        call(model, part.inputs)


def _error(layer: Layer, tallies: list[_Tally]) -> LayerError:
    if layer.shares:
        return LayerError(layer.name, why="rows are routed to it, and perhaps others in the compressed network")
    if any(layer.name in tally.odd for tally in tallies):
        return LayerError(layer.name, why="it is given other rows than in the dense network")
    if any(layer.name not in tally.sums for tally in tallies):
        return LayerError(layer.name, why="it never runs on these samples")
    errors = []
    for tally in tallies:
        apart, whole = tally.sums[layer.name]
        if whole < ANSWERS_ALIKE:
            return LayerError(layer.name, why="the dense layer puts out zeros alone")
        error = sqrt(apart / whole) if apart < inf else inf  # NaN, too, is no error that there could be
        errors.append(error)
    return LayerError(layer.name, errors[0], errors[1] if len(errors) > 1 else None)


def _output_bytes(profile: ModelProfile) -> int:
    """What the outputs of all layers take, of one sample."""
    return sum(
        layer.spec.out_channels * prod(layer.spec.out_size(size)) * layer.itemsize
        for layer in profile.layers
        for size in layer.in_sizes
    )


@contextmanager
def _seen(
    model: nn.Module, copied: nn.Module, profile: ModelProfile, plan: RankPlan, see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, see(layer, output) is called whenever a layer of the copy answers."""
    with ExitStack() as hooks:
        for layer in profile.layers:
            chosen = plan.get(layer.name) is not None
            module = chain_at(model, copied, layer.name) if chosen else module_at(copied, layer.name)
            hooks.callback(on_call(module, partial(_told, see, layer.name)))
        yield


def _told(see: Callable[[str, Tensor], None], name: str, _: Tensor, output: Tensor) -> None:
    see(name, output)


def _visible(model: nn.Module, profile: ModelProfile, plan: RankPlan) -> nn.Module:
    """A twin of a compressed copy in which every layer is a module, those that the plan leaves dense, too."""
    places = {profile.layer(name).place for name, _ in plan.choices}
    copied = twin(
        model,
        [
            layer
            for layer in profile.layers
            if not (layer.partial and layer.place in places) and plan.get(layer.name) is None
        ],
    )
    for module in copied.modules():
        if isinstance(module, Recurrent):
            as_layers(module)
    return copied
