"""All factors of a chain refitted at once, from the second moments of what goes into it.

A chain has nothing between its factors that is not linear, so it computes B K x: B is its last factor, K(theta) the
kernel of those before it, x what one output is computed from. For every theta the best B is known in closed form;
what is left is minimised over theta alone (variable projection: Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973). Where
K is free, as in a chain of two whose second factor has no window, the best chain is known outright (reduced-rank
regression: Izenman, J. Multivariate Anal. 5, 1975).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isfinite, prod
from typing import Literal

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import TINY, definite_root
from lowrank_core.compression.least_squares import SMALL, ridge_step
from lowrank_core.compression.unfold import as_matrices, as_weight
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.running.scope import give_way
from lowrank_core.running.threads import one_thread

BOUND = 1e-3
"""Ridge on the sum of the squared norms of components of rank one, relative to the mean variance of the inputs."""

OPEN = 0.1
"""Ridge towards the dense weight of a layer that sees as many rows as it has inputs, where the fit follows the samples;
of others in proportion, beside the one that was asked for."""

ITERATIONS = 120
"""At most; ResNet-20 at 30 % of its multiplies diverges by 0.090 after 60 and 0.089 after 120, on samples held back."""

LATELY, LITTLE = 10, 0.005
"""They end where the last so many have brought less than this share of all that was won."""

HISTORY = 20
STEEPEST = 0.1
"""How far the first step goes, relative to the factors."""

WIDE = 1000
"""Inputs from which on moments are kept and factors fitted in float32, and eigenvectors are iterated for."""

ROUNDS = 8
"""Of the iteration for eigenvectors, which starts from those of the decomposition."""

ROWS = 256
"""Rows that are solved for between two looks whether somebody still waits."""

MOMENT_BYTES = 2**27
"""The second moments of a layer's inputs take at most this, the work on them about four times as much; of a layer that
would need more the last factor alone is refitted."""

FLOOR = 1e-3
"""Inputs that hardly move are held to their dense weights as if they had this share of the mean variance."""

Depth = Literal["none", "quick", "thorough"]


@dataclass(frozen=True, slots=True)
class Fit:
    """One weight per stage of a chain, and how they came about: none refitted, the last one, or all.

    error: E|y - W x|^2 - E|y|^2 of the outputs on the samples, for the layer W that the chain stands for. loss: the
    same with the ridge towards the dense weight.
    """

    weights: tuple[Tensor, ...]
    error: float
    loss: float
    depth: Depth


def obstacle(spec: LayerSpec, stages: Sequence[LayerSpec]) -> str | None:
    """Why not all factors of the chain that stands for a layer can be refitted, or None."""
    last = stages[-1]
    if spec.table:
        return "the rows that it looks up are put together" if spec.bag else None
    if spec.copies > 1 or (spec.transposed and not spec.kernel) or last.groups != spec.groups:
        return "its chain is of a kind that is not known"
    size = moment_bytes(spec)
    return f"the moments of its inputs would take {size / 1e9:.1f} GB" if size > MOMENT_BYTES else None


def moment_bytes(spec: LayerSpec) -> int:
    """Memory that the second moments of a layer's inputs take."""
    return spec.groups * spec.fan_in**2 * sums_kept_in(spec).itemsize


def sums_kept_in(spec: LayerSpec) -> torch.dtype:
    """The type of a layer's moments: of a wide one float32, which takes half of the memory and of the time."""
    return torch.float32 if spec.fan_in > WIDE else torch.float64


@dataclass(frozen=True, slots=True)
class Moments:
    """What a layer's rows tell: second (g, n, n) = E[x x^T], relation (g, m, n) = E[y x^T] of inputs x and dense
    outputs y, centred where an offset is fitted beside; and how many there are."""

    second: Tensor
    relation: Tensor
    rows: int

    def error(self, matrices: Tensor) -> float:
        """E|y - W x|^2 - E|y|^2 of the matrices W (g, m, n) of a layer."""
        return float(((matrices @ self.second - 2 * self.relation) * matrices).sum(dtype=torch.float64))

    def towards(self, dense: Tensor, ridge: float) -> Moments:
        """With a ridge that pulls the layer towards its dense matrices, relative to the variance of each input.

        As from rows whose inputs are known less exactly: a chain that is best on these rows for what is beside them.
        """
        variance = self.second.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        pull = (ridge + OPEN * variance.shape[-1] / self.rows) * variance.clamp_min(
            FLOOR * variance.mean(-1, keepdim=True)
        )
        second = self.second.clone()
        second.diagonal(dim1=-2, dim2=-1).add_(pull)
        return Moments(second, self.relation + dense * pull[:, None, :], self.rows)


