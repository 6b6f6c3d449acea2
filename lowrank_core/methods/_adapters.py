"""Transposed convolutions and stacked gates as the plain kernels that the methods know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from lowrank_core.algebra.aware import SecondMoment
from lowrank_core.layers.spec import LayerSpec, Rank, inputs_first
from lowrank_core.methods import Factorization, Method
from lowrank_core.store.memo import Memo


@dataclass(frozen=True, slots=True)
class Transposed:
    """Factors of a transposed convolution: those of the convolution with the same taps, stored with inputs first."""

    stages: Callable[[LayerSpec, Rank], tuple[LayerSpec, ...]]
    spec: LayerSpec
    convolution: Factorization

    @property
    def memo(self) -> Memo | None:
        """The convolution's results that are kept, where it has such."""
        return getattr(self.convolution, "memo", None)

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The spectra of the convolution with the same taps."""
        return self.convolution.spectra

    def error(self, rank: Rank) -> float:
        """The relative error of the convolution's factors at that rank."""
        return self.convolution.error(rank)

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """One contiguous weight per stage of the chain at that rank."""
        stages = self.stages(self.spec, rank)
        return tuple(
            inputs_first(weight, stage.groups).contiguous() if stage.transposed else weight
            for stage, weight in zip(stages, self.convolution.weights(rank), strict=True)
        )

    def reconstruct(self, rank: Rank) -> Tensor:
        """The weight that the chain stands for, in the shape of the original."""
        return inputs_first(self.convolution.reconstruct(rank), self.spec.groups).contiguous()


def factorize_transposed(
    method: Method, spec: LayerSpec, weight: Tensor, second_moment: SecondMoment | None = None
) -> Factorization:
    """A transposed convolution is a convolution of its inputs with zeros put between them; so are its factors."""
    taps = inputs_first(weight.detach(), spec.groups)
    return Transposed(method.stages, spec, method.factorize(outputs_first(spec), taps, second_moment))


def outputs_first(spec: LayerSpec) -> LayerSpec:
    """The layer with the same taps or numbers that stores them with outputs first."""
    return replace(spec, transposed=False, output_padding=())


@dataclass(frozen=True, slots=True)
class GateStacked:
    """Factors of a weight (gates * hidden, in): those of the kernel (hidden, in, gates), whose window are the gates.

    The channels between two factors that differ from gate to gate are in the order (channel, gate), so that those of a
    smaller rank come first.
    """

    spec: LayerSpec
    kernel: Factorization

    @property
    def memo(self) -> Memo | None:
        """The kernel's results that are kept, where it has such."""
        return getattr(self.kernel, "memo", None)

    @property
    def spectra(self) -> tuple[Tensor, ...]:
        """The spectra of the kernel (hidden, in, gates)."""
        return self.kernel.spectra

    def error(self, rank: Rank) -> float:
        """The relative error of the kernel's factors at that rank."""
        return self.kernel.error(rank)

    def weights(self, rank: Rank) -> tuple[Tensor, ...]:
        """(r_in, in), the middle one (r_out * gates, r_in or 1) and (hidden, r_out), contiguous."""
        first, middle, last = self.kernel.weights(rank)
        return first[..., 0].contiguous(), middle.mT.flatten(0, 1).contiguous(), last[..., 0].contiguous()

    def reconstruct(self, rank: Rank) -> Tensor:
        """The weight that the chain stands for, in the shape of the original."""
        return self.kernel.reconstruct(rank).movedim(2, 0).flatten(0, 1).contiguous()


def stacked_gates(spec: LayerSpec) -> LayerSpec:
    """A gate-stacked weight as the convolution whose window are the gates."""
    one = (1,)
    return replace(
        spec,
        out_channels=spec.out_channels // spec.gates,
        kernel=(spec.gates,),
        stride=one,
        padding=(0,),
        dilation=one,
        gates=0,
    )


def gate_kernel(spec: LayerSpec, weight: Tensor) -> Tensor:
    """(gates * hidden, in) -> (hidden, in, gates), a view of the weight"""
    return weight.detach().reshape(spec.gates, -1, spec.in_channels).movedim(0, 2)


def gate_obstacle(spec: LayerSpec) -> str | None:
    """Only weights that stack several gates have a third axis."""
    if spec.gates == 1:
        return "one gate: a matrix has one rank, so svd does the same with one factor less"
    return None if spec.gates else "no gates are stacked in it: only weights of LSTM and GRU have them as a third axis"


def depthwise_obstacle(spec: LayerSpec) -> str | None:
    """Depthwise layers have no channels to share; only a large window can be split."""
    if spec.kernel and spec.groups > 1 and spec.in_channels // spec.groups == 1:
        return f"depthwise {kernel_text(spec)}: each filter sees one channel, so there is no channel rank to cut"
    return None


def kernel_text(spec: LayerSpec) -> str:
    """A kernel's extents as people write them: '3x5' for (3, 5)."""
    return "x".join(map(str, spec.kernel))
