"""LayerSpec: one linear map as data. Its shapes, its cost and the module it stands for all follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor, prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank_core.layers.parts import (
    MAPS,
    GroupedLinear,
    IdentityColumns,
    IdentityRows,
    SharedLinear,
    TransposedLinear,
)

Size = tuple[int, ...]
"""Spatial extent of a convolution's input, or the token axes in front of a Linear's features; () for one vector."""

Rank = tuple[int, ...]
"""One integer per axis of a method: (rank,) or (out, in)."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A Linear (`kernel == ()`), a convolution or a table that is looked up, without its weights.

    table: an Embedding, a Linear of one-hot inputs: in_channels rows of out_channels numbers, no multiplication.
    bag: "sum" or "mean" for a table whose rows are put together as they are looked up, an EmbeddingBag.
    transposed: a ConvTranspose, whose weight is stored with its inputs first, or a Linear stored so, without a bias.
    gates: of a recurrent layer's weight, how many equal parts of its outputs are gates; 0 of all others.
    copies: the weight of one of so many equal parts of inputs and outputs, the same for all (see `SharedLinear`).
    identity: "rows" or "columns" of the identity are among those of the weight of a Linear or of a convolution with a
    window of one, which are not stored (see `IdentityRows`).

    >>> conv = LayerSpec(3, 16, kernel=(3, 3), stride=(2, 1), padding=(1, 1), dilation=(1, 1))
    >>> conv.weight_shape, conv.out_size((32, 32))
    ((16, 3, 3, 3), (16, 32))
    """

    in_channels: int
    out_channels: int
    kernel: Size = ()
    stride: Size = ()
    padding: Size | str = ()
    dilation: Size = ()
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"
    table: bool = False
    padding_idx: int | None = None
    transposed: bool = False
    output_padding: Size = ()
    bag: str = ""
    include_last_offset: bool = False
    gates: int = 0
    copies: int = 1
    identity: Literal["", "rows", "columns"] = ""

    @classmethod
    def of(cls, module: nn.Module) -> LayerSpec:
        """The spec of one of the layers that a chain is made of."""
        if isinstance(module, nn.EmbeddingBag):
            return cls(
                in_channels=module.num_embeddings,
                out_channels=module.embedding_dim,
                bias=False,
                table=True,
                padding_idx=module.padding_idx,
                bag=module.mode,
                include_last_offset=module.include_last_offset,
            )
        if isinstance(module, TransposedLinear):
            return cls(module.in_features, module.out_features, bias=False, transposed=True)
        if isinstance(module, nn.Embedding):
            rows, columns = module.num_embeddings, module.embedding_dim
            return cls(rows, columns, bias=False, table=True, padding_idx=module.padding_idx)
        if isinstance(module, IdentityRows | IdentityColumns):
            ones, (inputs, outputs) = (1,) * module.axes, module.ends
            turned = isinstance(module, IdentityColumns) and module.turned
            return cls(
                inputs,
                outputs,
                kernel=ones,
                stride=ones,
                padding=(0,) * len(ones),
                dilation=ones,
                groups=module.groups,
                bias=getattr(module, "bias", None) is not None,
                transposed=turned,
                identity="rows" if isinstance(module, IdentityRows) else "columns",
            )
        if isinstance(module, nn.Linear | GroupedLinear | SharedLinear):
            groups, copies = getattr(module, "groups", 1), getattr(module, "copies", 1)
            biased = module.bias is not None
            return cls(module.in_features, module.out_features, groups=groups, bias=biased, copies=copies)
        if isinstance(module, nn.modules.conv._ConvNd):
            padding, transposed = module.padding, isinstance(module, nn.modules.conv._ConvTransposeNd)
            if padding == "valid":
                padding = (0,) * len(module.kernel_size)
            return cls(
                in_channels=module.in_channels,
                out_channels=module.out_channels,
                kernel=tuple(module.kernel_size),
                stride=tuple(module.stride),
                padding=padding if isinstance(padding, str) else tuple(padding),
                dilation=tuple(module.dilation),
                groups=module.groups,
                bias=module.bias is not None,
                padding_mode=module.padding_mode,
                transposed=transposed,
                output_padding=tuple(module.output_padding) if transposed else (),
            )
        raise TypeError(f"a LayerSpec describes Linear, convolutions and Embedding, but got {type(module).__name__}")

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in) of a Linear, (out, in / groups, *kernel) of a convolution, (in, out) of a table.

        (in, out / groups, *kernel) of what is transposed, (out / copies, in / copies) of a shared weight; without the
        rows or columns of the identity.
        """
        if self.identity:
            inputs, outputs = self.in_channels, self.out_channels
            rows, columns = (outputs - inputs, inputs) if self.identity == "rows" else (outputs, inputs - outputs)
            return (columns, rows) if self.transposed else (rows, columns // self.groups, *self.kernel)
        if self.table:
            return (self.in_channels, self.out_channels)
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel)
        return (self.out_channels // self.copies, self.in_channels // self.groups // self.copies, *self.kernel)

    @property
    def fan_in(self) -> int:
        """Inputs that one output sees: in / groups * window, of a shared weight in / copies."""
        return self.in_channels // self.groups // self.copies * prod(self.kernel)

    @property
    def weights(self) -> int:
        """Number of elements of the weight, without the bias."""
        return prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """Number of elements of weight and bias together."""
        return self.weights + (self.out_channels if self.bias else 0)

    def out_size(self, size: Size) -> Size:
        """Extent of the output for an input of extent `size` (PyTorch's formula; a Linear keeps its tokens)."""
        if not self.kernel:
            return size
        if isinstance(self.padding, str):
            return size
        if self.transposed:
            window = zip(self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True)
            return tuple(
                (n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, (k, s, p, d, o) in zip(size, window, strict=True)
            )
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def multiplies(self, size: Size) -> int:
        """Multiplications for one sample of extent `size`: every weight once per output position and copy.

        Of a transposed convolution once per input position, of a table none.

        >>> LayerSpec(4, 3).multiplies(())
        12
        """
        if self.table:
            return 0
        return self.weights * self.copies * prod(size if self.transposed else self.out_size(size))

    def additions(self, size: Size) -> int:
        """Additions for one sample: fan-in - 1 per output element, and one more where there is a bias.

        >>> LayerSpec(4, 3, bias=False).additions(())
        9
        """
        if self.table:
            return 0
        if self.identity:  # of rows each product has a sum of one less; of columns an input is added
            less = self.out_channels - self.in_channels if self.identity == "rows" else 0
            return (self.weights - less + self.bias * self.out_channels) * prod(size)
        return max(0, self.multiplies(size) - (1 - self.bias) * self.out_channels * prod(self.out_size(size)))

    @property
    def op(self) -> str:
        """Name of the `torch.nn` class, or of one in `linears`."""
        if self.table:
            return "EmbeddingBag" if self.bag else "Embedding"
        if self.identity:
            return f"Identity{self.identity.title()}"
        if not self.kernel:
            if self.transposed:
                return "TransposedLinear"
            return "SharedLinear" if self.copies > 1 else "GroupedLinear" if self.groups > 1 else "Linear"
        return f"Conv{'Transpose' if self.transposed else ''}{len(self.kernel)}d"

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of that class, plain enough for JSON."""
        if self.table:
            sizes = {"num_embeddings": self.in_channels, "embedding_dim": self.out_channels}
            bag = {"mode": self.bag, "include_last_offset": self.include_last_offset} if self.bag else {}
            return {**sizes, "padding_idx": self.padding_idx, **bag}
        if self.identity:
            axes = {"axes": len(self.kernel), "groups": self.groups}
            own = {"bias": self.bias} if self.identity == "rows" else {"turned": self.transposed}
            return {"in_channels": self.in_channels, "out_channels": self.out_channels, **axes, **own}
        if not self.kernel and self.transposed:
            return {"in_features": self.in_channels, "out_features": self.out_channels}
        if not self.kernel:
            parts = {name: n for name, n in (("groups", self.groups), ("copies", self.copies)) if n > 1}
            return {"in_features": self.in_channels, "out_features": self.out_channels, **parts, "bias": self.bias}
        extra = {"output_padding": list(self.output_padding)} if self.transposed else {}
        return extra | {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel),
            "stride": list(self.stride),
            "padding": self.padding if isinstance(self.padding, str) else list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": self.bias,
            "padding_mode": self.padding_mode,
        }

    def build(self, **factory: Any) -> nn.Module:
        """The module, freshly initialised; `factory` may give `device` and `dtype`."""
        return build_part(self.op, self.arguments, **factory)

    def pointwise(self, in_channels: int, out_channels: int, *, bias: bool = False) -> LayerSpec:
        """A 1x1 layer of the same dimensionality and groups, stride 1 and no padding."""
        ones = (1,) * len(self.kernel)
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=ones,
            stride=ones,
            padding=(0,) * len(ones),
            dilation=ones,
            bias=bias,
            padding_mode="zeros",
            table=False,
            padding_idx=None,
            transposed=False,
            output_padding=(),
            bag="",
            include_last_offset=False,
            gates=0,
        )

    def along(self, axis: int, in_channels: int, out_channels: int, *, bias: bool = False) -> LayerSpec:
        """The layer's window on one axis alone: k x 1 for axis 0 of a k x k kernel, with its stride and padding."""

        def only(values: Size, other: int) -> Size:
            return tuple(v if i == axis else other for i, v in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else only(self.padding, 0)
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=only(self.kernel, 1),
            stride=only(self.stride, 1),
            padding=padding,
            dilation=only(self.dilation, 1),
            bias=bias,
            output_padding=only(self.output_padding, 0),
        )


def inputs_first(weight: Tensor, groups: int) -> Tensor:
    """The weight of a convolution as its transposed kind stores it, and back: (g * a, b, ...) -> (g * b, a, ...)."""
    blocks = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return blocks.reshape(-1, *blocks.shape[2:])


def build_part(op: str, arguments: dict[str, Any], **factory: Any) -> nn.Module:
    """One layer from its name and keyword arguments; only the kinds a chain is made of are known."""
    if op not in MAPS:
        raise ValueError(f"op must be one of {', '.join(MAPS)}, but got {op!r}")
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if op.startswith("Embedding") and factory.get("device") == "meta":  # random ones there load PyTorch's compiler
        kwargs["_weight"] = torch.empty(arguments["num_embeddings"], arguments["embedding_dim"], **factory)
    return MAPS[op](**kwargs, **factory)


def sharing(stages: tuple[LayerSpec, ...], spec: LayerSpec) -> tuple[LayerSpec, ...]:
    """The chain of a layer `spec` that shares the weight of the one `stages` stand for, and so all its factors.

    A Linear that shares the table of an embedding has them in reverse order, each the other way round.

    >>> table = LayerSpec(1000, 64, bias=False, table=True), LayerSpec(64, 64, bias=False)
    >>> [stage.op for stage in sharing(table, LayerSpec(64, 1000))]
    ['TransposedLinear', 'Linear']
    """
    if stages[0].table and not spec.table:
        *others, last = turned_round(stages)
        return (*others, replace(last, bias=spec.bias))
    first = replace(stages[0], padding_idx=spec.padding_idx) if spec.table else stages[0]
    return (
        (replace(first, bias=spec.bias),)
        if len(stages) == 1
        else (first, *stages[1:-1], replace(stages[-1], bias=spec.bias))
    )


def turned_round(stages: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The chain of the transpose: the same factors in reverse order, each the other way round. Of Linear layers, and of
    tables, which are multiplied by.

    >>> [stage.op for stage in turned_round((LayerSpec(64, 8, bias=False), LayerSpec(8, 32, bias=False)))]
    ['TransposedLinear', 'TransposedLinear']
    """
    other: dict[str, Literal["", "rows", "columns"]] = {"": "", "rows": "columns", "columns": "rows"}
    return tuple(
        LayerSpec(
            stage.out_channels,
            stage.in_channels,
            bias=False,
            transposed=not (stage.table or stage.transposed),
            identity=other[stage.identity],
        )
        for stage in stages[::-1]
    )


def multiplied_by(stages: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The chain of a table as a matrix that is multiplied by: of its rows a weighted sum, not one.

    >>> multiplied_by((LayerSpec(1000, 8, bias=False, table=True), LayerSpec(8, 64, bias=False)))[0].op
    'TransposedLinear'
    """
    table, *others = stages
    return (LayerSpec(table.in_channels, table.out_channels, bias=False, transposed=True), *others)


def free_form(stages: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The chain B ... A with free ranks: rows of the identity in B, and in a chain of three columns of it in A.

    A chain of factors has r^2 numbers more at each inner joint of rank r than the map it stands for: (B G)(G^-1 A) is
    the same for every invertible G. Choose G so that r rows of B G are those of the identity, and they need be neither
    stored nor multiplied with; where B has a window, as that of a transposed convolution, r columns of A. Exact.

    Of chains whose outer factors see single positions. The gauge: https://arxiv.org/abs/2512.13494.

    >>> free = free_form((LayerSpec(768, 100, bias=False), LayerSpec(100, 768)))
    >>> [stage.op for stage in free], sum(stage.weights for stage in free)  # 100 * (768 + 768 - 100)
    (['Linear', 'IdentityRows'], 143600)
    """
    first, *middle, last = stages
    rows = prod(last.kernel) == 1 and not last.transposed
    columns = bool(middle) or not rows
    return (
        replace(first, identity="columns") if columns else first,
        *middle,
        replace(last, identity="rows") if rows else last,
    )


def half_up(number: Fraction | int) -> int:
    """The whole number next to it, of two as near the larger one: the rule for multiplies, here and on the board.

    >>> half_up(Fraction(5, 2)), half_up(Fraction(7, 3)), half_up(4)
    (3, 2, 4)
    """
    return floor(number + Fraction(1, 2))


def chain_multiplies(stages: tuple[LayerSpec, ...], size: Size) -> int:
    """Multiplications of a chain for one sample: each stage sees the size the one before it leaves."""
    total = 0
    for stage in stages:
        total += stage.multiplies(size)
        size = stage.out_size(size)
    return total


def chain_additions(stages: tuple[LayerSpec, ...], size: Size) -> int:
    """Additions that a chain of layers makes for one sample."""
    total = 0
    for stage in stages:
        total += stage.additions(size)
        size = stage.out_size(size)
    return total