def refit(
    spec: LayerSpec,
    stages: Sequence[LayerSpec],
    weights: Sequence[Tensor],
    moments: Moments,
    dense: Tensor,
    *,
    ridge: float,
    bound: float = BOUND,
) -> Fit:
    """The chain that answers best: all factors refitted, or the last one, or none if nothing helps.

    Never one that answers worse on the samples than the chain as it is; of the others the best with the ridge that
    pulls towards `dense`, the layer's own weight, without which a fit to few rows always looks better. bound: the ridge
    on the sum of the squared norms of a CP's components, which keeps them from cancelling each other, relative to the
    mean variance of the inputs. Gives way and raises Cancelled between two iterations.
    """
    kind = moments.second.dtype
    old = [weight.detach().to(kind) for weight in weights]
    pulled = moments.towards(as_matrices(spec, dense.detach().to(kind)), ridge)
    none = _fit(spec, stages, old, moments, pulled, "none")
    if not bool(moments.second.any()):  # one input only: it tells nothing but an offset
        return none
    with one_thread() if moments.second.shape[-1] <= SMALL else nullcontext():
        quick = [*old[:-1], last_alone(spec, stages, old, moments, ridge)]
        fits = [
            none,
            _fit(spec, stages, quick, moments, pulled, "quick"),
            _fit(spec, stages, _all(spec, stages, old, pulled, bound), moments, pulled, "thorough"),
        ]
    helping = [fit for fit in fits if isfinite(fit.loss) and fit.error <= none.error]
    return min(helping, key=lambda fit: fit.loss, default=none)


def _fit(
    spec: LayerSpec, stages: Sequence[LayerSpec], weights: list[Tensor], moments: Moments, pulled: Moments, depth: Depth
) -> Fit:
    matrices = chain_matrices(spec, stages, weights)
    return Fit(tuple(weights), moments.error(matrices), pulled.error(matrices), depth)


def last_alone(
    spec: LayerSpec, stages: Sequence[LayerSpec], weights: Sequence[Tensor], moments: Moments, ridge: float
) -> Tensor:
    """The last factor refitted alone, with the ridge of the quick correction."""
    last, kernel = stages[-1], features(spec, stages, weights[:-1])
    copies = kernel.shape[1]
    second = (kernel @ moments.second[:, None] @ kernel.mT).mean(1)
    relation = (_by_copy(moments.relation, copies) @ kernel.mT).mean(1)
    old = as_matrices(last, weights[-1])
    return as_weight(last, old + ridge_step(second, relation - old @ second, ridge))


def _all(
    spec: LayerSpec, stages: Sequence[LayerSpec], weights: Sequence[Tensor], moments: Moments, bound: float
) -> list[Tensor]:
    first, last = stages[0], stages[-1]
    if len(stages) == 2 and prod(last.kernel) == 1 == last.copies and first.groups == spec.groups:
        left, right = closed_form(moments, as_matrices(last, weights[-1]))
        return [as_weight(first, right), as_weight(last, left)]
    parts_alone = any(stage.groups == stage.in_channels for stage in stages[1:-1])  # others cannot cancel each other
    projected = _Projected(moments, bound if parts_alone else 0.0)
    shapes = [weight.shape for weight in weights[:-1]]

    def factors(theta: Tensor) -> list[Tensor]:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def slope(theta: Tensor) -> tuple[float, Tensor]:
        give_way()
        theta = theta.clone().requires_grad_()
        with torch.enable_grad():
            rows = features(spec, stages, factors(theta))
        value, gradient, _ = projected(rows.detach())
        (down,) = torch.autograd.grad(rows, theta, gradient)
        return value, down

    theta = minimise(slope, torch.cat([weight.reshape(-1) for weight in weights[:-1]]), ITERATIONS)
    first_ones = factors(theta)
    _, _, left = projected(features(spec, stages, first_ones))
    return [*first_ones, as_weight(last, left)]


# ---- a chain of two, in closed form ---------------------------------------------------------------------------------


