"""Canonical polyadic fits of convolution kernels: a start in closed form, alternating least squares, a watch on norms.

A kernel (out, in, *window) is written as a sum of R outer products. The window counts as one axis (cp3) or as one axis
per dimension (cp4). Ranks are not nested: each is fitted on its own, always from the same start, so that a rank means
the same factors in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import check_finite, principal_basis, storage_dtype, tail_energy
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.running.scope import raise_if_cancelled
from lowrank_core.running.threads import one_thread
from lowrank_core.store.memo import Memo, Tensors

SWEEPS, WIDE_SWEEPS = 150, 40
"""At most, of small and of wide kernels; where 300 sweeps without momentum end, these are after 40."""
TOLERANCE = 1e-5
RIDGE = 1e-3
"""On the sum of the components' squared norms, so that they do not cancel each other (Phan et al., ECCV 2020).
Without it that sum is 9 to 53 times the kernel's squared norm on ResNet-20, with it 3 to 6."""
RIDGE_OF_REST = 0.03
"""Nor is the ridge more than this share of what is left of the kernel, so that an exact fit stays exact."""
STIR = 0.1
FEW = 16
"""Up to this rank sweeps may rest in a poor local minimum: two random starts are tried as well, the best fit kept."""
WIDE = 128 * 128 * 9
"""From this many weights on the sweeps run in float32 and are fewer."""

GROWTH_LIMIT = 100.0
"""Components may be this many times larger than their sum, the kernel (roots of summed squares); 2 to 6 is usual."""

Factors = list[Tensor]
Fit = Callable[[Tensor, int], Factors]


