"""Steps in whole numbers: activations and weights of eight bits, sums of thirty-two, as a microcontroller adds them.

An activation is (q - zero) * scale with one scale per value, a weight q * scale with one per output channel (Jacob et
al. 2018, https://arxiv.org/abs/1712.05877). Scales go into one integer multiplier and a shift each, so that PyTorch's
integers and those of any C compiler give the same bits. Functions of one number are tables of 256 results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import frexp, inf, isinf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.steps import COMPUTED, Step, Steps, convolved, pooled, spread, unary, values_of
from lowrank_core.layers.data import BatchAxes, Inputs, tensors

LEAST, MOST = -128, 127
_BATCH = 32
_SAME = {"copy", "gather"}
"""Steps whose results lie on the scale of their operand; of the largest of a window, too."""

_LAST = {"softmax", "log_softmax"}
"""Steps that may follow in floating point, where nothing of weights comes after them."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What the whole numbers of a value stand for: (q - zero) * scale."""

    scale: float
    zero: int

    def whole(self, value: float) -> int:
        """The number that stands for this one, as near as there is one."""
        if isinf(value):
            return MOST if value > 0 else LEAST
        return max(LEAST, min(MOST, self.zero + round(value / self.scale)))


def scale_for(low: float, high: float) -> Scale:
    """The scale on which a range has the most numbers, zero among them.

    >>> scale_for(0.0, 2.55)
    Scale(scale=0.009999999776482582, zero=-128)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor(max((high - low) / (MOST - LEAST), 1e-12), dtype=torch.float32).item()
    return Scale(scale, max(LEAST, min(MOST, round(LEAST - low / scale))))


def multiplier(ratio: float) -> tuple[int, int]:
    """(m, s) with m / 2^s nearest to a ratio, m of 31 bits.

    >>> multiplier(0.5)
    (1073741824, 31)
    """
    if ratio <= 0:
        return 0, 1
    part, power = frexp(ratio)
    whole, shift = round(part * 2**31), 31 - power
    if whole == 2**31:
        whole, shift = whole // 2, shift - 1
    if shift < 1:
        raise InvalidModel("a scale of its int8 form is out of all proportion to the next; float32 holds it.")
    return (0, 1) if shift > 62 else (whole, shift)


def ranges_of(steps: Steps, samples: Inputs, axes: BatchAxes) -> dict[str, tuple[float, float]]:
    """The least and the largest number of each value over the calibration samples."""
    found: dict[str, tuple[float, float]] = {}
    every = tensors(samples)
    count = axes.samples(samples)
    for first in range(0, count, _BATCH):
        part = [
            x.narrow(port.axis, first, min(_BATCH, count - first)) for x, port in zip(every, steps.inputs, strict=True)
        ]
        for name, value in together(steps, part).items():
            if value.is_floating_point() and name not in steps.constants:
                low, high = found.get(name, (inf, -inf))
                found[name] = min(low, float(value.min())), max(high, float(value.max()))
    return found


def together(steps: Steps, inputs: list[Tensor], *, only_outputs: bool = False) -> dict[str, Tensor]:
    """Every value of several samples at once, (samples, numbers) each."""
    names = (
        list({port.value: None for port in steps.outputs})
        if only_outputs
        else list(dict.fromkeys([*(port.value for port in steps.inputs), *(step.output for step in steps.steps)]))
    )

    def one(*given: Tensor) -> tuple[Tensor, ...]:
        values = values_of(steps, list(given))
        return tuple(values[name] for name in names)

    moved = [x.movedim(port.axis, 0) for x, port in zip(inputs, steps.inputs, strict=True)]
    with torch.no_grad():
        found = torch.vmap(one)(*moved)
    return dict(zip(names, found, strict=True))


def integers(steps: Steps, ranges: Mapping[str, tuple[float, float]]) -> Steps:
    """The same steps in whole numbers; ranges: of all values.

    Raises InvalidModel with the layer that has no form in whole numbers.
    """
    return _Quantising(steps, ranges).done()


def _alike_through_time(steps: Steps, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Ranges with one for what a recurrent layer computes at every step: its tables and scales are then kept once.

    Alike is what the same operator of a layer makes, with the same constants, of what was made alike.
    """
    made = {step.output: step for step in steps.steps}

    def told(step: Step) -> tuple[Any, ...]:
        args = sorted((name, str(value)) for name, value in step.args.items() if name != "offset")
        return step.layer, step.op, tuple(args), tuple(name for name in step.inputs if name in steps.constants)

    alike: dict[tuple[Any, ...], list[str]] = {}
    for step in steps.steps:
        sources = tuple(told(made[name]) if name in made else name for name in step.inputs)
        alike.setdefault((told(step), sources), []).append(step.output)
    found = dict(ranges)
    for names in alike.values():
        known = [ranges[name] for name in names if name in ranges]
        if len(known) > 1:
            both = min(low for low, _ in known), max(high for _, high in known)
            found |= dict.fromkeys((name for name in names if name in ranges), both)
    return found