def closed_form(moments: Moments, start: Tensor) -> tuple[Tensor, Tensor]:
    """(left (g, m, r), right (g, r, n)): the best matrix of that rank; start: a left factor that is near it.

    With S = L L^T it is C L^-T cut to its leading singular vectors, times L^-1. Those of the shorter side are enough:
    eigenvectors of C S^-1 C^T or of L^-1 C^T C L^-T.
    """
    root, relation, rank = definite_root(moments.second), moments.relation, start.shape[-1]
    outputs, inputs = relation.shape[1:]
    if outputs <= inputs:
        best = _solved(lambda rows: torch.cholesky_solve(rows.mT, root).mT, relation)
        values, left = _leading(best @ relation.mT, rank, start)
        share = _share(values)
        return left * share[:, None, :], left.mT @ best / share[..., None]
    whitened = _solved(lambda rows: torch.linalg.solve_triangular(root, rows.mT, upper=False).mT, relation)
    values, basis = _leading(whitened.mT @ whitened, rank, whitened.mT @ start)
    share = _share(values)
    right = torch.linalg.solve_triangular(root.mT, basis, upper=True).mT
    return whitened @ basis / share[:, None, :], right * share[..., None]


def _share(values: Tensor) -> Tensor:
    """What each factor takes of the singular values whose squares these are: their root, however small they are."""
    singular = values.clamp_min(0).sqrt()
    return singular.clamp_min(1e-6 * singular.amax(-1, keepdim=True)).clamp_min(1e-30).sqrt()