@dataclass(slots=True)
class CpFactorization:
    """Fits of one kernel, each made when its rank is first asked for."""

    spec: LayerSpec
    weight: Tensor
    start: Start
    fit: Fit

    @property
    def memo(self) -> Memo:
        """The results that are kept on disk: the start of the fits, and every fit."""
        return self.start.memo

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The weights of the start's orthogonal components: their tail bounds the error of every rank."""
        return (self.start.singular_values,)

    def error(self, rank: Rank) -> float:
        """Relative distance of the start in closed form, from which the fit goes on.

        Not that of the fit, even where there is one: a rule's answer would depend on what was looked at before.
        """
        return float(self.start.errors[rank[0]])

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """(R, in, 1...), one depthwise weight per axis of the window, (out, R, 1...)."""
        outputs, inputs, *window = self._factors(rank[0])
        ones, dtype = (1,) * len(self.spec.kernel), storage_dtype(self.weight)
        if len(window) == 1:
            middle = [window[0].mT.reshape(-1, 1, *self.spec.kernel)]
        else:
            shapes = [[n if i == axis else 1 for i, n in enumerate(self.spec.kernel)] for axis in range(len(window))]
            middle = [f.mT.reshape(-1, 1, *shape) for f, shape in zip(window, shapes, strict=True)]
        chain = [inputs.mT.reshape(*inputs.mT.shape, *ones), *middle, outputs.reshape(*outputs.shape, *ones)]
        return tuple(part.to(dtype).contiguous() for part in chain)

    def reconstruct(self, rank: Rank) -> Tensor:
        """The sum of the outer products, in the shape of the weight."""
        return compose(self._factors(rank[0])).reshape(self.weight.shape).to(storage_dtype(self.weight))

    def _factors(self, rank: int) -> Factors:
        return _by_axis(self.memo(f"rank {rank}", lambda: self._fit(rank)))

    def _fit(self, rank: int) -> Tensors:
        kernel = self.start.kernel()
        factors = balanced(self.fit(kernel, rank))
        check_growth(kernel, factors)
        return _named_axes(factors)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Orthogonal components of a kernel, the largest first: an exact sum, any leading part of it a fair approximation.

    The window is rotated to its principal axes; each rotated slice (out, in) is cut into its singular triples, and
    those of all slices are pooled. Every triple is one CP component, and there are at most window * min(out, in).
    Computed when first needed, from kernel() -> (out, in, window...), which is twice as large as a float32 weight.
    """

    kernel: Callable[[], Tensor]
    memo: Memo = field(default_factory=Memo)

    @classmethod
    def of(cls, kernel: Tensor) -> Start:
        """Take a kernel (out, in, *window), float64, apart."""
        return cls(lambda: kernel)

    @classmethod
    def of_weight(cls, weight: Tensor, *, joint_window: bool) -> Start:
        """The start of a weight (out, in, *window), its window as one axis or as it is; only the weight itself is held.

        Raises InvalidModel for NaN or Inf.
        """
        check_finite(weight)
        return cls(partial(cp_kernel, weight, joint_window=joint_window))

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """One per axis, (n_i, R); the size of each component is on the first."""
        return tuple(_by_axis(self.memo("start", self._components)))

    @property
    def singular_values(self) -> Tensor:
        """(R,) the size of each component, descending."""
        return self.memo("start", self._components)["singular_values"]

    @property
    def errors(self) -> Tensor:
        """(R + 1,) relative distance that the leading 0, 1, ..., R components leave."""
        tail = tail_energy(self.singular_values)
        return (tail / tail[0]).sqrt() if tail[0] > 0 else torch.zeros_like(tail)

    def _components(self) -> Tensors:
        kernel, bases = self.kernel(), []
        rotated = kernel
        for axis in range(2, kernel.ndim):
            unfolded = kernel.movedim(axis, 0).flatten(1)
            bases.append(principal_basis(unfolded @ unfolded.mT))
            rotated = torch.tensordot(rotated, bases[-1], ([2], [0]))
        slices = rotated.flatten(2).movedim(2, 0)
        left, sigma, right = torch.linalg.svd(slices, full_matrices=False)
        order = sigma.flatten().argsort(descending=True, stable=True)
        slice_index, triple = order // sigma.shape[1], order % sigma.shape[1]
        factors = [left[slice_index, :, triple].mT * sigma.flatten()[order], right[slice_index, triple].mT]
        for axis in reversed(range(2, kernel.ndim)):
            extent = kernel.shape[axis]
            factors.insert(2, bases[axis - 2][:, slice_index % extent])
            slice_index = slice_index // extent
        return {**_named_axes(factors), "singular_values": sigma.flatten()[order]}


def _named_axes(factors: Factors) -> Tensors:
    return {f"axis {axis}": factor for axis, factor in enumerate(factors)}


def _by_axis(named: Tensors) -> Factors:
    return [named[name] for name in sorted(named) if name.startswith("axis ")]


def cp_kernel(weight: Tensor, *, joint_window: bool) -> Tensor:
    """The kernel in float64, its window as one axis or as it is."""
    exact = weight.detach().to(torch.float64).contiguous()
    return exact.flatten(2) if joint_window else exact


def als(start: Start) -> Fit:
    """Alternating least squares from the closed-form start (Carroll & Chang 1970; Kolda & Bader, SIAM Review 2009)."""

    def fit(kernel: Tensor, rank: int) -> Factors:
        generator = torch.Generator().manual_seed(0)
        factors = [_stirred(f[:, :rank], generator) for f in balanced(list(start.factors))]
        if kernel.numel() >= WIDE:
            return sweep(kernel.float(), factors, sweeps=WIDE_SWEEPS)
        starts = [factors]
        if rank <= FEW:
            starts += [[torch.randn(f.shape, generator=generator).to(f) for f in factors] for _ in range(2)]
        with one_thread():
            fits = [sweep(kernel, begun, sweeps=SWEEPS) for begun in starts]
        return min(fits, key=lambda fitted: _distance(kernel, fitted))

    return fit


def _stirred(factor: Tensor, generator: torch.Generator) -> Tensor:
    """A little noise, so that the sweeps do not rest on a saddle where the start is symmetric."""
    noise = torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor.device)
    return factor + STIR * factor.square().mean().sqrt() * noise


def sweep(kernel: Tensor, factors: Factors, *, sweeps: int) -> Factors:
    """Sweeps over the axes until the cost falls by less than TOLERANCE of itself, at most `sweeps`.

    kernel: (out, in, *window); factors: one per axis, (n_i, R). The cost is what is left of the kernel, squared, plus
    the ridge times the components' squared norms. Each sweep starts from where the last two lead (Nesterov's momentum,
    begun anew where the cost rises: Mitchell, Ye & De Sterck, Numer. Linear Algebra Appl. 2020), which takes a fifth of
    the sweeps. The small systems are solved in float64.
    """
    energy = float(kernel.double().square().sum())
    unfolded = kernel.flatten(2).movedim(2, 1)  # (out, window, in)
    by_input, by_output = unfolded.flatten(0, 1), unfolded.movedim(0, 2).movedim(1, 0).flatten(0, 1)
    best = begun = [f.to(kernel) for f in balanced(factors)]
    cost, ridge, momentum = torch.inf, RIDGE, 1.0
    for _ in range(sweeps):
        raise_if_cancelled()
        outputs, inputs, *window = begun
        outputs, window, _ = _refitted(by_input @ inputs, inputs, outputs, window, ridge)
        inputs, window, explained = _refitted(by_output @ outputs, outputs, inputs, window, ridge)
        left = max(0.0, energy - explained)
        swept = balanced([outputs, inputs, *window])
        reached = left + ridge * float(sizes(swept).square().sum())
        if reached > cost:
            begun, cost, momentum = best, torch.inf, 1.0
            continue
        settled = cost < torch.inf and cost**0.5 - reached**0.5 < TOLERANCE * reached**0.5
        further = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        begun = [f + (momentum - 1) / further * (f - g) for f, g in zip(swept, best, strict=True)]
        best, cost, momentum = swept, reached, further
        if settled:
            break
        ridge = min(ridge, RIDGE_OF_REST * left / energy) if energy > 0 else ridge
    return best


def _refitted(
    part: Tensor, fixed: Tensor, factor: Tensor, window: Factors, ridge: float
) -> tuple[Tensor, Factors, float]:
    """Least squares for one factor of the channels, then for each of the window; and how much the fit explains.

    part: (n * prod(window), R), the kernel times the factor of the other channels, which stays as it is.
    """
    part = part.reshape(len(factor), -1, part.shape[1])
    factor, _ = _solved((part * khatri_rao(window)).sum(1), [fixed, *window], ridge)
    inner = (part * factor[:, None]).sum(0).reshape(*map(len, window), -1)
    window, explained = list(window), 0.0
    for axis in range(len(window)):
        others = window[:axis] + window[axis + 1 :]
        rows = inner.movedim(axis, 0).reshape(len(window[axis]), -1, factor.shape[1])
        right = (rows * khatri_rao([torch.ones_like(factor[:1]), *others])).sum(1)
        window[axis], explained = _solved(right, [fixed, factor, *others], ridge)
    return factor, window, explained


def _solved(right: Tensor, others: Factors, ridge: float) -> tuple[Tensor, float]:
    """The factor (n, R) whose least squares these are: right (n, R) the kernel times the others; and what it explains.

    The ridge on the squared norms of the components is one on the diagonal of the others' Gram matrix, times itself.
    """
    gram = torch.stack([(f.mT @ f).double() for f in others]).prod(0)
    diagonal = gram.diagonal()
    least = (1e-9 * diagonal.mean()).clamp_min(torch.finfo(gram.dtype).tiny)  # where a component has vanished
    lower, _ = torch.linalg.cholesky_ex(gram + torch.diag(ridge * diagonal + least))
    solved = torch.cholesky_solve(right.double().mT, lower).mT
    explained = 2 * (right * solved).sum() - ((solved.mT @ solved) * gram).sum()
    return solved.to(right), float(explained)


def khatri_rao(factors: Factors) -> Tensor:
    """(prod n_i, R) column-wise Kronecker product, the first factor's index running slowest."""
    columns = factors[0]
    for factor in factors[1:]:
        columns = (columns[:, None, :] * factor[None, :, :]).flatten(0, 1)
    return columns


