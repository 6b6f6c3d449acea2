"""Ridge regression of one layer's last factor, from sums over rows."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from math import prod

import torch
from torch import Tensor

from lowrank_core.compression.unfold import as_matrices, as_weight, input_rows, row_chunks
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.running.threads import one_thread

CUT_OFF = 1e-6


SMALL = 512

SUMMED_ROWS = 4096
"""Rows whose products are added up in the precision of the data; sums of these are added up in float64."""


class NormalEquations:
    """Sums over rows of one layer's last factor: features z (P, n) and targets t (P, out).

    A weight that several copies share is fitted to all of them, the offset to each.

    Products are those of deviations from the means of the first rows, in the precision of the data, float32 at least:
    what is lost of them is small beside the variances, however far the means are from zero. By chunks they are added
    up in `kind`, float64 as a rule, so that neither memory nor precision depends on the number of rows.
    """

    def __init__(self, spec: LayerSpec, kind: torch.dtype = torch.float64, *, finite_only: bool = False) -> None:
        """kind: what the sums are kept in; float32 takes half of the memory. finite_only: leave other rows out."""
        self.spec, self.kind, self.finite_only = spec, kind, finite_only
        self.left_out = 0
        self.sums: list[Tensor] = []  # of z z^T, z, t z^T and t, as deviations
        self.rows = 0
        self._pivots: list[Tensor] = []  # of z (groups, 1, n) and of t (groups, 1, out / groups)

    def add(self, x: Tensor, index: Tensor, targets: Tensor) -> None:
        """One call's input at the drawn positions, and the dense layer's outputs there."""
        start = 0
        for chunk in row_chunks(self.spec, index):
            for part in torch.split(chunk, SUMMED_ROWS):
                z = _working(input_rows(self.spec, x, part))
                t = _working(targets[start : start + len(part)]).reshape(len(part), len(z), -1).transpose(0, 1)
                start += len(part)
                if self.finite_only and not bool(z.isfinite().all() and t.isfinite().all()):
                    fine = (z.isfinite().all(-1) & t.isfinite().all(-1)).all(0)
                    z, t = z[:, fine], t[:, fine]
                    self.left_out += int((~fine).sum())
                    if not z.shape[1]:
                        continue
                self._pivots = self._pivots or [z.mean(1, keepdim=True), t.mean(1, keepdim=True)]
                z, t = (rows - pivot for rows, pivot in zip((z, t), self._pivots, strict=True))
                added = [z.mT @ z, z.sum(1, keepdim=True), t.mT @ z, t.sum(1, keepdim=True).mT]
                added = [total.to(self.kind) for total in added]
                self.sums = [a.add_(b) for a, b in zip(self.sums, added, strict=True)] if self.sums else added
                self.rows += z.shape[1]

    @property
    def bytes(self) -> int:
        """Memory that the sums take."""
        return sum(total.nbytes for total in self.sums)

    def clear(self) -> None:
        """Forget the sums: they take much more memory than what they led to."""
        self.sums, self._pivots, self.rows = [], [], 0

    def solve(self, weight: Tensor, ridge: float | None, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """(weight, offset (out,)) that answer the targets best; without a ridge only the offset is fitted.

        The weight is pulled towards the current one by `ridge` in units of standardised features; features that are
        constant, and directions below CUT_OFF of the strongest, keep their current weights.
        """
        moment, mean, relation, target_mean = self.means(intercept=intercept)
        old = as_matrices(self.spec, weight.detach().double())
        if self.spec.copies > 1:
            moment, relation = moment.mean(0, keepdim=True), relation.mean(0, keepdim=True)
        new = old
        if ridge is not None:
            with one_thread() if moment.shape[-1] <= SMALL else nullcontext():
                new = old + ridge_step(moment, relation - old @ moment, ridge)
        offset = (target_mean - new @ mean.mT) if intercept else torch.zeros_like(target_mean)
        return as_weight(self.spec, new), offset.reshape(-1)

    def leading(self, spec: LayerSpec) -> NormalEquations:
        """The same of a narrower last factor, whose features are the leading ones of each group: nothing is summed."""
        n = spec.in_channels // spec.groups * prod(spec.kernel)
        (moment, mean, relation, target), (pivot, target_pivot) = self.sums, self._pivots
        narrow = copy(self)
        narrow.spec, narrow._pivots = spec, [pivot[:, :, :n], target_pivot]
        narrow.sums = [moment[:, :n, :n], mean[:, :, :n], relation[:, :, :n], target]
        return narrow

    def means(self, *, intercept: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of z z^T (g, n, n), z (g, 1, n), t z^T (g, m, n) and t (g, m, 1); the products centred with an intercept."""
        moment, mean, relation, target_mean = (total / self.rows for total in self.sums)
        pivot, target_pivot = (each.to(self.kind) for each in self._pivots)
        moment, relation = moment - mean.mT @ mean, relation - target_mean @ mean
        mean, target_mean = mean + pivot, target_mean + target_pivot.mT
        if not intercept:
            moment, relation = moment + mean.mT @ mean, relation + target_mean @ mean
        return moment, mean, relation, target_mean


