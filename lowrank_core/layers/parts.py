"""The modules that replace layers, and the parts of chains that torch.nn has not.

This file needs torch alone: exports ship it whole, as part of the loader for networks that have such modules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


class GroupedLinear(nn.Module):
    """(..., in) -> (..., out), each of `groups` equal parts of the inputs into its own part of the outputs.

    What a convolution's groups are. weight: (out, in / groups).
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        nn.init.uniform_(self.weight, -((groups / in_features) ** 0.5), (groups / in_features) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One product for all groups."""
        parts = x.reshape(-1, self.groups, self.in_features // self.groups).transpose(0, 1)
        y = torch.bmm(parts, self.weight.view(self.groups, -1, parts.shape[-1]).mT).transpose(0, 1)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As a Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, groups={self.groups}"


class SharedLinear(nn.Module):
    """(..., in) -> (..., out), where one weight (out / copies, in / copies) turns part after part into outputs.

    A part is every `copies`-th input, and a stretch of the outputs: input c * copies + k is number c of part k. The
    bias differs from part to part.
    """

    def __init__(self, in_features: int, out_features: int, copies: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.copies = in_features, out_features, copies
        self.weight = nn.Parameter(torch.empty(out_features // copies, in_features // copies, **factory))
        self.bias = nn.Parameter(torch.zeros(out_features, **factory)) if bias else None
        nn.init.uniform_(self.weight, -((copies / in_features) ** 0.5), (copies / in_features) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """One product for all parts."""
        parts = x.reshape(*x.shape[:-1], -1, self.copies).mT
        y = F.linear(parts, self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As a Linear shows itself."""
        return f"in_features={self.in_features}, out_features={self.out_features}, copies={self.copies}"


class TransposedLinear(nn.Module):
    """A Linear whose weight is (in, out): it shares it with a Linear the other way round."""

    def __init__(self, in_features: int, out_features: int, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features, **factory))
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight

    def back(self, y: Tensor) -> Tensor:
        """By the transpose."""
        return F.linear(y, self.weight)


class _PartlyIdentity(nn.Module):
    """What `IdentityRows` and `IdentityColumns` have in common.

    axes: 0 of a Linear, else those of the window of a convolution, all ones. weight: what is not the identity. order:
    a permutation of the wider side.
    """

    order: Tensor

    def __init__(self, in_channels: int, out_channels: int, axes: int, groups: int) -> None:
        super().__init__()
        self.axes, self.groups = axes, groups
        if axes:
            self.in_channels, self.out_channels, self.transposed = in_channels, out_channels, False
            self.kernel_size = self.stride = self.dilation = (1,) * axes
            self.padding, self.padding_mode = (0,) * axes, "zeros"
        else:
            self.in_features, self.out_features = in_channels, out_channels
        self.ends, self.wide = (in_channels, out_channels), max(in_channels, out_channels)

    def _hold(self, rows: int, columns: int, turned: bool = False, **factory: Any) -> None:
        """Make the weight (rows, columns / groups), or of a turned one (columns, rows), and an order that is none."""
        shape = (columns, rows) if turned else (rows, columns // self.groups, *(1,) * self.axes)
        self.weight = nn.Parameter(torch.empty(shape, **factory))
        self.register_buffer("order", torch.arange(self.wide, dtype=torch.int32, device=factory.get("device")))
        if self.weight.numel() and not self.weight.is_meta:
            nn.init.uniform_(self.weight, -(self.ends[0] ** -0.5), self.ends[0] ** -0.5)

    def _products(self, x: Tensor) -> Tensor:
        if not self.axes:
            return F.linear(x, self.weight)
        product: Tensor = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1](x, self.weight, groups=self.groups)
        return product

    def _ordered(self, x: Tensor) -> Tensor:
        """Channels or features of the wider side in their order; of features row by row, which is faster by far."""
        if self.axes or x.dim() < 2:
            return x.index_select(-1 - self.axes, self.order)
        return x.mT.index_select(-2, self.order).mT.contiguous()

    def extra_repr(self) -> str:
        """As a Linear shows itself."""
        return f"{self.ends[0]}, {self.ends[1]}, axes={self.axes}, groups={self.groups}"