def compose(factors: Factors) -> Tensor:
    """The tensor that the factors stand for."""
    return (factors[0] @ khatri_rao(factors[1:]).mT).reshape([len(f) for f in factors])


def balanced(factors: Factors) -> Factors:
    """CP components scaled to equal norms on every axis; their product is unchanged."""
    norms = torch.stack([torch.linalg.vector_norm(f, dim=0) for f in factors])
    even = norms.prod(0) ** (1 / len(factors))
    return [f * torch.where(n > 0, even / n.clamp_min(1e-300), 0.0) for f, n in zip(factors, norms, strict=True)]


def sizes(factors: Factors) -> Tensor:
    """(R,) the norm of each component, float64."""
    return torch.stack([torch.linalg.vector_norm(f.double(), dim=0) for f in factors]).prod(0)


def growth(kernel: Tensor, factors: Factors) -> float:
    """Size of the components over the size of what they add up to; far above 1 they cancel each other."""
    total = torch.linalg.vector_norm(kernel.double())
    return float(torch.linalg.vector_norm(sizes(factors)) / total) if total > 0 else 0.0


def check_growth(kernel: Tensor, factors: Factors) -> None:
    """Raise InvalidModel where a fit is degenerate (Phan et al., ECCV 2020: large components that cancel)."""
    grown = growth(kernel, factors)
    if not grown <= GROWTH_LIMIT:
        raise InvalidModel(
            f"the CP fit of rank {factors[0].shape[1]} degenerates: its components are {grown:.0f} times larger than "
            f"the weight they add up to (limit {GROWTH_LIMIT:.0f}); choose another rank, or spatial_svd or tucker2."
        )


def cp_max_rank(spec: LayerSpec, window: int) -> int:
    """Largest rank with fewer parameters than the layer; `window` weights of a component lie on the window's axes.

    The break-even in multiplies is never above it where input and output positions differ by the stride alone, since
    only the first factor sees more positions than the layer itself.
    """
    return (spec.weights - 1) // (spec.out_channels + spec.in_channels + window)


def cp_obstacle(spec: LayerSpec, window: int) -> str | None:
    """Convolutions with a window, not grouped, large enough for rank 1 to pay."""
    if prod(spec.kernel) == 1:
        shape = f"kernel {'x'.join(map(str, spec.kernel))}" if spec.kernel else "Linear"
        return f"{shape}: a matrix has one rank, so svd does the same with fewer factors"
    if spec.groups > 1:
        return f"{spec.groups} groups: its components would have to reach every input from every output"
    if cp_max_rank(spec, window) < 1:
        return "too small: even rank 1 would not be cheaper"
    return None


def _distance(kernel: Tensor, factors: Factors) -> float:
    total = torch.linalg.vector_norm(kernel)
    lost = torch.linalg.vector_norm(kernel - compose([f.to(kernel) for f in factors]))
    return float(lost / total) if total > 0 else 0.0
