"""Data-aware factors: minimise E|(W - W_r) x|^2 over what the layer really sees, instead of |W - W_r|^2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import check_finite, definite_root, principal_basis, storage_dtype, tail_energy
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.store.memo import Memo, Tensors

CUT_OFF = 1e-6

SecondMoment = Tensor | Callable[[], Tensor]
"""E[x x^T] of a layer's inputs, or what gives it whenever it is needed, so that nobody has to hold it till then."""


def moment_of(second_moment: SecondMoment) -> Tensor:
    """The moment itself."""
    return second_moment if isinstance(second_moment, Tensor) else second_moment()


@dataclass(frozen=True)
class AwareFactorization:
    """First factors that are nested, and for each rank the last factor that answers best on the data.

    The first factor turns each of `window` slices of the input alike: its rows are first (groups, R, n / window), and
    the features z = (first[:r] kron I) x. root (groups, n, n) is the root of the second moment, target (groups, out, n)
    the weight times it. out_basis (groups, out, out) holds the output axes where outputs have a rank of their own.
    spectra: the root of what each further rank adds to E|W x|^2, one per axis. All are computed when first needed.
    """

    weight: Tensor
    window: int
    axes: int
    to_stages: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    compute: Callable[[], Tensors]
    memo: Memo = field(default_factory=Memo)

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """One spectrum per axis of the method: the root of what each further rank adds."""
        return tuple(self._found[f"spectrum {axis}"] for axis in range(self.axes))

    @property
    def _found(self) -> Tensors:
        return self.memo("whitened", self.compute)

    @cached_property
    def _tails(self) -> list[list[float]]:
        return [tail_energy(spectrum).tolist() for spectrum in self.spectra]

    def error(self, rank: Rank) -> float:
        """Relative error of the layer's outputs on the data: exact for one axis, for two the bound of both tails."""
        if self._tails[0][0] == 0:
            return 0.0
        lost = sum(tail[r] / tail[0] for tail, r in zip(self._tails, rank, strict=True))
        return float(min(1.0, lost) ** 0.5)

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One contiguous weight per stage of the chain."""
        first, last, basis = self._parts(rank)
        dtype = storage_dtype(self.weight)
        return tuple(w.to(dtype).contiguous() for w in self.to_stages(first, last, basis))

    def reconstruct(self, rank: Rank) -> Tensor:
        """The product of the stages, in the shape of the weight."""
        first, last, basis = self._parts(rank)
        product = basis @ last @ slicewise(first, self.window)
        return product.reshape(self.weight.shape).to(storage_dtype(self.weight))

    def _parts(self, rank: Rank) -> tuple[Tensor, Tensor, Tensor]:
        """first (groups, r, n / window), last (groups, r_out, r * window) and the output axes (groups, out, r_out)."""
        parts = self._found
        first, target = parts["first"][:, : rank[-1]], parts["target"]
        basis = torch.eye(target.shape[1]).to(target).expand(len(first), -1, -1)
        if "out_basis" in parts:
            basis = parts["out_basis"][:, :, : rank[0]]
        features = slicewise(first, self.window) @ parts["root"]
        inverse = torch.linalg.pinv(features @ features.mT, rtol=1e-10, hermitian=True)
        return first, basis.mT @ target @ features.mT @ inverse, basis


def factorize_aware(
    spec: LayerSpec,
    weight: Tensor,
    second_moment: SecondMoment,
    window: int,
    ranks: Rank,
    to_stages: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
) -> AwareFactorization:
    """Whiten by the moment of one slice, averaged over the `window`; take the leading directions; measure each.

    second_moment: (groups, n, n) with n = in / groups * prod(kernel). ranks: the largest rank, or (out, in).
    """
    check_finite(weight)

    def checked() -> Tensor:
        moment, wanted = moment_of(second_moment), (spec.groups, spec.fan_in, spec.fan_in)
        if moment.shape != wanted:
            raise ValueError(f"second_moment must be {wanted}, but got {tuple(moment.shape)}")
        return moment

    if isinstance(second_moment, Tensor):
        checked()

    def compute() -> Tensors:
        return _whitened(spec, weight, checked(), window, ranks)

    return AwareFactorization(weight, window, len(ranks), to_stages, compute)


def _whitened(spec: LayerSpec, weight: Tensor, second_moment: Tensor, window: int, ranks: Rank) -> Tensors:
    """What AwareFactorization holds, by name."""
    n = spec.fan_in
    matrix = weight.detach().double().reshape(spec.groups, spec.out_channels // spec.groups, -1)
    root, _ = moment_roots(second_moment)
    target = matrix @ root
    of_slice = second_moment.reshape(spec.groups, n // window, window, n // window, window)
    slice_root, slice_inverse = moment_roots(of_slice.diagonal(dim1=2, dim2=4).mean(-1))
    sliced = matrix.reshape(spec.groups, -1, n // window, window).transpose(2, 3).flatten(1, 2)
    _, sigma, right = torch.linalg.svd(sliced @ slice_root, full_matrices=False)
    scale = (sigma / sigma[:, :1].clamp_min(torch.finfo(sigma.dtype).tiny)).sqrt()
    first = (scale[:, :, None] * right @ slice_inverse)[:, : ranks[-1]]
    added = _added_energy(slicewise(first, window) @ root, target)
    added = added.reshape(spec.groups, -1, window).sum((0, 2))
    parts = {"first": first, "root": root, "target": target, f"spectrum {len(ranks) - 1}": added.sqrt()}
    if len(ranks) == 2:
        parts["out_basis"] = principal_basis(target @ target.mT)
        energy = (parts["out_basis"].mT @ target).square().sum((0, 2))
        parts["spectrum 0"] = energy[: ranks[0]].sqrt()
    return parts


def slicewise(first: Tensor, window: int) -> Tensor:
    """(g, r, m) -> (g, r * window, m * window): the same map for each of `window` slices of the input."""
    eye = torch.eye(window).to(first)
    return torch.einsum("grm,jk->grjmk", first, eye).flatten(3, 4).flatten(1, 2)


def moment_roots(second_moment: Tensor) -> tuple[Tensor, Tensor]:
    """S^(1/2) and its inverse, by `eigh`; directions the data hardly takes count as CUT_OFF of the strongest."""
    values, vectors = torch.linalg.eigh(second_moment.double())
    floor = (values[..., -1:] * CUT_OFF).clamp_min(torch.finfo(values.dtype).tiny)
    scale = torch.where(values[..., -1:] > 0, values.maximum(floor), 1.0).sqrt()[..., None, :]
    return (vectors * scale) @ vectors.mT, (vectors / scale) @ vectors.mT


def output_directions(matrix: Tensor, second_moment: Tensor, *, vectors: bool = True) -> tuple[Tensor, Tensor]:
    """(energies (k,), directions (m, k)) of the outputs of a matrix (m, n) on what it sees, the strongest first.

    k = min(m, n). The first r directions U give the best matrix of rank r, U U^T W; what it loses of E|W x|^2 are the
    other energies. Nothing is inverted, so that the moment (n, n) may be singular. vectors: whether directions are
    asked for; without them an empty tensor.

    >>> output_directions(torch.diag(torch.tensor([1.0, 3.0])), torch.eye(2))[0].tolist()
    [9.0, 1.0]
    """
    root = None if matrix.shape[0] <= matrix.shape[1] else matrix @ definite_root(second_moment)
    gram = matrix @ second_moment @ matrix.mT if root is None else root.mT @ root
    if not vectors:
        return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0), gram.new_empty(0)
    energies, basis = torch.linalg.eigh(gram)
    energies, basis = energies.flip(-1).clamp_min(0), basis.flip(-1)
    if root is None:
        return energies, basis
    return energies, root @ basis / energies.sqrt().clamp_min(torch.finfo(basis.dtype).tiny)


def _added_energy(features: Tensor, target: Tensor) -> Tensor:
    """(g, m) how much of |target|^2 each further row of the features explains: one QR gives every rank."""
    basis = torch.linalg.qr(features.mT).Q
    added: Tensor = (target @ basis).square().sum(1)
    if added.shape[1] < features.shape[1]:
        added = torch.nn.functional.pad(added, (0, features.shape[1] - added.shape[1]))
    return added