def _solved(solve: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Rows solved for, some at a time."""
    if rows.shape[-1] <= WIDE:
        return solve(rows)
    parts = []
    for part in torch.split(rows, ROWS, 1):
        give_way()
        parts.append(solve(part))
    return torch.cat(parts, 1)


def _leading(matrices: Tensor, rank: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """(values (g, r), vectors (g, n, r)) of the largest eigenvalues of definite matrices, descending.

    Of wide ones by iteration from vectors that span nearly the same (Rutishauser, Numer. Math. 13, 1969).
    """
    if matrices.shape[-1] <= WIDE:
        values, vectors = torch.linalg.eigh(matrices)
        return values[:, -rank:].flip(-1), vectors[:, :, -rank:].flip(-1)
    basis, _ = torch.linalg.qr(start)
    for _ in range(ROUNDS):
        give_way()
        basis, _ = torch.linalg.qr(matrices @ basis)
    values, turned = torch.linalg.eigh(basis.mT @ matrices @ basis)
    return values.flip(-1), basis @ turned.flip(-1)


# ---- other chains ---------------------------------------------------------------------------------------------------


class _Projected:
    """The objective of the features K (g, copies, R, n) with the last factor at its best."""

    def __init__(self, moments: Moments, bound: float) -> None:
        self._second, self._relation = moments.second[:, None], moments.relation
        self._bound = bound * moments.second.diagonal(dim1=-2, dim2=-1).mean(-1)  # (g,)

    def __call__(self, kernel: Tensor) -> tuple[float, Tensor, Tensor]:
        """(value, its gradient by K, the best last factor (g, m, R)); infinity where the features are hardly apart."""
        relation = _by_copy(self._relation, kernel.shape[1])
        seen = kernel @ self._second
        gram = (seen @ kernel.mT).sum(1)
        gram.diagonal(dim1=-2, dim2=-1).add_(self._bound[:, None] * kernel.square().sum((1, 3)))
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(TINY * diagonal + torch.finfo(gram.dtype).eps * diagonal.amax(-1, keepdim=True))
        answers = (relation @ kernel.mT).sum(1)
        root, wrong = torch.linalg.cholesky_ex(gram)
        if bool(wrong.any()):
            return inf, kernel, answers
        left = torch.cholesky_solve(answers.mT, root).mT
        value = -float((left * answers).sum())
        size = (self._bound[:, None] * left.square().sum(1))[:, None, :, None]
        gradient = 2 * (left[:, None].mT @ (left[:, None] @ seen - relation) + size * kernel)
        return value, gradient, left


def minimise(slope: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, iterations: int) -> Tensor:
    """Where a function of (value, gradient) is small: L-BFGS (Nocedal, Math. Comp. 35, 1980) with backtracking."""
    x, (value, gradient) = start, slope(start)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    values = [value]
    for _ in range(iterations):
        direction, shares = -gradient, []
        for step, change, product in reversed(steps):
            share = (step @ direction) / product
            direction = direction - share * change
            shares.append(share)
        if steps:
            _, change, product = steps[-1]
            direction = direction * (product / (change @ change))
        else:
            direction = direction * (STEEPEST * x.norm() / direction.norm().clamp_min(1e-30))
        for (step, change, product), share in zip(steps, reversed(shares), strict=True):
            direction = direction + (share - (change @ direction) / product) * step
        fall, length = float(gradient @ direction), 1.0
        if not fall < 0:
            break
        for _ in range(20):
            new_value, new_gradient = slope(x + length * direction)
            if new_value <= value + 1e-4 * length * fall:
                break
            length /= 2
        else:
            break
        step, change = length * direction, new_gradient - gradient
        product = step @ change
        if product > 1e-12 * step.norm() * change.norm():
            steps = [*steps[1 - HISTORY :], (step, change, product)]
        x, value, gradient = x + step, new_value, new_gradient
        values.append(value)
        if len(values) > LATELY and values[-1 - LATELY] - value < LITTLE * (values[0] - value):
            break
    return x


# ---- what a chain stands for ----------------------------------------------------------------------------------------


def chain_matrices(spec: LayerSpec, stages: Sequence[LayerSpec], weights: Sequence[Tensor]) -> Tensor:
    """(groups, out / groups, n): the layer that a chain stands for."""
    last = as_matrices(stages[-1], weights[-1])
    by_copy: Tensor = last[:, None] @ features(spec, stages, weights[:-1])
    return by_copy.flatten(1, 2)


def features(spec: LayerSpec, stages: Sequence[LayerSpec], weights: Sequence[Tensor]) -> Tensor:
    """(groups, copies, R, n): what the last factor of a chain sees, as rows over what goes into the layer.

    weights: those of the factors before the last. Columns are in the order of `input_rows` of the layer, rows in that
    of `as_matrices` of the last factor.
    """
    rows, last = _composed(spec, stages, weights), stages[-1]
    if last.copies > 1:
        return rows.reshape(-1, last.copies, rows[0].numel()).transpose(0, 1)[None]
    taps = prod(last.kernel)
    rows = rows.reshape(spec.groups, -1, 1, *rows.shape[1:])
    if taps > 1:
        rows = rows * torch.eye(taps, dtype=rows.dtype).view(taps, 1, *last.kernel)
    kernel: Tensor = rows.reshape(spec.groups, 1, -1, spec.fan_in)
    return kernel


def _composed(spec: LayerSpec, stages: Sequence[LayerSpec], weights: Sequence[Tensor]) -> Tensor:
    """(channels, in / groups, *window) of the factors before the last; a side on which none has a window has 1."""
    rows: Tensor | None = None
    for stage, weight in zip(stages, weights, strict=False):
        outputs, inputs = stage.out_channels // stage.groups, stage.in_channels // stage.groups
        taps = as_matrices(stage, weight).reshape(stage.groups, outputs, inputs, *stage.kernel)
        if rows is None:
            rows = _spread(spec, taps)
            continue
        before = rows.reshape(stage.groups, inputs, *rows.shape[1:])
        rows = torch.einsum("gor...,grc...->goc...", taps, before).flatten(0, 1)
    assert rows is not None
    return rows


def _spread(spec: LayerSpec, taps: Tensor) -> Tensor:
    """Rows (out, in / groups, *window) of a first factor (g, out / g, in / g, *window) with more groups than the layer:
    zero where an output sees nothing."""
    parts = len(taps) // spec.groups
    if parts == 1:
        return taps.flatten(0, 1)
    blocks = taps.reshape(spec.groups, parts, *taps.shape[1:])
    places = torch.eye(parts, dtype=taps.dtype).view(parts, 1, parts, *(1,) * (taps.ndim - 2))
    spread: Tensor = blocks[:, :, :, None] * places
    return spread.flatten(3, 4).flatten(0, 2)


def _by_copy(relation: Tensor, copies: int) -> Tensor:
    """(g, m, n) -> (g, copies, m / copies, n)"""
    return relation.reshape(len(relation), copies, -1, relation.shape[-1])


# ---- tables ---------------------------------------------------------------------------------------------------------


def refit_table(weights: Sequence[Tensor], share: Tensor, dense: Tensor, *, ridge: float) -> Fit:
    """The narrower table and the Linear behind it that give the rows of a table (V, d) best, as often as they occur.

    share: (V,) of each row among those looked up. A row that none looks up counts as `ridge` of the mean.
    """
    rows = dense.detach()
    counted = (share + ridge * share.mean()).to(rows)

    def fit(table: Tensor, last: Tensor, depth: Depth) -> Fit:
        error = (table @ last.mT - rows).square().sum(1).double()
        return Fit((table, last), float((error * share).sum()), float((error * counted).sum()), depth)

    old = (weights[0].detach().to(rows), weights[1].detach().to(rows))
    weighted = (rows.mT @ (counted[:, None] * rows)).double()
    basis = torch.linalg.eigh(weighted).eigenvectors[:, -old[0].shape[1] :].flip(-1).to(rows)
    return min(fit(*old, "none"), fit(rows @ basis, basis, "thorough"), key=lambda fit: fit.loss)