class _Quantising:
    def __init__(self, steps: Steps, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._steps, self._ranges = steps, _alike_through_time(steps, ranges)
        self._scales: dict[str, Scale] = {}
        self._made: list[Step] = []
        self._sizes, self._constants = dict(steps.sizes), dict[str, Tensor]()
        self._floats = {port.value for port in steps.inputs if not port.integer}
        self._index = {port.value for port in steps.inputs if port.integer}
        self._kept = dict[tuple[torch.dtype, bytes], str]()

    def done(self) -> Steps:
        for step in self._steps.steps:
            if step.op in _LAST:
                source = self._in_float(step.inputs[0])
                self._made.append(replace(step, inputs=(source,)))
                self._floats.add(step.output)
            elif step.op in ("clamp", "unary") and step.inputs[0] in self._floats - self._ports():
                self._made.append(step)
                self._floats.add(step.output)
            elif step.op in _SAME and step.inputs[0] in (self._floats - self._ports()) | self._index:
                self._made.append(self._with_index(step))
                (self._index if step.inputs[0] in self._index else self._floats).add(step.output)
            else:
                self._whole(step)
        outputs = tuple(replace(port, value=self._in_float(port.value)) for port in self._steps.outputs)
        needed = {port.value for port in outputs}
        kept = list[Step]()
        for step in reversed(self._made):
            if step.output in needed:
                kept.append(step)
                needed |= set(step.inputs)
        constants = {name: value for name, value in self._constants.items() if name in needed}
        return replace(
            self._steps, steps=tuple(reversed(kept)), outputs=outputs, sizes=self._sizes, constants=constants
        )

    # ---- values ------------------------------------------------------------------------------------------------------

    def _ports(self) -> set[str]:
        return {port.value for port in self._steps.inputs}

    def _constant(self, name: str, value: Tensor) -> str:
        """A constant under that name, or the one that has the same numbers already."""
        key = (value.dtype, value.numpy().tobytes())
        name = self._kept.setdefault(key, name)
        self._constants[name] = value
        return name

    def _with_index(self, step: Step) -> Step:
        for name in step.inputs[1:]:
            self._constants[name] = self._steps.constants[name]
        return step

    def _in_float(self, name: str) -> str:
        """The value as floating point."""
        if name in self._floats:
            return name
        if name in self._steps.constants and name not in self._scales:
            self._constants[name] = self._steps.constants[name]
            return name
        made = f"{name}_f"
        if made not in self._floats:
            scale, size = self._scales[name], self._sizes[name]
            self._sizes[made] = size
            self._made.append(Step("dequantise", (name,), made, {"n": size, "by": scale.scale, "zero": scale.zero}))
            self._floats.add(made)
        return made

    def _q(self, step: Step, name: str) -> str:
        """The value as whole numbers."""
        if name in self._scales:
            return name
        made = f"{name}_q"
        if made in self._scales:
            return made
        if name in self._steps.constants:
            value = self._steps.constants[name]
            scale = scale_for(float(value.min()), float(value.max()))
            self._constants[made] = rounded(value, scale).to(torch.int8)
            self._sizes[made] = len(value)
        elif name in self._ports():
            scale = scale_for(*self._ranges[name])
            self._sizes[made] = size = self._sizes[name]
            by = float((1 / torch.tensor(scale.scale, dtype=torch.float64)).float())
            self._made.append(Step("quantise", (name,), made, {"n": size, "by": by, "zero": scale.zero}))
        else:
            raise self._refused(step, "after a softmax")
        self._scales[made] = scale
        return made

    def _refused(self, step: Step, what: str) -> InvalidModel:
        return InvalidModel(
            f"{step.place} has no form in whole numbers here ({what}), so plain C holds this network in float32 alone."
        )

    def _add(self, step: Step, scale: Scale, op: str, inputs: tuple[str, ...], **args: Any) -> None:
        low, high = scale.whole(step.low), scale.whole(step.high)
        args = {key: value for key, value in step.args.items() if key not in args} | args
        self._made.append(replace(step, op=op, inputs=inputs, args=args, low=low, high=high))
        self._scales[step.output] = scale

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _whole(self, step: Step) -> None:
        op, of = step.op, step.args.get("of")
        if op in ("conv", "linear"):
            self._product(step)
        elif op in _SAME or of == "max":
            source = self._q(step, step.inputs[0])
            self._with_index(step)
            same = op if op in _SAME else f"{op}_q"
            self._add(step, self._scales[source], same, (source, *step.inputs[1:]))
        elif op in ("pool", "reduce"):
            self._mean(step)
        elif op in ("unary", "clamp"):
            source = self._q(step, step.inputs[0])
            self._table(step, source, scale_for(*self._ranges[step.output]), step)
        elif op == "join":
            scale = self._joint(step)
            parts = [self._on(step, self._q(step, name), scale) for name in step.inputs]
            fill = None if step.args["fill"] is None else scale.whole(step.args["fill"])
            self._add(step, scale, op, tuple(parts), fill=fill)
        elif op == "rows" and step.inputs[1] in self._index:
            table = self._q(step, step.inputs[0])
            self._add(step, self._scales[table], op, (table, step.inputs[1]))
        elif op == "binary" and of in ("add", "sub", "mul"):
            self._binary(step)
        else:
            raise self._refused(step, "a norm" if op == "norm" else f"{of or op}")

    def _joint(self, step: Step) -> Scale:
        """The scale of its operands where that is one; else that of the range of all."""
        ranges = [self._ranges[name] for name in step.inputs if name in self._ranges]
        ranges += [
            (float(v.min()), float(v.max())) for n in step.inputs if (v := self._steps.constants.get(n)) is not None
        ]
        fill = step.args["fill"] or 0.0
        scales = {self._scales[name] for name in step.inputs if name in self._scales}
        if len(scales) == 1 and len(step.inputs) == 1:
            return scales.pop()
        return scale_for(
            min(low for low, _ in [*ranges, (fill, fill)]), max(high for _, high in [*ranges, (fill, fill)])
        )

    def _on(self, step: Step, name: str, scale: Scale) -> str:
        """A value on another scale."""
        if self._scales[name] == scale:
            return name
        if name in self._constants:
            value = (self._constants[name].double() - self._scales[name].zero) * self._scales[name].scale
            made = f"{name}_on_{step.output}"
            self._constants[made] = rounded(value, scale).to(torch.int8)
            self._sizes[made] = len(value)
            self._scales[made] = scale
            return made
        made = f"{name}_on_{step.output}"
        self._sizes[made] = self._sizes[name]
        moved = Step("table", (name,), made, {"n": self._sizes[name], "of": None}, step.layer)
        self._table(moved, name, scale, None)
        return made

    def _table(self, step: Step, source: str, scale: Scale, function: Step | None) -> None:
        own = self._scales[source]
        values = (torch.arange(LEAST, MOST + 1).double() - own.zero) * own.scale
        if function is not None:
            values = values if function.op == "clamp" else unary(function.args, values)
            values = values.clamp(function.low, function.high)
        results = rounded(torch.nan_to_num(values), scale).to(torch.int8)
        table = self._constant(f"{step.output}_table", results)
        self._made.append(Step("table", (source, table), step.output, {"n": step.args["n"]}, step.layer))
        self._scales[step.output] = scale

    def _product(self, step: Step) -> None:
        if step.inputs[0] in self._floats - self._ports():
            raise self._refused(step, "it comes after a softmax")
        source = self._q(step, step.inputs[0])
        own, scale = self._scales[source], scale_for(*self._ranges[step.output])
        out = step.args["out"]
        weight, bias = (self._steps.constants[name].double() for name in step.inputs[1:])
        weight = weight.view(out, -1)
        steps = torch.maximum(weight.abs().amax(1) / MOST, bias.abs() / (own.scale * 2**30)).clamp(min=1e-30)
        whole = (weight / steps[:, None]).round().clamp(-MOST, MOST)
        if weight.shape[1] * 255 * MOST >= 2**30:
            raise self._refused(step, f"sums of {weight.shape[1]:,} products, which 32 bits do not hold")
        pairs = [multiplier(own.scale * float(each) / scale.scale) for each in steps]
        values = {
            "weight": whole.reshape(-1).to(torch.int8),
            "bias": (bias / (own.scale * steps)).round().to(torch.int32),
            "multiplier": torch.tensor([m for m, _ in pairs], dtype=torch.int32),
            "shift": torch.tensor([s for _, s in pairs], dtype=torch.int8),
        }
        names = [self._constant(f"{step.output}_{word}", value) for word, value in values.items()]
        exact = bool(whole.abs().sum(1).max() * 255 < 2**24)
        args = {"zero_x": own.zero, "zero_y": scale.zero, "sums": torch.float32 if exact else torch.float64}
        self._add(step, scale, f"{step.op}_q", (source, *names), **args)

    def _mean(self, step: Step) -> None:
        source, args = self._q(step, step.inputs[0]), step.args
        if step.op == "pool" and not args["counted"] and args["padding"] != (0, 0):
            raise self._refused(step, "a mean over windows that are cut at the border")
        own, scale = self._scales[source], scale_for(*self._ranges[step.output])
        count = (
            args["kernel"][0] * args["kernel"][1] if step.op == "pool" else args["size"] if args["of"] == "mean" else 1
        )
        m, shift = multiplier(own.scale / (scale.scale * count))
        self._add(step, scale, f"{step.op}_q", (source,), multiplier=m, shift=shift, zero_x=own.zero, zero_y=scale.zero)

    def _binary(self, step: Step) -> None:
        one, other = (self._q(step, name) for name in step.inputs)
        a, b, scale = self._scales[one], self._scales[other], scale_for(*self._ranges[step.output])
        zeros = {"zero_a": a.zero, "zero_b": b.zero, "zero_y": scale.zero}
        if step.args["of"] == "mul":
            m, shift = multiplier(a.scale * b.scale / scale.scale)
            self._add(step, scale, "mul_q", (one, other), multiplier=m, shift=shift, **zeros)
            return
        ratios = a.scale / scale.scale, b.scale / scale.scale
        shift = multiplier(max(ratios))[1] - 1
        by_a, by_b = (round(ratio * 2**shift) for ratio in ratios)
        by_b = -by_b if step.args["of"] == "sub" else by_b
        if not 1 <= shift <= 45:
            raise self._refused(step, "operands of very different size")
        self._add(step, scale, "add_q", (one, other), by_a=by_a, by_b=by_b, shift=shift, **zeros)


# ---- carried out ----------------------------------------------------------------------------------------------------


def rounded(value: Tensor, scale: Scale) -> Tensor:
    """Numbers on a scale, as int64."""
    return (value.double() / scale.scale).round().to(torch.int64).add(scale.zero).clamp(LEAST, MOST)


def scaled(value: Tensor, multiplier: Tensor | int, shift: Tensor | int) -> Tensor:
    """value * multiplier / 2^shift, rounded to the nearest, halves away from zero; all int64.

    >>> scaled(torch.tensor([3, -3, 5]), 1, 1)
    tensor([ 2, -2,  3])
    """
    product = value * multiplier
    half = 1 << (shift - 1) if isinstance(shift, int) else torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)
    found: Tensor = (product + half - (product < 0).to(torch.int64)) >> shift
    return found


