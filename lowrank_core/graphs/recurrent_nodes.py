"""LSTM, GRU and RNN nodes of ONNX with all that they may say, step by step; ONNX's own reference leaves much of it out.

Where sequences have lengths of their own (sequence_lens) nothing behind their ends is computed, and so none counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Advance = Callable[[Tensor, list[Tensor]], list[Tensor]]
"""What the inputs contribute to a step, and the states before it -> the states after it, h first."""

_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "elu": (F.elu, (1.0,)),
    "hardsigmoid": (lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1), (0.2, 0.5)),
    "leakyrelu": (F.leaky_relu, (0.01,)),
    "relu": (torch.relu, ()),
    "scaledtanh": (lambda x, alpha, beta: alpha * torch.tanh(beta * x), (1.0, 1.0)),
    "sigmoid": (torch.sigmoid, ()),
    "softplus": (F.softplus, ()),
    "softsign": (F.softsign, ()),
    "tanh": (torch.tanh, ()),
    "thresholdedrelu": (lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), (1.0,)),
}
"""The functions that a node may name, by small letters, with alpha and beta as they are where it gives none."""


def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activations: Sequence[str] = ("Sigmoid", "Tanh", "Tanh") * 2,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """(Y, the last h, the last c) of an LSTM node, its gates i o f c; p: how far i, o and f see the cell."""
    functions = _functions(activations, activation_alpha, activation_beta, clip)
    whole = _functions(activations, activation_alpha, activation_beta, 0.0)  # no runtime clips the cell itself

    def way(number: int) -> Advance:
        (gate, new), shown = functions[3 * number : 3 * number + 2], whole[3 * number + 2]
        weight = r[number]
        sees_i, sees_o, sees_f = x.new_zeros(3) if p is None else p[number].chunk(3)

        def advance(given: Tensor, states: list[Tensor]) -> list[Tensor]:
            h, c = states
            i, o, f, g = (given + F.linear(h, weight)).chunk(4, dim=-1)
            i = gate(i + sees_i * c)
            f = 1 - i if input_forget else gate(f + sees_f * c)
            c = f * c + i * new(g)
            return [gate(o + sees_o * c) * shown(c), c]

        return advance

    return _run(x, w, _both(b), sequence_lens, [initial_h, initial_c], r.shape[-1], way, direction, layout)


def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activations: Sequence[str] = ("Sigmoid", "Tanh") * 2,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """(Y, the last h) of a GRU node, its gates z r h."""
    functions = _functions(activations, activation_alpha, activation_beta, clip)
    width = r.shape[-1]
    own, seen = (None, x.new_zeros(len(w), 3 * width)) if b is None else b.chunk(2, dim=1)

    def way(number: int) -> Advance:
        gate, new = functions[2 * number : 2 * number + 2]
        gates, last = r[number, : 2 * width], r[number, 2 * width :]
        opening, offset = seen[number, : 2 * width], seen[number, 2 * width :]

        def advance(given: Tensor, states: list[Tensor]) -> list[Tensor]:
            (h,) = states
            opened, fresh = given[..., : 2 * width], given[..., 2 * width :]
            z, reset = gate(opened + F.linear(h, gates, opening)).chunk(2, dim=-1)
            if linear_before_reset:
                fresh = new(fresh + reset * F.linear(h, last, offset))
            else:
                fresh = new(fresh + F.linear(reset * h, last, offset))
            return [(1 - z) * fresh + z * h]

        return advance

    return _run(x, w, own, sequence_lens, [initial_h], width, way, direction, layout)


def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activations: Sequence[str] = ("Tanh", "Tanh"),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float = 0.0,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """(Y, the last h) of an RNN node."""
    functions = _functions(activations, activation_alpha, activation_beta, clip)

    def way(number: int) -> Advance:
        return lambda given, states: [functions[number](given + F.linear(states[0], r[number]))]

    return _run(x, w, _both(b), sequence_lens, [initial_h], r.shape[-1], way, direction, layout)


def _both(b: Tensor | None) -> Tensor | None:
    """The offsets of inputs and states together."""
    return None if b is None else torch.stack(b.chunk(2, dim=1)).sum(0)


def _functions(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], clip: float
) -> list[Callable[[Tensor], Tensor]]:
    """The activations of a node, each with the next alpha and beta that are given, if it has any."""
    given = iter(alphas), iter(betas)

    def function(name: str) -> Callable[[Tensor], Tensor]:
        known, usual = _ACTIVATIONS[name.lower()]
        settings = [next(numbers, number) for numbers, number in zip(given, usual, strict=False)]
        return lambda x: known(x.clamp(-clip, clip) if clip else x, *settings)

    return [function(name) for name in names]


def _run(
    x: Tensor,
    w: Tensor,
    biases: Tensor | None,
    lengths: Tensor | None,
    starts: Sequence[Tensor | None],
    width: int,
    way: Callable[[int], Advance],
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """Y (steps, directions, batch, width) and the last states (directions, batch, width); layout 1: batch first."""
    x = x.transpose(0, 1) if layout else x
    within = None if lengths is None else inside(x, lengths)
    outputs, ends = [], []
    for number, backwards in enumerate({"forward": (False,), "reverse": (True,)}.get(direction, (False, True))):
        at = [None if start is None else start.transpose(0, 1) if layout else start for start in starts]
        states = [x.new_zeros(x.shape[1], width) if start is None else start[number] for start in at]
        bias = None if biases is None else biases[number]
        output, end = _one_way(x, w[number], bias, within, states, way(number), backwards)
        outputs.append(output)
        ends.append(end)
    y, last = torch.stack(outputs, 1), [torch.stack(each) for each in zip(*ends, strict=True)]
    return (y.permute(2, 0, 1, 3), *(each.transpose(0, 1) for each in last)) if layout else (y, *last)


def inside(x: Tensor, lengths: Tensor) -> Tensor:
    """(steps, batch), True before the end of each sequence."""
    steps, batch = x.shape[:2]
    if lengths.shape != (batch,) or lengths.min() < 0 or lengths.max() > steps:
        shown = ", ".join(map(str, lengths.flatten()[:8].tolist()))
        raise ValueError(f"sequence_lens must be {batch} numbers from 0 to {steps}, but got {shown}")
    return torch.arange(steps, device=x.device)[:, None] < lengths


def _one_way(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    within: Tensor | None,
    states: list[Tensor],
    advance: Advance,
    backwards: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs of one direction, zeros behind a sequence's end, and the last states, zeros of one that is empty."""
    steps, outputs = range(len(x)), []
    if within is None:
        given = F.linear(x, w, bias)
        for step in reversed(steps) if backwards else steps:
            states = advance(given[step], states)
            outputs.append(states[0])
        return torch.stack(outputs[::-1] if backwards else outputs), states
    given = x.new_zeros(*x.shape[:2], len(w)).index_put((within,), F.linear(x[within], w, bias))
    for step in reversed(steps) if backwards else steps:
        on = within[step]
        after = advance(given[step, on], [state[on] for state in states])
        outputs.append(torch.zeros_like(states[0]).index_put((on,), after[0]))
        states = [state.index_put((on,), new) for state, new in zip(states, after, strict=True)]
    begun = within[:1].T.to(x.dtype)
    return torch.stack(outputs[::-1] if backwards else outputs), [state * begun for state in states]
