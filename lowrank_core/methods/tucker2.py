"""Tucker-2: 1 x 1 to `in` channels, k x k to `out` channels, 1 x 1 to the outputs. Two ranks per layer.

`tucker2` is the sequentially truncated higher-order SVD: the output basis once, then the input basis of what the kept
outputs leave (Vannieuwenhoven et al., SIAM J. Sci. Comput. 2012). `tucker2_hooi` refines both bases alternately
with tensorly's `partial_tucker`: a slow reference to compare with.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from math import prod

import torch
from tensorly import unfold
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from torch import Tensor

from lowrank_core.aware import factorize_aware
from lowrank_core.layers import LayerSpec, Rank
from lowrank_core.linalg import check_finite, principal_basis, storage_dtype, tail_energy
from lowrank_core.methods import Factorization, depthwise_obstacle, factorize_transposed, kernel_text, register
from lowrank_core.steps import Steps, Tensors

KEPT_BASES = 64
"""Input bases kept of one layer, one for each rank of the outputs that was asked for; 2 MB each for 512 channels."""


@dataclass(frozen=True, slots=True)
class TuckerFactorization:
    """Both bases of each group; a rank keeps their leading columns."""

    spec: LayerSpec
    weight: Tensor
    ranks: Rank
    hooi: bool
    steps: Steps = field(default_factory=Steps, compare=False, repr=False)
    _bases: dict[Rank, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kernels(self) -> tuple[Tensor, ...]:
        """(out, in, *kernel) of each group, float64."""
        return self.weight.detach().to(torch.float64).chunk(self.spec.groups)

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The singular values of both unfoldings; of several groups the root of the sum of squares."""
        found = self.steps("bases", self._unfolded)
        return found["out"], found["in"]

    def _unfolded(self) -> Tensors:
        """Both spectra, and the output basis of each group."""
        energies = [torch.zeros(n // self.spec.groups) for n in (self.spec.out_channels, self.spec.in_channels)]
        bases = {}
        for group, kernel in enumerate(self.kernels):
            for axis in (0, 1):
                matrix = unfold(kernel, axis)
                values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
                energies[axis] = energies[axis] + values.flip(0).clamp_min(0)
                if axis == 0:
                    bases[f"basis {group}"] = vectors.flip(1)
        outputs, inputs = (e[:r].sqrt() for e, r in zip(energies, self.ranks, strict=True))
        return {"out": outputs, "in": inputs, **bases}

    def error(self, rank: Rank) -> float:
        """Bound of the higher-order SVD: the squared tails of both axes add (De Lathauwer et al., SIMAX 2000)."""
        tails = [tail_energy(spectrum) for spectrum in self.spectra]
        total = tails[0][0]
        if total == 0:
            return 0.0
        lost = sum(tail[r] for tail, r in zip(tails, rank, strict=True))
        return float((lost / total).sqrt().clamp_max(1.0))

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """(groups * r_in, in / groups, 1...), (groups * r_out, r_in, *kernel) and (out, r_out, 1...)."""
        dtype, ones = storage_dtype(self.weight), (1,) * len(self.spec.kernel)
        first, core, last = [], [], []
        for kernel, (out_basis, in_basis) in zip(self.kernels, self._bases_at(rank), strict=True):
            first.append(in_basis.mT.reshape(*in_basis.mT.shape, *ones))
            core.append(multi_mode_dot(kernel, [out_basis.mT, in_basis.mT], modes=[0, 1]))
            last.append(out_basis.reshape(*out_basis.shape, *ones))
        return tuple(torch.cat(parts).to(dtype).contiguous() for parts in (first, core, last))

    def reconstruct(self, rank: Rank) -> Tensor:
        """The core multiplied by both bases, in the shape of the weight."""
        parts = [
            multi_mode_dot(kernel, [out_basis @ out_basis.mT, in_basis @ in_basis.mT], modes=[0, 1])
            for kernel, (out_basis, in_basis) in zip(self.kernels, self._bases_at(rank), strict=True)
        ]
        return torch.cat(parts).to(storage_dtype(self.weight))

    def _bases_at(self, rank: Rank) -> tuple[tuple[Tensor, Tensor], ...]:
        """(out basis, in basis) of each group, orthonormal columns; the in basis depends on the kept outputs."""
        key = rank if self.hooi else rank[:1]
        kept = self._bases.get(key)
        if kept is None:
            found = self.steps("bases", self._unfolded)
            kept = tuple(
                self._computed(kernel, found[f"basis {group}"], rank) for group, kernel in enumerate(self.kernels)
            )
            if len(self._bases) >= KEPT_BASES:
                self._bases.clear()
            self._bases[key] = kept
        r_out, r_in = rank
        return tuple((out[:, :r_out], inner[:, :r_in]) for out, inner in kept)

    def _computed(self, kernel: Tensor, out_basis: Tensor, rank: Rank) -> tuple[Tensor, Tensor]:
        out = out_basis[:, : rank[0]]
        inner = _in_basis(kernel, out)
        return _hooi(kernel, out, inner[:, : rank[1]]) if self.hooi else (out, inner)


def _in_basis(kernel: Tensor, out_basis: Tensor) -> Tensor:
    """Principal input channels of what the kept outputs leave of the kernel."""
    unfolded = unfold(multi_mode_dot(kernel, [out_basis.mT], modes=[0]), 1)
    return principal_basis(unfolded @ unfolded.mT)


def _hooi(kernel: Tensor, out_basis: Tensor, in_basis: Tensor) -> tuple[Tensor, Tensor]:
    """Higher-order orthogonal iteration: the bases that jointly keep the most energy, to a tolerance of 1e-5.

    It starts from the sequential bases and each step keeps at least as much, so it is never worse than they are.
    """
    start = [out_basis, in_basis]
    rank = [basis.shape[1] for basis in start]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where one rank is more than the other leaves, tensorly says how it fills up
        (_, factors), _ = partial_tucker(
            kernel, rank=rank, modes=[0, 1], n_iter_max=100, tol=1e-5, init=(kernel, start), random_state=0
        )
    return factors[0], factors[1]


@dataclass(frozen=True, slots=True)
class Tucker2:
    """Tucker-2 convolution (Kim et al., arXiv 1511.06530)."""

    name: str = "tucker2"
    label: str = "Tucker-2"
    axes: tuple[str, ...] = ("out", "in")
    nested: bool = True
    reference: bool = False
    data_aware: bool = False

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Convolutions with a window; a matrix has one rank, not two."""
        if prod(spec.kernel) == 1:
            shape = f"kernel {kernel_text(spec)}" if spec.kernel else "Linear"
            return f"{shape}: a matrix has one rank, so svd does the same with one factor less"
        return depthwise_obstacle(spec)

    def max_rank(self, spec: LayerSpec) -> Rank:
        """(out, in) per group, never more than the other axes can span."""
        outputs, inputs, window = spec.out_channels // spec.groups, spec.in_channels // spec.groups, prod(spec.kernel)
        return min(outputs, inputs * window), min(inputs, outputs * window)

    def stages(self, spec: LayerSpec, rank: Rank) -> tuple[LayerSpec, ...]:
        """in -> (1 x 1) -> r_in -> (k x k) -> r_out -> (1 x 1) -> out"""
        r_out, r_in = (spec.groups * r for r in rank)
        return (
            spec.pointwise(spec.in_channels, r_in),
            replace(spec, in_channels=r_in, out_channels=r_out, bias=False),
            spec.pointwise(r_out, spec.out_channels, bias=spec.bias),
        )

    def factorize(self, spec: LayerSpec, weight: Tensor, second_moment: Tensor | None = None) -> Factorization:
        """Both unfoldings, in float64, when they are first needed."""
        if spec.transposed:
            return factorize_transposed(self, spec, weight, second_moment)

        def to_stages(first: Tensor, core: Tensor, basis: Tensor) -> tuple[Tensor, ...]:
            ones, r_in = (1,) * len(spec.kernel), first.shape[1]
            return (
                first.reshape(-1, spec.in_channels // spec.groups, *ones),
                core.reshape(-1, r_in, *spec.kernel),
                basis.reshape(spec.out_channels, -1, *ones),
            )

        if self.data_aware and second_moment is not None:
            return factorize_aware(spec, weight, second_moment, prod(spec.kernel), self.max_rank(spec), to_stages)
        check_finite(weight)
        return TuckerFactorization(spec, weight, self.max_rank(spec), hooi=not self.nested)


register(Tucker2())
register(Tucker2("tucker2_aware", "Tucker-2, data-aware", data_aware=True))
register(Tucker2("tucker2_hooi", "Tucker-2 (HOOI)", nested=False, reference=True))
