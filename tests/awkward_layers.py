"""Layers that show mistakes: nothing square, nothing symmetric, one peculiarity each."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_core.layers.spec import LayerSpec, Size
from lowrank_core.methods import METHODS, Method
from lowrank_core.networks.profile import Layer


def conv(inputs: int, outputs: int, kernel: Size, **options: object) -> LayerSpec:
    """A convolution with stride 1, no padding and no dilation where `options` do not say otherwise."""
    ones = (1,) * len(kernel)
    return LayerSpec(
        inputs,
        outputs,
        **{"kernel": kernel, "stride": ones, "padding": (0,) * len(kernel), "dilation": ones, **options},
    )


def up(inputs: int, outputs: int, kernel: Size, **options: object) -> LayerSpec:
    """A transposed convolution, in the same way."""
    return conv(inputs, outputs, kernel, **{"transposed": True, "output_padding": (0,) * len(kernel), **options})


@dataclass(frozen=True)
class Awkward:
    """A layer with the extent of one sample of its input."""

    name: str
    spec: LayerSpec
    size: Size

    def __str__(self) -> str:
        return self.name

    @property
    def layer(self) -> Layer:
        """The layer as `discover` would list it, called once, in float64."""
        return Layer(self.name, self.spec.op, self.spec, (self.size,), 8)

    def inputs(self, batch: int, **factory: object) -> Tensor:
        """(batch, channels, *size) or (batch, *tokens, features)."""
        channels = self.spec.in_channels
        shape = (batch, channels, *self.size) if self.spec.kernel else (batch, *self.size, channels)
        return seeded(shape, **factory)


def seeded(shape: tuple[int, ...], seed: int = 0, **factory: object) -> Tensor:
    """Normal numbers in float64 that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(**factory)


