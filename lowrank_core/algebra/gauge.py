"""The identity gauge: a basis of a factor in which some of its rows are those of the identity."""

from __future__ import annotations

import torch
from scipy.linalg import qr, solve_triangular
from torch import Tensor

LARGEST = 1.5
"""Entries of X are at most so large: rounding of the rows that are kept grows by no more than that."""


def identity_rows(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(kept, X): r of the rows of a factor B (m, r), ascending, and B[others] = X B[kept] with X (m - r, r), float64.

    Column-pivoted QR of B^T chooses the rows; then a row outside takes the place of one inside as long as that enlarges
    the volume of B[kept] by more than LARGEST, so that no entry of X is larger: a strong rank-revealing QR (Gu &
    Eisenstat, SIAM J. Sci. Comput. 17(4), 1996; one swap at a time as maxvol: Goreinov et al., 2010). Where B has a
    rank below r, X takes nothing from the rows that are beyond it, and the equation holds all the same.

    >>> kept, x = identity_rows(torch.tensor([[1.0], [4.0], [2.0]]))
    >>> kept.tolist(), x.tolist()
    ([1], [[0.25], [0.5]])
    """
    rows, rank = factor.shape
    given = factor.detach().double()
    upper, pivots = qr(given.T.numpy(force=True), mode="r", pivoting=True)
    size = abs(upper.diagonal())
    sound = int((size > rows * torch.finfo(torch.float64).eps * size[0]).sum()) if size.size and size[0] > 0 else 0
    order = torch.from_numpy(pivots.astype("int64"))
    x = torch.zeros(rows - rank, rank, dtype=torch.float64)
    x[:, :sound] = torch.from_numpy(solve_triangular(upper[:sound, :sound], upper[:sound, rank:]).T.copy())
    kept, others = order[:rank], order[rank:]
    for _ in range(4 * rank if x.numel() else 0):
        worst = int(x.abs().argmax())
        row, column = divmod(worst, rank)
        pivot, taken = x[row, column].item(), x[row].clone()
        if abs(pivot) <= LARGEST:
            break
        kept[column], others[row] = others[row].item(), kept[column].item()
        gone = taken / -pivot  # the row that leaves, in the new basis
        gone[column] = 1 / pivot
        taken[column] -= 1
        x -= torch.outer(x[:, column] / pivot, taken)
        x[row] = gone
    kept, columns = kept.sort()
    others, lines = others.sort()
    return kept, x[lines][:, columns]
