"""Singular values of a matrix that is read in parts, in less memory than the matrix takes in float64.

The Gram matrix of the smaller side, of which only the lower block triangle is kept, is reduced to a band by blocked
Householder reflections in place (Bischof, Lang & Sun, ACM TOMS 26, 2000), and LAPACK finds the eigenvalues of the band:
as exact as `eigvalsh`, which would need the whole matrix, a copy of it and workspace.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy.linalg import eigvals_banded
from torch import Tensor

from lowrank_core.errors import InvalidModel
from lowrank_core.running.operations import count
from lowrank_core.running.scope import raise_if_cancelled

WIDTH = 64
"""Columns of one block, and half the bandwidth: wider blocks multiply faster, narrower bands are solved faster."""

WHOLE = 768
"""Up to this side the matrix is small, and LAPACK's dense solver is faster."""

BLOCK_BYTES = 2**23
"""Memory for one part of the matrix in float64."""

Blocks = list[Tensor]
"""The lower triangle of a symmetric matrix: block column j from its diagonal downwards, (n - j * WIDTH, WIDTH)."""


class GramMatrix:
    """X^T X of a matrix X of so many columns, added up from rows.

    >>> gram = GramMatrix(2)
    >>> gram.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> gram.singular_values().tolist()
    [3.0, 2.0]
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._blocks = [
            torch.zeros(columns - at, min(WIDTH, columns - at), dtype=torch.float64) for at in range(0, columns, WIDTH)
        ]
        self._wide = torch.empty(0, columns, dtype=torch.float64)  # rows in float64: one memory for all of them

    def add(self, rows: Tensor) -> None:
        """Add rows (k, columns) of X in any floating dtype; raises Cancelled."""
        raise_if_cancelled()
        if len(self._wide) < len(rows):
            self._wide = torch.empty(len(rows), self.columns, dtype=torch.float64)
        rows = self._wide[: len(rows)].copy_(rows)
        for at, block in zip(range(0, self.columns, WIDTH), self._blocks, strict=True):
            block.addmm_(rows[:, at:].mT, rows[:, at : at + WIDTH])
        count(float(len(rows) * self.columns**2))

    def singular_values(self) -> Tensor:
        """(columns,) float64, descending; the Gram matrix is used up.

        Raises InvalidModel where X held NaN or Inf, and Cancelled.
        """
        blocks, self._blocks, self._wide = self._blocks, [], self._wide[:0].clone()
        for block in blocks:
            _check(block.diagonal())
        whole = self.columns <= WHOLE
        values = torch.linalg.eigvalsh(_whole(blocks)) if whole else _eigenvalues(blocks)
        count(4 / 3 * self.columns**3)
        return values.clamp_min(0).sqrt().flip(0)


class DeviceGram:
    """The Gram matrix and its eigenvalues on one CUDA device, as a whole: fast, with a memory of its own.

    >>> gram = DeviceGram(2, device="cpu")
    >>> gram.add(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> gram.singular_values().tolist()
    [3.0, 2.0]
    """

    def __init__(self, columns: int, *, device: str = "cuda") -> None:
        self._whole = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows (k, columns) of X in any floating dtype; raises Cancelled."""
        raise_if_cancelled()
        there = rows.to(self._whole.device, torch.float64)
        self._whole.addmm_(there.mT, there)
        count(float(len(rows) * len(self._whole) ** 2))
        if self._whole.is_cuda:
            torch.cuda.synchronize()  # so that it can be cancelled, and its time be told

    def singular_values(self) -> Tensor:
        """(columns,) float64, descending, in main memory. Raises InvalidModel for NaN or Inf in X, and Cancelled."""
        raise_if_cancelled()
        _check(self._whole.diagonal())
        energies: Tensor = torch.linalg.eigvalsh(self._whole)
        count(4 / 3 * len(self._whole) ** 3)
        return energies.clamp_min(0).sqrt().flip(0).cpu()


def operations(rows: int, columns: int) -> float:
    """Additions and multiplications that all singular values of a matrix take.

    With n the shorter side: m n^2 for half the Gram matrix, and 4/3 n^3 for its reduction to a band. What the band's
    eigenvalues take is of order n^2, and left out.

    >>> f"{operations(11008, 4096):.3g}"
    '2.76e+11'
    """
    long, short = max(rows, columns), min(rows, columns)
    return float(long * short**2) + 4 / 3 * short**3


def _check(diagonal: Tensor) -> None:
    if not torch.isfinite(diagonal).all():
        raise InvalidModel("a weight holds NaN or Inf; repair the checkpoint.")


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Leading slices that cover all rows, each of at most BLOCK_BYTES in float64."""
    step = max(1, BLOCK_BYTES // (8 * max(1, columns)))
    return (slice(at, min(at + step, rows)) for at in range(0, rows, step))


def _whole(blocks: Blocks) -> Tensor:
    size = len(blocks[0])
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for number, block in enumerate(blocks):
        at = number * WIDTH
        matrix[at:, at : at + WIDTH] = block
    return matrix  # eigvalsh reads the lower triangle alone


def _eigenvalues(blocks: Blocks) -> Tensor:
    """(n,) ascending; the blocks are overwritten."""
    size = len(blocks[0])
    band = torch.zeros(WIDTH + 1, size, dtype=torch.float64)
    for number, block in enumerate(blocks):
        raise_if_cancelled()
        at, width = number * WIDTH, block.shape[1]
        corner = block[: 2 * width].clone()
        if len(block) > width:
            reflected, scales = torch.geqrf(block[width:])
            corner[width:] = 0
            corner[width : 2 * width] = reflected[:width].triu()[: len(corner) - width]
            _reflect(blocks[number + 1 :], reflected, scales)
        for below in range(WIDTH + 1):
            entries = corner.diagonal(-below)
            band[below, at : at + len(entries)] = entries
        blocks[number] = corner[:0]  # its memory is free for the panels to come
    return torch.from_numpy(eigvals_banded(band.numpy(), lower=True, overwrite_a_band=True, check_finite=False))


def _reflect(blocks: Blocks, reflected: Tensor, scales: Tensor) -> None:
    """Q^T A Q in place, Q = I - Y T Y^T as `geqrf` leaves it (Schreiber & Van Loan 1989)."""
    steps = len(scales)
    y = reflected[:, :steps].tril(-1)
    y.diagonal().fill_(1)
    inverse = (y.mT @ y).triu(1)
    inverse.diagonal().copy_(1 / torch.where(scales == 0, 1e-300, scales))  # no reflection: T has a zero there
    product = torch.zeros_like(y)
    for number, block in enumerate(blocks):
        at, width = number * WIDTH, block.shape[1]
        product[at:] += block @ y[at : at + width]
        product[at : at + width] += block[width:].mT @ y[at + width :]
    w = torch.linalg.solve_triangular(inverse, product, upper=True, left=False)
    half = torch.linalg.solve_triangular(inverse.mT, y.mT @ w, upper=False)
    w -= 0.5 * (y @ half)
    for number, block in enumerate(blocks):
        at, width = number * WIDTH, block.shape[1]
        block.addmm_(w[at:], y[at : at + width].mT, alpha=-1)
        block.addmm_(y[at:], w[at : at + width].mT, alpha=-1)
