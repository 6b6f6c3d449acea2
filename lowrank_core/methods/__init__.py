"""Decompositions: each file of this package registers one way to replace a layer by a chain of thinner ones.

A method answers with specs (`stages`), so cost, shapes, module and export of a replacement cannot disagree.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.registry import enter, register_all


@runtime_checkable
class Factorization(Protocol):
    """A factorised weight; for a nested method every rank is a slice of it.

    What takes long is best done in its `memo` (a Memo, if it has one): then it is computed when first needed, once,
    and kept on disk. Outside its memo it holds nothing large but the weight and the moment as they were given: a copy
    of the weight is made whenever it is needed.
    """

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """One (k,) float64 spectrum per axis of the method, descending.

        For data-aware factors the root of what each further rank adds, which may rise here and there.
        """

    def error(self, rank: Rank) -> float:
        """Relative distance to the weight: exact for one axis, an upper bound for two, an estimate where not nested.

        The Frobenius distance; for data-aware factors that of the outputs on the calibration data. It depends on the
        weight and the rank alone, not on what was asked for before.
        """

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One contiguous weight per stage of the chain at that rank."""

    def reconstruct(self, rank: Rank) -> Tensor:
        """The weight that the chain stands for, in the shape of the original."""


class Method(Protocol):
    """One way to replace a layer by a chain of thinner ones.

    free = True says besides that its outer factors see single positions and may be in any basis: such have free ranks
    (`layers.spec.free_form`).
    """

    @property
    def name(self) -> str:
        """The word that plan files use for the method."""

    @property
    def label(self) -> str:
        """The words that people read for the method."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the ranks: ("rank",) or ("out", "in")."""

    @property
    def nested(self) -> bool:
        """Whether the factors of a smaller rank are a slice of those of a larger one."""

    @property
    def reference(self) -> bool:
        """True for a slow method kept to compare with: selectable, never chosen by itself."""

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Why this layer cannot be replaced this way, or None."""

    def max_rank(self, spec: LayerSpec) -> Rank:
        """The largest useful rank of each axis for a layer."""

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """The chain that replaces the layer; only the last stage carries the bias."""

    @property
    def data_aware(self) -> bool:
        """True where `factorize` makes use of the second moment of the layer's inputs."""

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None) -> Factorization:
        """The expensive step, needed once per weight.

        second_moment: (groups, n, n) = E[x x^T] of the unfolded input, n = in / groups * prod(kernel); of a table its
        diagonal (in,), the share of each token. Or a function that gives it.
        """


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make a method known by its name."""
    return enter(METHODS, method, "method")


register_all(__name__, __path__)
