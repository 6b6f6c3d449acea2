"""Ridge regression of one layer's last factor, from sums over rows."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from lowrank_core.compression.unfold import as_matrices, as_weight, input_rows, row_chunks
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.running.threads import one_thread

CUT_OFF = 1e-6


SMALL = 512


class NormalEquations:
    """Sums over rows of one layer's last factor: features z (P, n) and targets t (P, out).

    A weight that several copies share is fitted to all of them, the offset to each.

    Both are added up in float64 by chunks, so that neither memory nor precision depends on the number of rows.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self.sums: list[Tensor] = []  # of z z^T, z, t z^T and t
        self.rows = 0

    def add(self, x: Tensor, index: Tensor, targets: Tensor) -> None:
        """One call's input at the drawn positions, and the dense layer's outputs there."""
        start = 0
        for part in row_chunks(self.spec, index):
            z = input_rows(self.spec, x, part).double()
            t = targets[start : start + len(part)].double().reshape(len(part), len(z), -1).transpose(0, 1)
            added = [z.mT @ z, z.sum(1)[:, None, :], t.mT @ z, t.sum(1)[:, :, None]]
            self.sums = [a + b for a, b in zip(self.sums, added, strict=True)] if self.sums else added
            start += len(part)
        self.rows += len(index)

    def solve(self, weight: Tensor, ridge: float | None, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """(weight, offset (out,)) that answer the targets best; without a ridge only the offset is fitted.

        The weight is pulled towards the current one by `ridge` in units of standardised features; features that are
        constant, and directions below CUT_OFF of the strongest, keep their current weights.
        """
        moment, mean, relation, target_mean = (total / self.rows for total in self.sums)
        old = as_matrices(self.spec, weight.detach().double())
        if intercept:
            moment, relation = moment - mean.mT @ mean, relation - target_mean @ mean
        if self.spec.copies > 1:
            moment, relation = moment.mean(0, keepdim=True), relation.mean(0, keepdim=True)
        new = old
        if ridge is not None:
            with one_thread() if moment.shape[-1] <= SMALL else nullcontext():
                new = old + ridge_step(moment, relation - old @ moment, ridge)
        offset = (target_mean - new @ mean.mT) if intercept else torch.zeros_like(target_mean)
        return as_weight(self.spec, new), offset.reshape(-1)


def ridge_step(moment: Tensor, relation: Tensor, ridge: float) -> Tensor:
    """(g, m, n) the D that minimises E|t - D z|^2 + ridge |D|^2 over standardised z, by `eigh` with a cut-off."""
    variance = moment.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    alive = variance > CUT_OFF**2 * variance.amax(-1, keepdim=True)
    inverse = torch.where(alive, variance, 1.0).rsqrt() * alive
    values, vectors = torch.linalg.eigh(moment * inverse[:, :, None] * inverse[:, None, :])
    strong = values > CUT_OFF * values[:, -1:]
    shrunk = torch.where(strong, 1 / (values + ridge).clamp_min(torch.finfo(values.dtype).tiny), 0.0)
    step: Tensor = (relation * inverse[:, None, :]) @ (vectors * shrunk[:, None, :]) @ vectors.mT * inverse[:, None, :]
    return step