class IdentityRows(_PartlyIdentity):
    """(..., in) -> (..., out), at most as many to at least as many: `in` of the outputs are the inputs as they are.

    A Linear, or a convolution with a window of one, among whose rows are those of the identity, which are neither
    stored nor multiplied with; of each group its own. weight: (out - in, in / groups, 1, ...), the other rows.
    order: (out,) where each output is among the inputs and, after them, the products.
    """

    def __init__(
        self, in_channels: int, out_channels: int, axes: int = 0, groups: int = 1, bias: bool = True, **factory: Any
    ) -> None:
        super().__init__(in_channels, out_channels, axes, groups)
        self._hold(out_channels - in_channels, in_channels, **factory)
        self.bias = nn.Parameter(torch.zeros(out_channels, **factory)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self._ordered(torch.cat([x, self._products(x)], -1 - self.axes) if self.weight.numel() else x)
        return y if self.bias is None else y + self.bias.view(-1, *(1,) * self.axes)

    def back(self, y: Tensor) -> Tensor:
        """Of a Linear, by the transpose."""
        inputs, outputs = self.ends
        own, others = torch.split(y.index_select(-1, self.order.argsort()), [inputs, outputs - inputs], -1)
        return own + others @ self.weight if self.weight.numel() else own

    def full(self) -> Tensor:
        """The weight (out, in / groups, 1, ...) with the rows of the identity in their places."""
        columns = self.ends[0] // self.groups
        unit = torch.eye(columns, dtype=self.weight.dtype, device=self.weight.device).repeat(self.groups, 1)
        return torch.cat([unit.view(-1, columns, *(1,) * self.axes), self.weight])[self.order.long()]


class IdentityColumns(_PartlyIdentity):
    """(..., in) -> (..., out), at least as many to at most as many: an input each is added to the outputs as it is.

    A Linear, or a convolution with a window of one, among whose columns are those of the identity. weight: the other
    columns, (out, (in - out) / groups, 1, ...); turned: of a Linear that shares it with an `IdentityRows`, (in - out,
    out). order: (in,) the inputs that are added as they are, one for each output, then the others, of each group its.
    """

    def __init__(
        self, in_channels: int, out_channels: int, axes: int = 0, groups: int = 1, turned: bool = False, **factory: Any
    ) -> None:
        super().__init__(in_channels, out_channels, axes, groups)
        self.turned = turned
        self._hold(out_channels, in_channels - out_channels, turned, **factory)

    def forward(self, x: Tensor) -> Tensor:
        inputs, outputs = self.ends
        kept, others = torch.split(self._ordered(x), [outputs, inputs - outputs], -1 - self.axes)
        if not self.weight.numel():
            return kept
        return kept + (others @ self.weight if self.turned else self._products(others))

    def back(self, y: Tensor) -> Tensor:
        """Of a Linear, by the transpose."""
        both = torch.cat([y, F.linear(y, self.weight) if self.turned else y @ self.weight], -1)
        return both.index_select(-1, self.order.argsort())

    def full(self) -> Tensor:
        """The weight (out, in / groups, 1, ...) with the columns of the identity in their places."""
        inputs, outputs = (end // self.groups for end in self.ends)
        own = self.weight.mT if self.turned else self.weight
        unit = torch.eye(outputs, dtype=own.dtype, device=own.device)
        apart = own.reshape(self.groups, outputs, inputs - outputs)
        both = torch.cat([unit.expand(self.groups, -1, -1), apart], 2)
        kept, others = torch.split(self.order.long(), [self.ends[1], self.ends[0] - self.ends[1]])
        places = torch.cat([kept.view(self.groups, -1), others.view(self.groups, -1)], 1) % inputs
        return both.gather(2, places.argsort(1)[:, None].expand(-1, outputs, -1)).reshape(-1, inputs, *(1,) * self.axes)


LINEARS: dict[str, Callable[..., nn.Module]] = {
    "Linear": nn.Linear,
    "GroupedLinear": GroupedLinear,
    "SharedLinear": SharedLinear,
    "IdentityRows": IdentityRows,
}


def _factors(parts: Any, rows: int, columns: int, biased: bool, **factory: Any) -> nn.Sequential:
    """The chain of a matrix inside of a module: two Linear layers of a rank, or those of a list {"op", "args"}."""
    if not isinstance(parts, list):
        first = {"in_features": columns, "out_features": parts, "bias": False}
        last = {"in_features": parts, "out_features": rows, "bias": biased}
        parts = [{"op": "Linear", "args": args} for args in (first, last)]
    return nn.Sequential(*(LINEARS[part["op"]](**part["args"], **factory) for part in parts))


class Recurrent(nn.Module):
    """An nn.LSTM, nn.GRU or nn.RNN, step by step: the same arguments, states, outputs and names of parameters.

    A weight in `ranks` is a chain of layers under its name, the last with its bias: two Linear layers of that rank, or
    those of a list of parts {"op", "args"}. The others are parameters as usual.
    """

    GATES: ClassVar[dict[str, int]] = {"LSTM": 4, "GRU": 3, "RNN": 1}

    def __init__(
        self,
        kind: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        nonlinearity: str = "tanh",
        ranks: dict[str, Any] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.kind, self.input_size, self.hidden_size, self.num_layers = kind, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        self.proj_size, self.nonlinearity = proj_size, nonlinearity
        for name, (rows, columns, biased) in self.weights().items():
            if ranks and name in ranks:
                self.add_module(name, _factors(ranks[name], rows, columns, biased, **factory))
                continue
            self.register_parameter(name, nn.Parameter(torch.empty(rows, columns, **factory)))
            if biased:
                beside = nn.Parameter(torch.empty(rows, **factory))
                self.register_parameter(name.replace("weight", "bias"), beside)
        self.reset_parameters()

    def weights(self) -> dict[str, tuple[int, int, bool]]:
        """{name: (rows, columns, whether it has a bias)} in the order of execution."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        gates, state = self.GATES[self.kind] * self.hidden_size, self.proj_size or self.hidden_size
        shapes = {}
        for layer in range(self.num_layers):
            inputs = state * len(directions) if layer else self.input_size
            for direction in directions:
                shapes[f"weight_ih_l{layer}{direction}"] = gates, inputs, self.bias
                shapes[f"weight_hh_l{layer}{direction}"] = gates, state, self.bias
                if self.proj_size:
                    shapes[f"weight_hr_l{layer}{direction}"] = self.proj_size, self.hidden_size, False
        return shapes

    def reset_parameters(self) -> None:
        """Random weights as PyTorch draws them, where they are not chains."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def flatten_parameters(self) -> None:
        """Nothing to do; networks that call it go on working."""

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """(outputs, last states), in the shapes of PyTorch's; packed sequences are padded and packed again."""
        ended = None
        x, batched = input, True
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input)
            ended = (torch.arange(len(x))[:, None] >= lengths).unsqueeze(-1).to(x.device)
        elif input.dim() == 2:
            x, batched = input.unsqueeze(1), False
        elif self.batch_first:
            x = input.transpose(0, 1)
        states = list(hx if self.kind == "LSTM" else (hx,)) if hx is not None else []
        states = states if batched else [state.unsqueeze(1) for state in states]
        directions = 2 if self.bidirectional else 1
        ends = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in range(directions):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                start = [state[layer * directions + direction] for state in states]
                zeros = [
                    x.new_zeros(x.shape[1], size) for size in (self.proj_size or self.hidden_size, self.hidden_size)
                ]
                output, end = self._run(suffix, x, *(start or zeros), reverse=direction == 1, ended=ended)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, dim=-1)
        last = [torch.stack(state) for state in zip(*ends, strict=True)]
        if isinstance(input, PackedSequence):
            x = pack_padded_sequence(x, lengths, enforce_sorted=input.sorted_indices is None)
        elif not batched:
            x, last = x.squeeze(1), [state.squeeze(1) for state in last]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(last) if self.kind == "LSTM" else last[0]

    def _run(
        self, suffix: str, x: Tensor, h: Tensor, c: Any = None, *, reverse: bool = False, ended: Any = None
    ) -> tuple[Tensor, Any]:
        """One direction of one layer: (steps, batch, in) -> (steps, batch, out) and the state at its end.

        ended: (steps, batch, 1), True where a sequence is over; there the state stays as it is.
        """
        inputs = self._times("weight_ih" + suffix, x).unbind(0)
        outputs = []
        for step, a in list(enumerate(inputs))[:: -1 if reverse else 1]:
            before, c_before = h, c
            b = self._times("weight_hh" + suffix, h)
            if self.kind == "LSTM":
                i, f, g, o = (a + b).chunk(4, dim=-1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                h = self._times("weight_hr" + suffix, h) if self.proj_size else h
            elif self.kind == "GRU":
                (r, z, n), (hr, hz, hn) = a.chunk(3, dim=-1), b.chunk(3, dim=-1)
                z, n = torch.sigmoid(z + hz), torch.tanh(n + torch.sigmoid(r + hr) * hn)
                h = n + z * (h - n)
            else:
                h = torch.tanh(a + b) if self.nonlinearity == "tanh" else torch.relu(a + b)
            if ended is not None:
                h = torch.where(ended[step], before, h)
                c = torch.where(ended[step], c_before, c) if self.kind == "LSTM" else c
            outputs.append(h)
        return torch.stack(outputs[::-1] if reverse else outputs), (h, c) if self.kind == "LSTM" else (h,)

    def _times(self, name: str, x: Tensor) -> Tensor:
        part = getattr(self, name)
        if isinstance(part, nn.Module):
            product: Tensor = part(x)
            return product
        return F.linear(x, part, getattr(self, name.replace("weight", "bias"), None))


class Cell(Recurrent):
    """An nn.LSTMCell, nn.GRUCell or nn.RNNCell in the same way: one step, and no numbers in the names of weights."""

    def weights(self) -> dict[str, tuple[int, int, bool]]:
        """{name: (rows, columns, whether it has a bias)}, input first."""
        return {name.removesuffix("_l0"): about for name, about in super().weights().items()}

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """The next state, (h, c) for an LSTM, from one input (batch, in) or (in,)."""
        states = list(hx if self.kind == "LSTM" else (hx,)) if hx is not None else []
        zeros = [input.new_zeros(*input.shape[:-1], self.hidden_size)] * 2
        _, last = self._run("", input[None], *(states or zeros))
        return last if self.kind == "LSTM" else last[0]


class Attention(nn.Module):
    """An nn.MultiheadAttention with the same arguments and outputs; q, k, v and the output are layers of their own.

    A projection in `ranks` ("in_proj.q", "in_proj.k", "in_proj.v", "out_proj") is a chain as in `Recurrent`, its bias
    with the last layer; the others are Linear.
    """

    in_proj_bias = None  # by this an encoder layer sees that it cannot read the weights itself

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        ranks: dict[str, Any] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout, self.bias = embed_dim, num_heads, dropout, bias
        self.batch_first = batch_first

        def projection(name: str) -> nn.Module:
            if not ranks or name not in ranks:
                return nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
            return _factors(ranks[name], embed_dim, embed_dim, bias, **factory)

        self.in_proj = nn.ModuleDict({part: projection(f"in_proj.{part}") for part in "qkv"})
        self.out_proj = projection("out_proj")

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(outputs, attention weights or None) in the shapes of PyTorch's; is_causal only says what attn_mask holds."""
        batched = query.dim() == 3
        heads = []
        for part, x in zip("qkv", (query, key, value), strict=True):
            rows = (x if self.batch_first else x.transpose(0, 1)) if batched else x.unsqueeze(0)
            heads.append(self.in_proj[part](rows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        q, k, v = heads
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        weights = None
        if need_weights:
            scores = q * q.shape[-1] ** -0.5 @ k.mT
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, -1), self.dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return outputs.squeeze(0), None if weights is None else weights.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), weights

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores (batch, heads, queries, keys); True in either mask keeps a key out."""

        def added(mask: Tensor) -> Tensor:
            return (
                torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
                if mask.dtype == torch.bool
                else mask
            )

        total = None
        if attn_mask is not None:
            total = added(attn_mask)
            total = total.view(q.shape[0], self.num_heads, q.shape[2], k.shape[2]) if attn_mask.dim() == 3 else total
        if key_padding_mask is not None:
            padding = added(key_padding_mask).view(q.shape[0], 1, 1, k.shape[2])
            total = padding if total is None else total + padding
        return total


class Experts(nn.Module):
    """In place of a parameter (experts, out, in) of a mixture of experts: each expert's matrix is a layer of its own.

    The module that held the parameter goes on reading it: one expert by its number, in F.linear and matrix products,
    or all at once, in these, in einsum and in grouped_mm. turned: the parameter was (experts, in, out). An expert in
    `ranks` is a chain as in `Recurrent`, the others are Linear layers.
    """

    READ = ("mT", "transpose", "shape", "ndim", "dtype", "device", "dim", "size", "contiguous", "to", "view", "reshape")

    def __init__(
        self,
        experts: int,
        in_features: int,
        out_features: int,
        turned: bool = False,
        ranks: dict[str, Any] | None = None,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.experts, self.in_features, self.out_features, self.turned = experts, in_features, out_features, turned
        for name in map(str, range(experts)):
            if ranks and name in ranks:
                self.add_module(name, _factors(ranks[name], out_features, in_features, False, **factory))
            else:
                self.add_module(name, nn.Linear(in_features, out_features, bias=False, **factory))

    def times(self, number: int, x: Tensor, turned: bool) -> Tensor:
        """(..., in) -> (..., out) by one expert; turned: whether the reader takes its matrix for (in, out)."""
        if turned != self.turned:
            raise TypeError("an expert's matrix is read the other way round than in the network that was compressed")
        product: Tensor = self._modules[str(number)](x)  # type: ignore[misc]
        return product

    @property
    def like(self) -> Tensor:
        """A tensor of the type and in the place of the weights."""
        return next(self.parameters())

    def refuse(self, read: "ExpertRead", how: str, otherwise: Callable[[Any], Any]) -> Any:
        """What comes of a read that is no product; otherwise: what would be done with the matrices themselves."""
        raise TypeError(f"a mixture of experts whose matrices are factors cannot be read by {how}")

    def __len__(self) -> int:
        return self.experts

    def __getitem__(self, index: Any) -> Any:
        return ExpertRead(self)[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(ExpertRead(self), name) if name in self.READ else super().__getattr__(name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads: Any = tree_map(
            lambda leaf: ExpertRead(leaf) if isinstance(leaf, Experts) else leaf, (args, kwargs or {})
        )
        return ExpertRead.__torch_function__(func, types, *reads)


class ExpertRead:
    """The matrices of `Experts` as they are read: all of them, or one by its number; flipped: the last two axes."""

    def __init__(self, experts: Experts, number: int | None = None, flipped: bool = False) -> None:
        self.experts, self.number, self.flipped = experts, number, flipped

    @property
    def shape(self) -> torch.Size:
        """That of the tensor it stands for."""
        rows, columns = self.experts.out_features, self.experts.in_features
        ends = (columns, rows) if self.experts.turned != self.flipped else (rows, columns)
        return torch.Size(ends if self.number is not None else (self.experts.experts, *ends))

    @property
    def ndim(self) -> int:
        """2 of one expert, 3 of all."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.experts.like.dtype

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return self.experts.like.device

    @property
    def mT(self) -> "ExpertRead":  # noqa: N802
        """The same with its last two axes changed."""
        return ExpertRead(self.experts, self.number, not self.flipped)

    @property
    def T(self) -> Any:  # noqa: N802
        """Of one expert as `mT`."""
        return self.mT if self.number is not None else self.experts.refuse(self, "T", lambda w: w.T)

    def dim(self) -> int:
        """As `ndim`."""
        return self.ndim

    def size(self, axis: int | None = None) -> Any:
        """As `shape`, or one extent of it."""
        return self.shape if axis is None else self.shape[axis]

    def contiguous(self) -> "ExpertRead":
        """Itself."""
        return self

    def t(self) -> Any:
        """As `T`."""
        return self.T

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Itself, where it is of that type and in that place already."""
        if all(wanted in (self.dtype, self.device) for wanted in (*args, *kwargs.values())):
            return self
        return self.experts.refuse(self, "to", lambda w: w.to(*args, **kwargs))

    def view(self, *shape: Any) -> Any:
        """Itself, where it has that shape: experts whose matrices lie in one of two axes are read so."""
        extents = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if extents.count(-1) == 1 and len(extents) == self.ndim:
            extents[extents.index(-1)] = self.shape[extents.index(-1)]
        same = tuple(extents) == tuple(self.shape)
        return self if same else self.experts.refuse(self, "view", lambda w: w.view(*shape))

    reshape = view

    def transpose(self, a: int, b: int) -> Any:
        """The same with two axes changed, which must be the last."""
        last = {a % self.ndim, b % self.ndim} == {self.ndim - 1, self.ndim - 2}
        return self.mT if last else self.experts.refuse(self, "transpose", lambda w: w.transpose(a, b))

    def __getitem__(self, index: Any) -> Any:
        whole = isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool)
        if not whole or self.number is not None:
            return self.experts.refuse(self, "an index of many", lambda w: w[index])
        number = int(index)
        if not -self.experts.experts <= number < self.experts.experts:
            raise IndexError(f"there are {self.experts.experts} experts, but number {number} is read")
        return ExpertRead(self.experts, number % self.experts.experts, self.flipped)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.experts.refuse(self, name, lambda w: getattr(w, name))

    def into(self, x: Tensor, columns_first: bool) -> Tensor:
        """x times the matrix, or each matrix times its part of x along the third axis from the end.

        columns_first: read as (in, out).
        """
        turned = columns_first != self.flipped
        if self.number is not None:
            return self.experts.times(self.number, x, turned)
        numbers = range(self.experts.experts)
        parts = x.expand(*x.shape[:-3], len(numbers), *x.shape[-2:]).unbind(-3)
        return torch.stack([self.experts.times(n, parts[n], turned) for n in numbers], -3)

    def grouped(self, x: Tensor, offs: Tensor) -> Tensor:
        """The rows of x, sorted by their experts, each times its own; offs: where the rows of each expert end."""
        counts = torch.diff(offs, prepend=offs.new_zeros(1)).tolist()
        parts: Any = torch.split(x, counts)
        return torch.cat([self.experts.times(n, part, not self.flipped) for n, part in enumerate(parts)])

    def einsum(self, equation: str, x: Tensor, first: bool) -> Any:
        """The product of x and this in letters; first: this comes before x."""
        inputs, _, output = equation.replace(" ", "").partition("->")
        ours, theirs = inputs.split(",")[:: 1 if first else -1]
        expert, ends = ("", ours) if self.number is not None else (ours[0], ours[1:])
        summed = [letter for letter in ends if letter in theirs and letter not in output]
        others = theirs.replace(expert, "") if expert else theirs
        if not output or "." in equation or len(summed) != 1 or (set(ends) - set(summed)) & set(theirs):
            products = (lambda w: torch.einsum(equation, w, x)) if first else (lambda w: torch.einsum(equation, x, w))
            return self.experts.refuse(self, f"einsum {equation!r}", products)
        axis, turned = others.index(summed[0]), (ends[0] == summed[0]) != self.flipped
        answers = []
        for number in range(self.experts.experts) if self.number is None else [self.number]:
            part = x.select(theirs.index(expert), number) if expert and expert in theirs else x
            answers.append(self.experts.times(number, part.movedim(axis, -1), turned))
        letters = others.replace(summed[0], "") + ends.replace(summed[0], "")
        return torch.einsum(f"{expert or 'Z'}{letters}->{output}", torch.stack(answers))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, others = getattr(func, "__name__", ""), [arg for arg in args if not isinstance(arg, ExpertRead)]
        leaves, form = tree_flatten((args, kwargs))
        read = next(leaf for leaf in leaves if isinstance(leaf, ExpertRead))
        plain = sum(isinstance(arg, ExpertRead) for arg in args) == 1 and args[0] is not read
        if func is F.linear and plain and args[1] is read and read.number is not None:
            y, bias = read.into(args[0], False), args[2] if len(args) > 2 else kwargs.get("bias")
            return y if bias is None else y + bias
        if name in ("matmul", "__matmul__", "mm", "bmm") and plain and len(args) == 2 and not kwargs:
            return read.into(args[0], True)
        if name.lstrip("_").startswith("grouped_mm") and plain and args[0].ndim == 2 and read.number is None:
            offs = args[2] if len(args) > 2 else kwargs.get("offs")
            if offs is not None and kwargs.get("bias") is None:
                return read.grouped(args[0], offs)
        if name == "einsum" and len(args) == 3 and len(others) == 2:
            return read.einsum(others[0], others[1], args[1] is read)

        def otherwise(matrices: Tensor) -> Any:
            given, named = tree_unflatten([matrices if leaf is read else leaf for leaf in leaves], form)
            return func(*given, **named)

        return read.experts.refuse(read, name, otherwise)


class Chain(nn.Sequential):
    """Layers in a row that stand for one.

    Other modules may ask that layer for its sizes, its bias, or the type, place and shape of its weight; the weight has
    no values (NaN, and no memory): `discover` leaves layers as they are whose weight others compute with.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = self
        x: Any = first(*args, **kwargs)
        for part in others:
            x = part(x)
        return x

    def __getattr__(self, name: str) -> Any:
        if name in ("in_features", "in_channels", "num_embeddings", "padding_idx"):
            return getattr(self[0], name)
        if name in ("out_features", "out_channels", "bias"):
            return getattr(self[-1], name)
        if name == "embedding_dim":
            return self[-1].out_features
        if name in ("kernel_size", "stride", "dilation", "padding"):
            each = [getattr(part, name) for part in self]
            return next((e for e in each if isinstance(e, str)), tuple(map(max, zip(*each, strict=True))))
        if name == "groups":
            return min(getattr(part, name) for part in self)
        if name == "padding_mode":
            return next((e for e in (getattr(part, name) for part in self) if e != "zeros"), "zeros")
        if name == "weight":
            parts: list[Any] = list(self)
            if hasattr(parts[0], "kernel_size"):
                groups, turned = min(part.groups for part in parts), any(part.transposed for part in parts)
                shape = [parts[-1].out_channels, parts[0].in_channels][:: -1 if turned else 1]
                shape = [shape[0], shape[1] // groups, *self.kernel_size]
            elif hasattr(parts[0], "num_embeddings"):
                shape = [parts[0].num_embeddings, parts[-1].out_features if len(parts) > 1 else parts[0].embedding_dim]
            else:
                shape = [parts[-1].out_features, parts[0].in_features]
            return parts[-1].weight.new_full((), torch.nan).expand(shape)
        return super().__getattr__(name)


class Product(Chain):
    """A chain in the place of a weight that functions are given: their product with that weight is what it computes.

    turned: the weight is (in, out), as in `x @ weight`; else (out, in), as `F.linear` takes it. A matrix can be
    multiplied by either way round, also one whose rows are looked up; only the first way calls the chain, so that its
    hooks see one kind of inputs. Whatever a function does with it but multiply, or ask for its type, place and shape,
    it does with numbers that are not there (NaN).
    """

    def __init__(self, *parts: nn.Module, turned: bool = False) -> None:
        super().__init__(*parts)
        self.turned = turned

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _multiplied(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in ("T", "mT"):
            return Turned(self)
        return getattr(self.empty, name) if name in ASKED else super().__getattr__(name)

    def times(self, use: "Use") -> Tensor:
        """The product that a function asks for, without the bias."""
        x: Tensor = use.x
        turned, table = use.turned != isinstance(use.weight, Turned), isinstance(self[0], nn.Embedding)
        if use.kind != "linear" or (turned == self.turned and not table):
            x = self(x)
            return x
        first, *others = list[Any](self)
        if table and turned:
            x = x @ first.weight
            for part in others:
                x = part(x)
            return x
        for part in (*others[::-1], first):
            if isinstance(part, nn.Embedding):
                x = F.linear(x, part.weight)
            else:
                x = x @ part.weight if isinstance(part, nn.Linear) else part.back(x)
        return x

    @property
    def empty(self) -> Tensor:
        """A weight of this type, place and shape without values, and without memory for them."""
        weight: Tensor = self.weight
        return weight.mT if self.turned else weight

    def t(self) -> "Turned":
        """As that of a tensor."""
        return Turned(self)

    def transpose(self, first: int, second: int) -> Any:
        """As that of a tensor."""
        return Turned(self) if first % 2 != second % 2 else self

    def permute(self, *axes: Any) -> Any:
        """As that of a tensor."""
        return self.transpose(0, torch.Size(axes[0] if len(axes) == 1 else axes)[0])

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Itself where that is its type and place, as of a tensor; factors have no other."""
        like = self.empty
        if (moved := like.to(*args, **kwargs)).dtype != like.dtype or moved.device != like.device:
            raise TypeError(f"a weight that is kept as factors of {like.dtype} cannot be read as {moved.dtype}")
        return self

    def type_as(self, other: Any) -> Any:
        """As that of a tensor."""
        return self.to(other.dtype)

    def float(self) -> Any:
        """As that of a tensor."""
        return self.to(torch.float32)

    def contiguous(self) -> Any:
        """As that of a tensor."""
        return self


class Turned:
    """The transpose of a Product."""

    def __init__(self, product: Product) -> None:
        self.product = product

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _multiplied(func, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in ("T", "mT"):
            return self.product
        return getattr(self.product.empty.mT, name)

    def t(self) -> Product:
        """As that of a tensor."""
        return self.product

    def transpose(self, first: int, second: int) -> Any:
        """As that of a tensor."""
        return self.product if first % 2 != second % 2 else self


ASKED = ("shape", "dtype", "device", "layout", "ndim", "dim", "size", "numel", "requires_grad", "is_cuda", "is_meta")
"""What may be asked of a weight that is kept as factors."""


class Use(NamedTuple):
    """A product of inputs with a weight, as a function was asked for it.

    turned: the weight is (in, out). about: how a convolution or a table reads it. back: how what comes out is arranged,
    where the inputs were rearranged for it.
    """

    x: Tensor
    weight: Any
    bias: Any = None
    turned: bool = False
    kind: str = "linear"
    about: tuple[tuple[str, Any], ...] = ()
    back: Callable[[Tensor], Tensor] | None = None


_MATRICES = ("input", "weight")
_LINEAR = ("input", "weight", "bias")
_CONV = (*_LINEAR, "stride", "padding", "dilation", "groups")
_CONV_TRANSPOSE = (*_LINEAR, "stride", "padding", "output_padding", "groups", "dilation")
_TABLE = (*_MATRICES, "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_GIVEN: dict[str, tuple[str, ...]] = {
    "linear": _LINEAR,
    "matmul": _MATRICES,
    "mm": _MATRICES,
    "addmm": ("bias", "input", "weight"),
    "embedding": _TABLE,
    **{f"conv{n}d": _CONV for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _CONV_TRANSPOSE for n in (1, 2, 3)},
}
"""Arguments of the functions that multiply by a weight, in their order."""


def use_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_weight: Callable[[Any], bool]) -> Use | None:
    """What a function that is given a weight does with it, where that is a product of tensors with it; else None."""
    name = getattr(func, "__name__", "")
    if name == "einsum":
        return _einsum(args, is_weight)
    if name not in _GIVEN or len(args) > len(_GIVEN[name]):
        return None
    given = {
        **dict(zip(_GIVEN[name], args, strict=False)),
        **{"weight" if k in ("other", "mat2") else k: v for k, v in kwargs.items()},
    }
    x, weight, bias = given.pop("input", None), given.pop("weight", None), given.pop("bias", None)
    if not isinstance(x, Tensor) or not is_weight(weight) or is_weight(x) or is_weight(bias):
        return None
    if name.startswith("conv"):
        start = {"stride": 1, "padding": 0, "dilation": 1} | ({"output_padding": 0} if "transpose" in name else {})
        return Use(x, weight, bias, kind=name, about=_settings(start | given, len(weight.shape) - 2))
    if name == "embedding":
        plain = given.get("max_norm") is None
        return Use(x, weight, kind=name, about=(("padding_idx", given.get("padding_idx")),)) if plain else None
    if given or len(weight.shape) != 2:
        return None
    return Use(x, weight, bias, turned=name != "linear")


def _settings(given: dict[str, Any], axes: int) -> tuple[tuple[str, Any], ...]:
    """How a convolution goes over its input, one number for each axis."""
    groups = given.pop("groups", 1)
    given["padding"] = 0 if given["padding"] == "valid" else given["padding"]
    each = {}
    for name, value in given.items():
        many = (value,) * axes if isinstance(value, int) else value if isinstance(value, str) else tuple(value)
        each[name] = many * axes if not isinstance(many, str) and len(many) < axes else many
    return (*sorted(each.items()), ("groups", groups))


def _einsum(args: tuple[Any, ...], is_weight: Callable[[Any], bool]) -> Use | None:
    """Where one axis of the inputs is summed up with one of the weight, whose other takes its place."""
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(operands) != 2 or is_weight(operands[0]) == is_weight(operands[1]):
        return None
    terms, arrow, out = equation.replace(" ", "").replace("...", "").partition("->")
    ours = is_weight(operands[0])
    (mine, theirs), (weight, x) = terms.split(",")[:: 1 if ours else -1], operands[:: 1 if ours else -1]
    hidden = x.ndim - len(theirs)  # axes that stand for "...", in front
    summed, new = [c for c in mine if c in theirs], [c for c in mine if c not in theirs]
    letters = (*theirs, *mine, *out)
    if not arrow or len(mine) != 2 or len(summed) != 1 or summed[0] in out or len(set(theirs)) < len(theirs):
        return None
    left = [c for c in theirs if c not in summed]
    if sorted(out) != sorted([*left, *new]) or not all(c.isalpha() for c in letters):
        return None
    if hidden and not all(term.startswith("...") for term in _dotted(equation, ours)):
        return None
    came = [*left, *new]
    order = [*range(hidden), *(hidden + came.index(c) for c in out)]
    moved = x.movedim(hidden + theirs.index(summed[0]), -1)
    return Use(moved, weight, turned=mine == summed[0] + new[0], back=lambda y: y.permute(order))


def _dotted(equation: str, weight_first: bool) -> tuple[str, str]:
    """The terms of an equation for the inputs and for what comes out."""
    terms, _, out = equation.replace(" ", "").partition("->")
    return terms.split(",")[1 if weight_first else 0], out


def _multiplied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a function gives that was handed a Product in place of a weight."""

    def kept(value: Any) -> bool:
        return isinstance(value, Product | Turned)

    def filled(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(filled, value))
        if isinstance(value, Product):
            return value.empty
        return value.product.empty.mT if isinstance(value, Turned) else value

    if getattr(func, "__name__", "") in ("t", "transpose", "permute") and kept(args[0]) and not kwargs:
        return getattr(args[0], func.__name__)(*args[1:])
    use = use_of(func, args, kwargs, kept)
    if use is not None:
        product: Product = getattr(use.weight, "product", use.weight)
        y = product.times(use)
        if use.bias is not None:
            y = y + (use.bias if use.kind == "linear" else use.bias.view(-1, *[1] * (len(product.shape) - 2)))
        return y if use.back is None else use.back(y)
    return func(*filled(args), **{name: filled(value) for name, value in kwargs.items()})


def listed_product(parts: list[dict[str, Any]], turned: bool) -> Product:
    """A Product of parts {"op", "args"}, as a checkpoint lists them."""
    return Product(*(MAPS[part["op"]](**part["args"]) for part in parts), turned=turned)


MAPS: dict[str, Callable[..., nn.Module]] = {
    "Linear": nn.Linear,
    "GroupedLinear": GroupedLinear,
    "SharedLinear": SharedLinear,
    "Conv1d": nn.Conv1d,
    "Conv2d": nn.Conv2d,
    "Conv3d": nn.Conv3d,
    "ConvTranspose1d": nn.ConvTranspose1d,
    "ConvTranspose2d": nn.ConvTranspose2d,
    "ConvTranspose3d": nn.ConvTranspose3d,
    "Embedding": nn.Embedding,
    "EmbeddingBag": nn.EmbeddingBag,
    "TransposedLinear": TransposedLinear,
    "IdentityRows": IdentityRows,
    "IdentityColumns": IdentityColumns,
}
"""What a chain is made of, by the name that plans and checkpoints give it."""

PARTS: dict[str, Callable[..., nn.Module]] = {
    **MAPS,
    **{kind: partial(Recurrent, kind) for kind in Recurrent.GATES},
    **{f"{kind}Cell": partial(Cell, kind) for kind in Recurrent.GATES},
    "MultiheadAttention": Attention,
    "Experts": Experts,
    "ConstantPad1d": nn.ConstantPad1d,
    "Sequential": Chain,
    "Product": listed_product,
}
"""Everything a checkpoint may list."""