def _conv_q(a: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor, by: Tensor, shift: Tensor) -> Tensor:
    kind = a["sums"]  # in which all of its sums are exact
    sums = convolved(a, (x - a["zero_x"]).to(kind), weight.to(kind), None).to(torch.int64).view(a["out"], -1)
    by, shift = by.to(torch.int64)[:, None], shift.to(torch.int64)[:, None]
    return scaled(sums + bias[:, None], by, shift).reshape(-1).add(a["zero_y"])


def _linear_q(a: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor, by: Tensor, shift: Tensor) -> Tensor:
    rows = (x - a["zero_x"]).to(a["sums"]).view(a["rows"], -1)
    sums = F.linear(rows, weight.to(a["sums"]).view(a["out"], -1)).to(torch.int64) + bias
    return scaled(sums, by.to(torch.int64), shift.to(torch.int64)).reshape(-1).add(a["zero_y"])


def _pool_q(a: Mapping[str, Any], x: Tensor) -> Tensor:
    if a["of"] == "max":
        return pooled(a, x.double()).to(torch.int64)
    count = a["kernel"][0] * a["kernel"][1]
    sums = (pooled(a, (x - a["zero_x"]).double()) * count).round().to(torch.int64)
    return scaled(sums, a["multiplier"], a["shift"]).add(a["zero_y"])


