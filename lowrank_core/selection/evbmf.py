"""EVBMF: ranks from what stands out of the noise in each unfolding of a weight, weakened to fit a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from lowrank_core.algebra.vbmf import evbmf_of
from lowrank_core.errors import InvalidSearch
from lowrank_core.layers.spec import Rank
from lowrank_core.methods import METHODS
from lowrank_core.networks.profile import Layer
from lowrank_core.plans.plan import RankPlan
from lowrank_core.running.progress import Pace, Progress
from lowrank_core.running.scope import report
from lowrank_core.selection import register
from lowrank_core.selection._problem import Problem, Trial, Wish, in_closed_form, largest
from lowrank_core.selection._settings import check_settings

MATRICES = ("tucker2", "svd", "spatial_svd")
"""Methods whose axes are each the rank of a matrix of weights."""


@register
@dataclass(frozen=True, slots=True)
class VariationalBayes:
    """Rank of the signal in each weight where the rest is white noise (EVBMF), with a margin; a budget sets the margin.

    rank = full rank - strength * (full rank - EVBMF rank), on each axis of a Tucker-2 convolution, or of the matrix of
    a Linear. A budget below what strength 1 costs takes a strength above it.
    """

    name: ClassVar[str] = "evbmf"
    label: ClassVar[str] = "EVBMF (MUSCO)"
    line: ClassVar[str] = "keeps what is above white noise"
    source: ClassVar[str] = (
        "Gusak, Kholyavchenko, Ponomarev, Markeeva, Blagoveschensky, Cichocki & Oseledets, ICCV Workshops 2019; "
        "EVBMF: Nakajima, Sugiyama, Babacan & Tomioka, JMLR 2013"
    )
    serves: ClassVar[frozenset[Wish]] = frozenset({"budget", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ("tucker2", "svd")

    strength: float = field(
        default=0.8,
        metadata={"min": 0.0, "max": 1.0, "label": "Strength", "help": "0 keeps all, 1 goes down to the EVBMF rank."},
    )

    def __post_init__(self) -> None:
        check_settings(self)

    measurements = in_closed_form

    def search(self, problem: Problem) -> Iterator[Trial]:
        """One plan; nothing is measured on the way."""
        signals = []
        pace = Pace(len(problem.layers))
        for number, layer in enumerate(problem.layers):
            method = next((name for name in problem.methods_of(layer) if name in MATRICES), None)
            if method is not None:
                report(Progress(f"EVBMF of {layer.name}", pace(number)))
                signals.append((layer, method, METHODS[method].max_rank(layer.spec), _ranks(problem, layer, method)))
        if not signals:
            raise InvalidSearch(f"EVBMF finds ranks of matrices: allow one of the methods {', '.join(MATRICES)}.")

        def at(weakness: float) -> RankPlan:
            choices = {}
            for layer, method, top, signal in signals:
                rank = tuple(int(m + weakness * max(1, m - r)) for m, r in zip(top, signal, strict=True))
                choices[layer.name] = problem.choice(layer, method, tuple(max(1, r) for r in rank))
            return problem.plan(choices)

        strongest = max(max(top) for _, _, top, _ in signals)
        yield problem.trial(largest(problem, at, -strongest, 0.0) if problem.budgets else at(-self.strength))


def _ranks(problem: Problem, layer: Layer, method: str) -> Rank:
    """EVBMF rank of the matrix of each axis; of several groups, that of their mean spectrum."""
    spec, spectra = layer.spec, problem.workspace.factors(layer.name, method).spectra
    if len(spectra) == 2:
        entries = spec.weights // spec.groups
        sides = [channels // spec.groups for channels in (spec.out_channels, spec.in_channels)]
        shapes = [(side, entries // side) for side in sides]
    else:
        columns, rows = (stage.weights // stage.groups for stage in METHODS[method].stages(spec, (1,)))
        shapes = [(rows, columns)]
    return tuple(
        evbmf_of(spectrum / spec.groups**0.5, *shape).rank for spectrum, shape in zip(spectra, shapes, strict=True)
    )
