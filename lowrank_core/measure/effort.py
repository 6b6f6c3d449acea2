"""Effort: what work will take on this machine, said before it starts.

Work is counted exactly: plans that are measured, samples that run through the network, layers that are factorised.
Seconds follow from how long the dense network takes here for one sample, and from operations at that speed; they are
rough (`benchmarks.effort` holds them against what the same work took).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from lowrank_core.figures import duration
from lowrank_core.layers.data import batch_size
from lowrank_core.measure import latency, staircases
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.cost import layer_cost
from lowrank_core.workspace import Workspace

SOON_SECONDS = 20.0
"""Work of so long is begun without a word."""

CORRECTION = 3
"""Passes over the calibration samples that correcting a plan takes: dense, compressed, and as much for algebra."""

THOROUGH = 4 * CORRECTION
"""The same of the thorough correction, which an answer gets."""

PLAN_SECONDS = 0.02
"""What a plan takes beside the network's work: a compressed copy, its place in the files, its figures."""

TRAINING = 3
"""Passes that learning from a sample takes: forward, and backward twice that."""

LAYER_SECONDS = 0.1
"""What a layer takes beside operations where it is factorised, and corrected for the first time."""

SVD_OPERATIONS = 22
"""Of a singular value decomposition with both bases, times m n min(m, n) (Golub & Van Loan, 4th edition, 8.6)."""

SWEEPS = 150
"""Of the alternating least squares of a CP fit; how many one takes is known only afterwards."""

OWN_PROCESS_SECONDS = 5.0
"""Until a process of its own has loaded PyTorch and the network, which is timed or compiled there."""

EXPORT_SECONDS = 3.0
"""What a network takes to become an ONNX program that a runtime has opened."""

COMPILE_SECONDS = 5.0
"""What a network takes to become plain C, compiled and compared."""

RUNS_A_TURN = 4
"""Of work that is timed, where one run alone takes longer than a turn."""

OPERATIONS_A_SECOND = 4e9
"""Of small matrices in double precision on one thread of a usual processor."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """So many plans measured, each on so many samples. layer, method: the one each changes; "" where they differ."""

    plans: int
    samples: int
    layer: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done. factorised: (layer, method) beside those of the measurements; corrected: every plan, too.

    answers: plans that are measured on all evaluation samples in the end; trained: samples that a compressed network
    learns from, over all epochs.
    """

    measured: tuple[Measurements, ...] = ()
    factorised: frozenset[tuple[str, str]] = frozenset()
    answers: int = 0
    corrected: bool = True
    trained: int = 0


@dataclass(frozen=True, slots=True)
class Effort:
    """What work takes: plans that are measured, and seconds on this machine while nothing else runs, roughly.

    >>> Effort(286, 1716.0).text
    '286 measurements, about 29 min'
    """

    measurements: int
    seconds: float

    @property
    def long(self) -> bool:
        """Whether a person should know before it starts."""
        return self.seconds > SOON_SECONDS

    @property
    def text(self) -> str:
        """Both in a few words, more than a minute and a half in whole minutes."""
        whole = 60 * round(self.seconds / 60) if self.seconds >= 90 else max(1, round(self.seconds))
        many = (
            f"{self.measurements:,} measurement{'' if self.measurements == 1 else 's'}, " if self.measurements else ""
        )
        return f"{many}about {duration(whole).removesuffix(' 0 s').removesuffix(' 0 min')}"


def effort(workspace: Workspace, work: Work) -> Effort:
    """What work takes here; the dense network is timed once per workspace, on a few samples."""
    profile, own_score = workspace.profile, workspace.opened.evaluate is not None
    samples = 0 if own_score else len(workspace.reference)
    dense = 0 if own_score or workspace.reference.complete or not work.answers else samples
    calibration = CORRECTION * len(workspace.calibration) if work.corrected else 0
    passes = calibration / 2 + dense + TRAINING * work.trained  # half: what layers alone are corrected from
    if work.corrected:
        passes += work.answers * THOROUGH * len(workspace.calibration)
    ranks, shares = Counter[tuple[str, str]](), _shares_from(workspace)
    measured = (*work.measured, Measurements(work.answers, samples))
    for each in measured:
        passes += each.plans * (0 if own_score else each.samples * shares[each.layer])
        passes += each.plans * (0 if each.layer else calibration)
        if each.layer:
            ranks[each.layer, each.method] += each.plans
    plans, factorised = sum(each.plans for each in measured), {*ranks, *work.factorised}
    algebra = sum(_operations(profile.layer(name), method, ranks[name, method]) for name, method in factorised)
    seconds = passes * workspace.sample_seconds + plans * PLAN_SECONDS + len(factorised) * LAYER_SECONDS
    scored = plans * workspace.own_score_seconds if own_score else 0.0
    return Effort(plans, seconds + scored + algebra / OPERATIONS_A_SECOND)


def timing_effort(workspace: Workspace, networks: int, *, exported: bool) -> Effort:
    """What timing so many networks in turn with the dense one takes, where their rounds agree at the first attempt.

    exported: as ONNX programs. Where rounds disagree it takes up to three times as long.
    """
    own = EXPORT_SECONDS if exported else 0.0
    return Effort(
        0, OWN_PROCESS_SECONDS + (networks + 1) * (own + _turns(_once(workspace), latency.ROUNDS, latency.TURN_SECONDS))
    )


def stairs_effort(workspace: Workspace, asked: Iterable[tuple[Layer, str]]) -> Effort:
    """What timing these layers at some ranks of a method each takes, as `staircases` does."""
    whole = sum(layer_cost(layer, None).multiplies for layer in workspace.profile.layers) or 1
    seconds = OWN_PROCESS_SECONDS
    for layer, method in asked:
        chains = 1 + len(staircases.ranks(layer, method))
        once = _once(workspace) * layer_cost(layer, None).multiplies / whole
        seconds += chains * (LAYER_SECONDS + _turns(once, staircases.ROUNDS, staircases.TURN_SECONDS))
    return Effort(0, seconds)


def compile_effort(networks: int) -> Effort:
    """What compiling so many networks as plain C takes."""
    return Effort(0, OWN_PROCESS_SECONDS + networks * COMPILE_SECONDS)


def _once(workspace: Workspace) -> float:
    """Seconds of one inference of the dense network on its example inputs."""
    return workspace.sample_seconds * batch_size(workspace.opened.example_inputs)


def _turns(once: float, rounds: int, turn_seconds: float) -> float:
    return rounds * max(turn_seconds, RUNS_A_TURN * once)


def _shares_from(workspace: Workspace) -> dict[str, float]:
    """Of each layer the share of all multiplies from it on: what runs before it is kept between its ranks. "" is 1."""
    layers = workspace.profile.layers
    multiplies = [layer_cost(layer, None).multiplies for layer in layers]
    left = total = sum(multiplies) or 1
    shares = {"": 1.0}
    for layer, own in zip(layers, multiplies, strict=True):
        shares[layer.name] = left / total
        left -= own
    return shares


def _operations(layer: Layer, method: str, ranks: int) -> float:
    """Of a factorisation: singular values of its unfolding, and where ranks are not nested sweeps for each of them."""
    rows, columns = layer.spec.weight_shape[0], prod(layer.spec.weight_shape[1:])
    decomposed = SVD_OPERATIONS * rows * columns * min(rows, columns)
    if METHODS[method].nested:
        return float(decomposed)
    usual = max(METHODS[method].max_rank(layer.spec)) / 3
    return decomposed + ranks * SWEEPS * 6 * rows * columns * usual