def _reduce_q(a: Mapping[str, Any], x: Tensor) -> Tensor:
    shaped = x.view(a["outer"], a["size"], a["inner"])
    if a["of"] == "max":
        return shaped.amax(1).reshape(-1)
    return scaled((shaped - a["zero_x"]).sum(1), a["multiplier"], a["shift"]).reshape(-1).add(a["zero_y"])


def _add_q(a: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
    sums = (spread(a, 0, x) - a["zero_a"]) * a["by_a"] + (spread(a, 1, y) - a["zero_b"]) * a["by_b"]
    return scaled(sums, 1, a["shift"]).add(a["zero_y"])


def _mul_q(a: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
    products = (spread(a, 0, x) - a["zero_a"]) * (spread(a, 1, y) - a["zero_b"])
    return scaled(products, a["multiplier"], a["shift"]).add(a["zero_y"])


def _quantise(a: Mapping[str, Any], x: Tensor) -> Tensor:
    by = torch.tensor(a["by"], dtype=torch.float32)
    return ((x * by).clamp(-1000.0, 1000.0).round().to(torch.int64).add(a["zero"])).clamp(LEAST, MOST)


COMPUTED |= {
    "quantise": _quantise,
    "dequantise": lambda a, x: (x - a["zero"]).float() * torch.tensor(a["by"], dtype=torch.float32),
    "conv_q": _conv_q,
    "linear_q": _linear_q,
    "pool_q": _pool_q,
    "reduce_q": _reduce_q,
    "add_q": _add_q,
    "mul_q": _mul_q,
    "table": lambda a, x, table: table[x + 128],
}


class StepsNetwork(nn.Module):
    """Steps, carried out by PyTorch and called as the network was: the reference of what a compiler makes of them."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        wide = {n: v if v.is_floating_point() else v.to(torch.int64) for n, v in steps.constants.items()}
        self._steps = replace(steps, constants=wide)
        self.output_names = tuple(port.name for port in steps.outputs)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        """All outputs, each in the place of its batch."""
        ports = self._steps.inputs
        inputs = list(args) or [kwargs[port.name] for port in ports]
        count, parts = inputs[0].shape[ports[0].axis], []
        for first in range(0, count, _BATCH):
            given = [x.narrow(p.axis, first, min(_BATCH, count - first)) for x, p in zip(inputs, ports, strict=True)]
            parts.append(together(self._steps, given, only_outputs=True))
        return tuple(
            torch.cat(
                [part[p.value].view(-1, *p.shape).movedim(0, p.axis).flatten(p.axis, p.axis + 1) for part in parts],
                p.axis,
            )
            for p in self._steps.outputs
        )