class TokenCounts:
    """How often each row of a table is looked up: all that there is to know of a layer with one-hot inputs."""

    def __init__(self, spec: LayerSpec) -> None:
        self.spec, self.left_out, self.rows = spec, 0, 0
        self.counts = torch.zeros(spec.in_channels, dtype=torch.float64)

    @property
    def bytes(self) -> int:
        """Memory that the counts take."""
        return self.counts.nbytes

    def clear(self) -> None:
        """Forget the counts."""
        self.counts.zero_()
        self.rows = 0

    def add(self, x: Tensor, index: Tensor, targets: Tensor) -> None:
        """One call's numbers of rows at the drawn positions; what is looked up is known."""
        self.counts += torch.bincount(x.flatten()[index], minlength=self.spec.in_channels)
        self.rows += len(index)


def _working(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def ridge_step(moment: Tensor, relation: Tensor, ridge: float) -> Tensor:
    """(g, m, n) the D that minimises E|t - D z|^2 + ridge |D|^2 over standardised z, with a cut-off.

    Directions below the cut-off are left out by `eigh`; where Cholesky's factorisation shows that there are none, it
    gives the same in a tenth of the time.
    """
    variance = moment.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    alive = variance > CUT_OFF**2 * variance.amax(-1, keepdim=True)
    inverse = torch.where(alive, variance, 1.0).rsqrt() * alive
    moment, relation = moment * inverse[:, :, None] * inverse[:, None, :], relation * inverse[:, None, :]
    if _all_strong(moment, alive):
        root = torch.linalg.cholesky(_with_diagonal(moment, ridge + (~alive).double()))
        return torch.cholesky_solve(relation.mT, root).mT * inverse[:, None, :]
    values, vectors = torch.linalg.eigh(moment)
    strong = values > CUT_OFF * values[:, -1:]
    shrunk = torch.where(strong, 1 / (values + ridge).clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    step: Tensor = relation @ (vectors * shrunk[:, None, :]) @ vectors.mT * inverse[:, None, :]
    return step


def _all_strong(moment: Tensor, alive: Tensor) -> bool:
    """Whether no eigenvalue of features that move is below the cut-off: less as much, all matrices are definite."""
    largest = torch.linalg.matrix_norm(moment)[:, None]  # at least the largest eigenvalue
    return not bool(torch.linalg.cholesky_ex(_with_diagonal(moment, ~alive * 1.0 - CUT_OFF * largest)).info.any())


def _with_diagonal(matrices: Tensor, added: Tensor) -> Tensor:
    changed = matrices.clone()
    changed.diagonal(dim1=-2, dim2=-1).add_(added)
    return changed
