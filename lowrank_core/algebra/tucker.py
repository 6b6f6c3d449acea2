"""Two bases of a kernel (out, in, window...), from which every pair of ranks is cut: higher-order SVDs.

Sequentially truncated: the output basis once, then the input basis of what the kept outputs leave (Vannieuwenhoven et
al., SIAM J. Sci. Comput. 2012). HOOI refines both bases alternately with tensorly's `partial_tucker`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod, sqrt

import torch
from torch import Tensor

from lowrank_core.algebra.linalg import check_finite, principal_basis, storage_dtype, tail_energy
from lowrank_core.layers.spec import LayerSpec, Rank
from lowrank_core.store.memo import Memo, Tensors


def tucker_max_rank(spec: LayerSpec) -> Rank:
    """(out, in) per group, never more than the other axes can span."""
    outputs, inputs, window = spec.out_channels // spec.groups, spec.in_channels // spec.groups, prod(spec.kernel)
    return min(outputs, inputs * window), min(inputs, outputs * window)


@dataclass(frozen=True)
class TuckerFactorization:
    """Both bases of each group; a rank keeps their leading columns."""

    spec: LayerSpec
    weight: Tensor
    ranks: Rank
    hooi: bool
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(cls, spec: LayerSpec, weight: Tensor, *, hooi: bool = False) -> TuckerFactorization:
        """The factors of a kernel, computed when they are first needed; raises InvalidModel for NaN or Inf."""
        check_finite(weight)
        return cls(spec, weight, tucker_max_rank(spec), hooi)

    @property
    def kernels(self) -> tuple[Tensor, ...]:
        """(out, in, *kernel) of each group, float64."""
        return self.weight.detach().to(torch.float64).contiguous().chunk(self.spec.groups)

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The singular values of both unfoldings; of several groups the root of the sum of squares."""
        bases = self.memo("bases", self._unfolded)
        return bases["out"], bases["in"]

    def _unfolded(self) -> Tensors:
        """Both spectra, and the output basis of each group."""
        energies = [torch.zeros(n // self.spec.groups) for n in (self.spec.out_channels, self.spec.in_channels)]
        bases = {}
        for group, kernel in enumerate(self.kernels):
            for axis in (0, 1):
                matrix = _unfold(kernel, axis)
                values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
                energies[axis] = energies[axis] + values.flip(0).clamp_min(0)
                if axis == 0:
                    bases[f"basis {group}"] = vectors.flip(1)
        outputs, inputs = (e[:r].sqrt() for e, r in zip(energies, self.ranks, strict=True))
        return {"out": outputs, "in": inputs, **bases}

    @cached_property
    def _tails(self) -> list[list[float]]:
        return [tail_energy(spectrum).tolist() for spectrum in self.spectra]

    def error(self, rank: Rank) -> float:
        """Bound of the higher-order SVD: the squared tails of both axes add (De Lathauwer et al., SIMAX 2000)."""
        total = self._tails[0][0]
        lost = sum(tail[r] for tail, r in zip(self._tails, rank, strict=True))
        return min(1.0, sqrt(lost / total)) if total > 0 else 0.0

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """(groups * r_in, in / groups, 1...), (groups * r_out, r_in, *kernel) and (out, r_out, 1...)."""
        dtype, ones = storage_dtype(self.weight), (1,) * len(self.spec.kernel)
        first, core, last = [], [], []
        for kernel, (out_basis, in_basis) in zip(self.kernels, self._bases_at(rank), strict=True):
            first.append(in_basis.mT.reshape(*in_basis.mT.shape, *ones))
            core.append(_times(_times(kernel, out_basis.mT, 0), in_basis.mT, 1))
            last.append(out_basis.reshape(*out_basis.shape, *ones))
        return tuple(torch.cat(parts).to(dtype).contiguous() for parts in (first, core, last))

    def reconstruct(self, rank: Rank) -> Tensor:
        """The core multiplied by both bases, in the shape of the weight."""
        parts = [
            _times(_times(kernel, out_basis @ out_basis.mT, 0), in_basis @ in_basis.mT, 1)
            for kernel, (out_basis, in_basis) in zip(self.kernels, self._bases_at(rank), strict=True)
        ]
        return torch.cat(parts).to(storage_dtype(self.weight))

    def _bases_at(self, rank: Rank) -> tuple[tuple[Tensor, Tensor], ...]:
        """(out basis, in basis) of each group, orthonormal columns; the in basis depends on the kept outputs."""
        (r_out, r_in), groups = rank, range(self.spec.groups)
        if self.hooi:
            both = self.memo.briefly(f"both at {rank}", lambda: self._refined(rank))
            return tuple((both[f"out {group}"], both[f"in {group}"]) for group in groups)
        outs, inner = self._out_bases(r_out), self.memo.briefly(f"in at {r_out}", lambda: self._in_bases(r_out))
        return tuple((outs[group], inner[f"in {group}"][:, :r_in]) for group in groups)

    def _out_bases(self, r_out: int) -> list[Tensor]:
        bases = self.memo("bases", self._unfolded)
        return [bases[f"basis {group}"][:, :r_out] for group in range(self.spec.groups)]

    def _in_bases(self, r_out: int) -> Tensors:
        """All input axes of each group for so many outputs; every rank of the inputs is a slice of them."""
        pairs = zip(self.kernels, self._out_bases(r_out), strict=True)
        return {f"in {group}": _in_basis(kernel, out) for group, (kernel, out) in enumerate(pairs)}

    def _refined(self, rank: Rank) -> Tensors:
        bases: Tensors = {}
        for group, (kernel, out) in enumerate(zip(self.kernels, self._out_bases(rank[0]), strict=True)):
            start = _in_basis(kernel, out)[:, : rank[1]]
            bases[f"out {group}"], bases[f"in {group}"] = _hooi(kernel, out, start)
        return bases


def _unfold(kernel: Tensor, axis: int) -> Tensor:
    """The kernel as a matrix: one row for each place on the axis."""
    return kernel.movedim(axis, 0).reshape(kernel.shape[axis], -1)


def _times(kernel: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The kernel with every column along the axis multiplied by the matrix."""
    others = (*kernel.shape[:axis], *kernel.shape[axis + 1 :])
    return (matrix @ _unfold(kernel, axis)).reshape(-1, *others).movedim(0, axis)


def _in_basis(kernel: Tensor, out_basis: Tensor) -> Tensor:
    """Principal input channels of what the kept outputs leave of the kernel."""
    unfolded = _unfold(_times(kernel, out_basis.mT, 0), 1)
    return principal_basis(unfolded @ unfolded.mT)


def _hooi(kernel: Tensor, out_basis: Tensor, in_basis: Tensor) -> tuple[Tensor, Tensor]:
    """Higher-order orthogonal iteration: the bases that jointly keep the most energy, to a tolerance of 1e-5.

    It starts from the sequential bases and each step keeps at least as much, so it is never worse than they are.
    """
    from tensorly import backend_context
    from tensorly.decomposition import partial_tucker

    start = [out_basis, in_basis]
    rank = [basis.shape[1] for basis in start]
    with backend_context("pytorch", local_threadsafe=True):
        (_, factors), _ = partial_tucker(
            kernel, rank=rank, modes=[0, 1], n_iter_max=100, tol=1e-5, init=(kernel, start), random_state=0
        )
    return factors[0], factors[1]