def filled(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """The module with seeded parameters, scaled so that outputs stay near one; in eval mode."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            scale = max(1, parameter[0].numel()) ** -0.5
            parameter.copy_(seeded(tuple(parameter.shape), seed + number) * scale)
    return module.eval()


AWKWARD = (
    Awkward("3x5", conv(6, 8, (3, 5), padding=(1, 2)), (7, 9)),
    Awkward("stride-2x1", conv(5, 7, (3, 3), stride=(2, 1), padding=(1, 1)), (8, 9)),
    Awkward("stride-1x2-no-padding", conv(7, 5, (5, 3), stride=(1, 2)), (9, 8)),
    Awkward("dilated-1x2", conv(4, 6, (3, 3), padding=(1, 2), dilation=(1, 2)), (7, 10)),
    Awkward("groups-2", conv(8, 6, (3, 5), padding=(0, 2), groups=2), (6, 7)),
    Awkward("no-bias", conv(4, 5, (5, 3), bias=False), (8, 6)),
    Awkward("reflect", conv(4, 6, (3, 5), padding=(1, 2), padding_mode="reflect"), (6, 8)),
    Awkward("circular-strided", conv(4, 6, (3, 3), stride=(1, 2), padding=(2, 1), padding_mode="circular"), (5, 8)),
    Awkward("same", conv(5, 4, (3, 5), padding="same"), (6, 7)),
    Awkward("same-even-dilated", conv(4, 6, (2, 4), padding="same", dilation=(1, 2)), (7, 9)),
    Awkward("same-replicate", conv(4, 6, (3, 5), padding="same", padding_mode="replicate"), (6, 7)),
    Awkward("wide", conv(2, 20, (3, 3), padding=(1, 0)), (5, 6)),
    Awkward("narrow", conv(20, 2, (3, 3), padding=(0, 1)), (5, 6)),
    Awkward("1x1-strided", conv(6, 9, (1, 1), stride=(2, 3)), (7, 8)),
    Awkward("1x5", conv(4, 6, (1, 5), padding=(0, 2)), (5, 7)),
    Awkward("16-in-groups-2", conv(16, 6, (2, 3), padding=(0, 1), stride=(2, 1), groups=2), (4, 5)),
    Awkward("64-in-groups-2", conv(64, 8, (2,), groups=2), (4,)),
    Awkward("depthwise-3x3", conv(6, 6, (3, 3), padding=(1, 1), groups=6), (5, 6)),
    Awkward("depthwise-5x7", conv(6, 12, (5, 7), stride=(2, 1), padding=(2, 3), groups=6), (9, 8)),
    Awkward("conv1d", conv(6, 8, (5,), stride=(2,), padding=(2,)), (11,)),
    Awkward("conv1d-groups", conv(6, 9, (3,), padding=(2,), dilation=(2,), groups=3), (10,)),
    Awkward("conv3d", conv(3, 4, (2, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0)), (3, 5, 4)),
    Awkward("up-3x2", up(6, 5, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0)), (4, 5)),
    Awkward("up-groups-2", up(6, 8, (2, 3), stride=(2, 2), groups=2, bias=False), (3, 4)),
    Awkward("up-dilated", up(5, 4, (3, 3), stride=(1, 3), dilation=(2, 1), output_padding=(1, 2)), (4, 3)),
    Awkward("up-cropped", up(4, 3, (2, 3), stride=(1, 2), padding=(2, 1)), (6, 5)),
    Awkward("up-1x1", up(6, 4, (1, 1), stride=(2, 1)), (4, 5)),
    Awkward("up1d", up(4, 9, (5,), stride=(3,), padding=(2,), output_padding=(2,)), (6,)),
    Awkward("up3d", up(4, 3, (2, 1, 3), stride=(2, 1, 1), padding=(0, 0, 1), bias=False), (2, 4, 3)),
    Awkward("linear", LayerSpec(12, 7), ()),
    Awkward("linear-square", LayerSpec(8, 8, bias=False), ()),
    Awkward("linear-tokens", LayerSpec(7, 12), (5,)),
    Awkward("linear-one-out", LayerSpec(9, 1), ()),
    Awkward("lstm-input", LayerSpec(5, 28, gates=4), (6,)),
    Awkward("lstm-projected", LayerSpec(3, 28, bias=False, gates=4), ()),
    Awkward("gru-hidden", LayerSpec(7, 21, gates=3), ()),
    Awkward("gru-few-inputs", LayerSpec(2, 15, gates=3), (4,)),
    Awkward("rnn-hidden", LayerSpec(6, 6, gates=1), ()),
)

FORMS = (
    *("3x5", "groups-2", "wide", "narrow", "1x1-strided", "1x5", "16-in-groups-2", "64-in-groups-2", "depthwise-5x7"),
    *("conv1d", "conv1d-groups", "conv3d", "up-3x2", "up-groups-2", "up-1x1", "up1d", "up3d"),
    *("linear", "linear-one-out", "lstm-input", "gru-few-inputs"),
)
"""Layers whose weights differ in form: of those that differ in stride, padding, dilation and bias alone, one."""

Pair = tuple[Method, Awkward]


def unlike(pairs: list[Pair]) -> list[Pair]:
    """Of methods that make the same chains of a layer, the first."""
    found: dict[object, Pair] = {}
    for method, awkward in pairs:
        top = method.max_rank(awkward.spec)
        ranks = {tuple(1 for _ in top), tuple(n // 2 + 1 for n in top), top}
        chains = frozenset((rank, method.stages(awkward.spec, rank)) for rank in ranks)
        found.setdefault((awkward, chains), (method, awkward))
    return list(found.values())


def longest(awkward: Awkward) -> Method:
    """Of the methods that fit and do not iterate, the one that makes the longest chain."""
    fitting = [method for method in METHODS.values() if method.nested and method.obstacle(awkward.spec) is None]
    return max(fitting, key=lambda m: len(m.stages(awkward.spec, tuple(1 for _ in m.axes))))


PAIRS: list[Pair] = [(m, a) for m in METHODS.values() for a in AWKWARD if m.obstacle(a.spec) is None]
"""Every method with every layer that it fits."""
BY_FORM = [(method, awkward) for method, awkward in PAIRS if awkward.name in FORMS]
"""For what looks at the weight alone."""
BY_CHAIN = unlike(PAIRS)
"""For what looks at the stages alone."""
EACH_ONCE = [(longest(a), a) for a in dict.fromkeys(awkward for _, awkward in PAIRS)]
EACH_ONCE += [next(p for p in PAIRS if p[0] is m) for m in METHODS.values() if not any(p[0] is m for p in EACH_ONCE)]
"""For what takes any chain as it comes: every layer with the longest one, and every method."""
