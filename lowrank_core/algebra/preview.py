"""The leading singular values of a large matrix by random projection, and exactly how much they leave open.

For any Q with orthonormal columns the singular values of X Q are nowhere above those of X, and what X Q lacks of the
energy |X|^2 (the sum of all squared singular values) is all that can be missing: both are known, whatever Q is. Q spans
what X^T X makes of random columns (Halko, Martinsson & Tropp, SIAM Review 53, 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import Tensor

from lowrank_core.algebra.gram import row_blocks
from lowrank_core.errors import InvalidModel
from lowrank_core.running.operations import count
from lowrank_core.running.scope import raise_if_cancelled

COLUMNS = 128
"""Of Q: so many leading singular values are found."""

ROUNDS = 2
"""How often X^T X is applied: more come nearer to the singular values of a spectrum that falls slowly."""

SEED = 0

ROUNDING = 1e-12
"""Share of the energy that arithmetic in float64 may be off by; bounds are wider by so much."""


@dataclass(frozen=True, eq=False)
class Preview:
    """What is known of a spectrum of `side` singular values whose squares add up to `energy`.

    found: (k,) float64, descending, none above the singular value in its place.

    >>> seen = Preview(torch.tensor([3.0, 2.0], dtype=torch.float64), energy=14.0, side=4)
    >>> seen.unseen, [round(share, 3) for share in seen.share(1)], seen.rank_for_energy(0.9)
    (1.0, [0.643, 0.714], (2, 2))
    """

    found: Tensor
    energy: float
    side: int

    @property
    def unseen(self) -> float:
        """The part of the energy that was not found: |X|^2 less the sum of the squares found."""
        return max(0.0, self.energy - float(self.found.square().sum()))

    @cached_property
    def _kept(self) -> list[float]:
        """At 0, 1, ... ranks: the squares found."""
        return [0.0, *self.found.square().cumsum(0).tolist()]

    def share(self, rank: int) -> tuple[float, float]:
        """(least, most) share of the energy that the leading singular values of this rank can hold.

        At least what was found; beyond it, since squares fall, their even share of what was not. At most that and all
        that was not found (Ky Fan: leading eigenvalues of a sum are no more than those of its parts).
        """
        if self.energy <= 0:
            return 1.0, 1.0
        found = len(self.found)
        beyond = (rank - found) / (self.side - found) if rank > found else 0.0
        kept = self._kept[min(rank, found)]
        least, most = kept + beyond * self.unseen, kept + self.unseen
        return max(0.0, least / self.energy - ROUNDING), min(1.0, most / self.energy + ROUNDING)

    def rank_for_energy(self, keep: float) -> tuple[int, int]:
        """(least, most) that the smallest rank can be whose singular values hold `keep` of the energy."""
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], but got keep={keep}.")
        ranks, wanted = range(1, len(self.found) + 1), keep - 2 * ROUNDING
        least = next((rank for rank in ranks if self.share(rank)[1] >= wanted), self.side)
        most = next((rank for rank in ranks if self.share(rank)[0] >= wanted), None)
        if most is None:
            lacking = (wanted + ROUNDING) * self.energy - self._kept[-1]
            most = len(self.found) + ceil(lacking / self.unseen * (self.side - len(self.found)))
        return least, min(most, self.side)


def preview(rows: Callable[[], Iterable[Tensor]], columns: int, side: int) -> Preview:
    """The leading singular values of X, at most COLUMNS of `side`; the same bits each time on as many threads.

    rows: gives the rows of X, (k, columns) each time in any floating dtype, anew whenever it is called. Q is found in
    float32, what it leaves open in float64. Raises InvalidModel for NaN or Inf, and Cancelled.
    Operations of m rows: 4 m columns k for each round and 2 m columns k at the end, with k columns of Q.

    >>> diagonal = torch.diag(torch.arange(1000.0, 0.0, -1.0))
    >>> seen = preview(lambda: [diagonal], 1000, 1000)
    >>> [round(share, 4) for share in seen.share(10)]     # 0.0297 in truth
    [0.028, 0.734]
    """
    width = min(COLUMNS, columns, side)
    begin = torch.randn(columns, width, generator=torch.Generator().manual_seed(SEED))
    basis = _basis(rows, begin)
    if basis is None:  # squares beyond float32
        basis = _basis(rows, begin.double())
    if basis is None:
        raise InvalidModel("a weight holds NaN or Inf; repair the checkpoint.")
    upper, energy = torch.empty(0, width, dtype=torch.float64), 0.0  # of a QR decomposition of the rows of X Q so far
    for block in rows():
        raise_if_cancelled()
        exact = block.to(torch.float64)
        upper = torch.linalg.qr(torch.cat([upper, exact @ basis]), mode="r").R
        energy += float(torch.linalg.vector_norm(exact)) ** 2
        count(2.0 * len(exact) * columns * width)
    return Preview(torch.linalg.svdvals(upper), energy, side)


def _basis(rows: Callable[[], Iterable[Tensor]], begin: Tensor) -> Tensor | None:
    """Q in float64; None where its numbers do not fit the dtype."""
    basis = exact = begin
    for _ in range(ROUNDS):
        image = torch.zeros_like(begin)
        for block in rows():
            raise_if_cancelled()
            part = block.to(begin.dtype)
            image.addmm_(part.mT, part @ basis)
            count(4.0 * len(part) * begin.numel())
        if not bool(image.isfinite().all()) or (begin.dtype == torch.float32 and not bool(image.any())):
            return None
        exact = torch.linalg.qr(image.double()).Q
        basis = exact.to(begin.dtype)
    return exact


def of_matrix(matrix: Tensor) -> Preview:
    """The preview of a matrix in memory, from its shorter rows."""
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.mT
    blocks = lambda: (tall[part] for part in row_blocks(*tall.shape))  # noqa: E731
    return preview(blocks, tall.shape[1], min(tall.shape))


def of_all(singular_values: Tensor) -> Preview:
    """What is known where all singular values are: nothing is left open."""
    exact = singular_values.to(torch.float64)
    return Preview(exact, float(exact.square().sum()), len(exact))
