"""A zoo: many odd modules and small networks, with what can be compressed in each and what cannot, and why.

Anything that must hold for every network can be tried on all of them: discovery, compression, every export.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from awkward_layers import seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, rnn
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

TOKENS = torch.arange(21).reshape(3, 7) * 5 % 11


@dataclass(frozen=True)
class Specimen:
    """A network with the inputs it is called with, a batch of 3.

    layers: the names of all layers that can be compressed. skipped: for others a word of the reason.
    tolerance: how far outputs at full rank may be from the dense ones, relative to the largest. unsaved: a word of the
    reason why no file can hold it.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Any
    layers: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 1e-4
    unsaved: str = ""

    def __str__(self) -> str:
        return self.name

    def build(self) -> nn.Module:
        """The network in eval mode, with the same weights at each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()


class Calls(nn.Module):
    """A network whose forward is the given function of it and its inputs."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._calls = forward

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._calls(self, *inputs, **named)


def floats(*shape: int, **factory: Any) -> Tensor:
    return seeded((3, *shape)).to(**{"dtype": torch.float32, **factory})


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


class OwnForward(nn.Linear):
    """A subclass of Linear that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() + self.weight.sum()


class Begins(nn.Conv3d):
    """A subclass that only begins with other arguments."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)


class SamePadding(nn.Conv2d):
    """A convolution that pads by the size of its input, as TensorFlow's do."""

    def forward(self, x: Tensor) -> Tensor:
        amounts = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            amounts += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, amounts), self.weight, self.bias, self.stride, groups=self.groups)


class TimesTransposed(nn.Linear):
    """As Falcon's."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Casts(nn.Linear):
    """As Whisper's, which also asks for the type."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.dtype == x.dtype
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Standardised(nn.Conv2d):
    """A convolution that computes its weight anew at each call, as those of ResNetV2 do."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / deviation, self.bias)


class Scaled(nn.Embedding):
    """As the word embeddings of BART and Gemma, whose scale is of the weight's type."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * torch.tensor(self.embedding_dim**0.5).to(self.weight.dtype)


def scaled_and_tied() -> nn.Module:
    """Two scaled tables and a head of one weight, and a table that holds it too and never runs, as BART has them."""
    shared, head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
    encoder, decoder = Scaled(11, 6), Scaled(11, 6)
    for module in (encoder, decoder, head):
        module.weight = shared.weight
    return Calls(
        lambda self, x, y: self.head(self.encoder(x).mean(1, keepdim=True) + self.decoder(y)),
        **{"shared": shared, "encoder": encoder, "decoder": decoder, "head": head},
    )


def bare() -> nn.Module:
    """Products with parameters of a module's own, one of them behind an nn.Linear of its own."""
    shapes = {"up": (8, 9), "down": (6, 9), "mix": (7, 6), "shift": (2, 6), "table": (11, 6)}
    parameters = {name: nn.Parameter(seeded(shape).float() / 3) for name, shape in shapes.items()}

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.fc(torch.tanh(x @ self.up))
        x = torch.matmul(x, self.down.t()) + self.shift[0] + F.embedding(x.argmax(-1) % 11, self.table)
        return torch.einsum("...i,oi->...o", x, self.mix)

    return Calls(forward, fc=nn.Linear(9, 9), **parameters)


class LowRankAdapter(nn.Module):
    """A Linear with an adapter beside it, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 6), nn.Linear(8, 3, bias=False), nn.Linear(3, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Noise(nn.Module):
    """A parametrization that is another one at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def parametrized(module: nn.Module, parametrization: nn.Module, name: str = "weight") -> nn.Module:
    parametrize.register_parametrization(module, name, parametrization)
    return module


def tied(embedding: nn.Module, *between: nn.Module, bias: bool = False) -> nn.Module:
    head = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=bias)
    head.weight = embedding.weight
    return nn.Sequential(embedding, *between, head)


def tied_lstm() -> nn.Module:
    model = Calls(
        lambda self, x: self.head(self.rnn(self.table(x))[0]),
        head=nn.Linear(6, 11), table=nn.Embedding(11, 6, padding_idx=0), rnn=nn.LSTM(6, 6, batch_first=True),
    )  # fmt: skip
    model.head.weight = model.table.weight
    return model


def tied_and_read() -> nn.Module:
    """Two tables that hold a third one's weight, which never runs and is given to a function, as BART once had it."""
    model = Calls(
        lambda self, x, y: F.linear(self.fc(self.encoder(x) + self.decoder(y)), self.shared.weight, self.bias),
        shared=nn.Embedding(11, 6), encoder=nn.Embedding(11, 6), decoder=nn.Embedding(11, 6, padding_idx=0),
        fc=nn.Linear(6, 6), bias=nn.Parameter(torch.ones(11)),
    )  # fmt: skip
    model.encoder.weight = model.decoder.weight = model.shared.weight
    return model


def held_twice() -> nn.Module:
    """A Linear whose weight another one holds, whose parent gives it to a function."""
    inside = Calls(lambda self, x: x @ self.fc.weight.T, fc=nn.Linear(8, 8))
    model = seq(inside, nn.Linear(8, 8))
    model[1].weight = inside.fc.weight
    return Calls(lambda self, x: self.second(self.first(x)), first=inside, second=model[1])


def tied_three() -> nn.Module:
    """Two tables and a head with one weight, as in T5; the head has a bias and is called twice."""
    model = Calls(
        lambda self, x, y: self.head(self.head(self.middle(self.source(x) + self.target(y)))[..., :6]),
        head=nn.Linear(6, 11), source=nn.Embedding(11, 6, padding_idx=0), target=nn.Embedding(11, 6),
        middle=nn.Linear(6, 6),
    )  # fmt: skip
    model.head.weight = model.target.weight = model.source.weight
    return model


def twins(a: nn.Module, b: nn.Module) -> nn.Module:
    b.weight = a.weight
    return Calls(lambda self, x: self.b(self.a(x).relu()), a=a, b=b)


def steps(cell: nn.Module) -> nn.Module:
    """A cell called step by step along a sequence, then a head."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)

    return Calls(forward, cell=cell, head=nn.Linear(5, 4))


def packed(module: nn.Module) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        together = rnn.pack_padded_sequence(x, [7, 2, 5][: len(x)], batch_first=True, enforce_sorted=False)
        outputs, last = self.rnn(together)
        padded, _ = rnn.pad_packed_sequence(outputs, batch_first=True)
        return torch.cat([padded.flatten(1), (last[0] if isinstance(last, tuple) else last)[0]], dim=1)

    return Calls(forward, rnn=module)


def quantised() -> nn.Module:
    inside = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 6)), {nn.Linear})
    return nn.Sequential(inside, nn.Linear(6, 4))


def shared_twice() -> nn.Module:
    one = nn.Linear(6, 6)
    return nn.ModuleDict({"a": one, "inner": nn.ModuleDict({"b": one, "c": nn.Linear(6, 5)})})


def nested() -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.parts["inner"]["c"](self.parts["inner"]["b"](self.parts["a"](x).relu()).relu())

    return Calls(forward, parts=shared_twice())


def reader(function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    return Calls(function, **modules)


def begins_otherwise() -> nn.Module:
    """Recurrent layers and an attention whose classes only begin otherwise than those of torch.nn."""

    def begin(self: nn.Module, *sizes: Any, **options: Any) -> None:
        super(type(self), self).__init__(*sizes, **options)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.4, 0.4)

    rnn, cell, attention = (
        type(f"Own{known.__name__}", (known,), {"__init__": begin})
        for known in (nn.LSTM, nn.GRUCell, nn.MultiheadAttention)
    )
    return Calls(
        lambda self, x: self.cell(self.rnn(self.attention(x, x, x)[0])[0][:, -1]),
        rnn=rnn(8, 6, batch_first=True), cell=cell(6, 5), attention=attention(8, 2, batch_first=True),
    )  # fmt: skip


def transformer() -> nn.Module:
    inside = nn.Transformer(8, 2, 1, 1, 12, batch_first=True, dropout=0.0)
    return Calls(lambda self, x: self.net(x, x[:, :4]), net=inside)


ATTENTION = ("in_proj.q", "in_proj.k", "in_proj.v", "out_proj")

ZOO = (
    # Convolutions
    Specimen("strided-1x1", lambda: seq(nn.Conv2d(6, 8, 1, stride=2)), floats(6, 8, 7), ("0",)),
    Specimen("depthwise-3x3", lambda: seq(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)), floats(6, 8, 7), ("1",),
             {"0": "3 + 3"}),
    Specimen("depthwise-7x7", lambda: seq(nn.Conv2d(6, 6, 7, padding=3, groups=6)), floats(6, 8, 9), ("0",)),
    Specimen("grouped", lambda: seq(nn.Conv2d(6, 8, 3, groups=2)), floats(6, 8, 9), ("0",)),
    Specimen("dilated", lambda: seq(nn.Conv2d(4, 6, 3, dilation=(1, 2))), floats(4, 8, 9), ("0",)),
    Specimen("circular", lambda: seq(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")), floats(4, 8, 9), ("0",)),
    Specimen("same", lambda: seq(nn.Conv2d(4, 6, (2, 3), padding="same")), floats(4, 8, 9), ("0",)),
    Specimen("up", lambda: seq(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)), floats(4, 5, 6), ("0",)),
    Specimen("up-to-a-size", lambda: Calls(lambda self, x: self.up(x, output_size=(11, 13)),
             up=nn.ConvTranspose2d(2, 3, 3, stride=2)), floats(2, 5, 6), (), {"up": "output_size"}),
    Specimen("conv1d", lambda: seq(nn.Conv1d(4, 6, 5, stride=2)), floats(4, 11), ("0",)),
    Specimen("conv3d", lambda: seq(nn.Conv3d(3, 4, (1, 2, 3))), floats(3, 4, 5, 6), ("0",)),
    # Recurrent
    Specimen("lstm-projected", lambda: seq(nn.LSTM(6, 5, bidirectional=True, proj_size=3, batch_first=True)),
             floats(7, 6),
             tuple(f"0.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr"))),
    Specimen("gru-in-a-list", lambda: Calls(lambda self, x: self.parts[1](self.parts[0](x)[0])[0],
             parts=nn.ModuleList([nn.GRU(6, 5), nn.RNN(5, 4, nonlinearity="relu")])), floats(7, 6),
             tuple(f"parts.{n}.weight_{kind}_l0" for n in (0, 1) for kind in ("ih", "hh"))),
    Specimen("lstm-packed", lambda: packed(nn.LSTM(6, 5, batch_first=True, bidirectional=True)), floats(7, 6),
             tuple(f"rnn.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh"))),
    Specimen("gru-packed", lambda: packed(nn.GRU(6, 5, 2, batch_first=True)), floats(7, 6),
             tuple(f"rnn.weight_{kind}_l{n}" for n in (0, 1) for kind in ("ih", "hh"))),
    Specimen("lstm-cell", lambda: steps(nn.LSTMCell(6, 5)), floats(7, 6), ("cell.weight_ih", "cell.weight_hh", "head")),
    Specimen("gru-cell", lambda: steps(nn.GRUCell(6, 5, bias=False)), floats(7, 6),
             ("cell.weight_ih", "cell.weight_hh", "head")),
    Specimen("rnn-cell", lambda: steps(nn.RNNCell(6, 5, nonlinearity="relu")), floats(7, 6),
             ("cell.weight_ih", "cell.weight_hh", "head")),
    Specimen("weight-norm-lstm", lambda: seq(parametrizations.weight_norm(nn.LSTM(6, 5), "weight_hh_l0")),
             floats(7, 6), (), {"0": "parametrization"}),
    # Tables
    Specimen("embedding", lambda: seq(nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 4)), TOKENS, ("0", "1")),
    Specimen("embedding-sparse", lambda: seq(nn.Embedding(11, 6, sparse=True)), TOKENS, ("0",)),
    Specimen("embedding-max-norm", lambda: seq(nn.Embedding(11, 6, max_norm=1.0)), TOKENS, (), {"0": "max_norm"}),
    Specimen("bag", lambda: seq(nn.EmbeddingBag(11, 6)), TOKENS, ("0",)),
    Specimen("bag-weighted", lambda: Calls(
        lambda self, x, share: self.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1]),
                                        per_sample_weights=share.flatten()),
        bag=nn.EmbeddingBag(11, 6, mode="sum", padding_idx=3)), (TOKENS, floats(7)), ("bag",)),
    Specimen("bag-max", lambda: seq(nn.EmbeddingBag(11, 6, mode="max")), TOKENS, (), {"0": "largest"}),
    Specimen("tied", lambda: tied(nn.Embedding(11, 6), nn.Tanh()), TOKENS, ("0",)),
    Specimen("tied-lstm", tied_lstm, TOKENS, ("table", "rnn.weight_ih_l0", "rnn.weight_hh_l0")),
    # Attention
    Specimen("attention", lambda: Calls(lambda self, x: self.att(x, x, x)[0], att=nn.MultiheadAttention(8, 2)),
             floats(5, 8), tuple(f"att.{part}" for part in ATTENTION)),
    Specimen("attention-wide-keys", lambda: Calls(lambda self, x, y: self.att(x, y, y)[0],
             att=nn.MultiheadAttention(8, 2, kdim=6, vdim=6)), (floats(5, 8), floats(5, 6)), (), {"att": "kdim"}),
    Specimen("transformer", transformer, floats(5, 8), (
        *(f"net.{side}.layers.0.{name}" for side, attentions in
          (("encoder", ["self_attn"]), ("decoder", ["self_attn", "multihead_attn"]))
          for name in (*(f"{attention}.{part}" for attention in attentions for part in ATTENTION),
                       "linear1", "linear2")),
    )),
    # Weights that are computed
    Specimen("weight-norm", lambda: seq(parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 5)), floats(8),
             ("0", "1")),
    Specimen("weight-norm-of-old", lambda: seq(old_weight_norm(nn.Conv1d(6, 5, 3)), nn.Conv1d(5, 4, 1)), floats(6, 9),
             ("0", "1")),
    Specimen("spectral-norm", lambda: seq(parametrizations.spectral_norm(nn.Conv2d(4, 6, 3))), floats(4, 5, 6), ("0",)),
    Specimen("spectral-norm-of-old", lambda: seq(old_spectral_norm(nn.Linear(8, 6))), floats(8), ("0",)),
    Specimen("orthogonal", lambda: seq(parametrizations.orthogonal(nn.Linear(8, 6))), floats(8), ("0",)),
    Specimen("symmetric-table", lambda: seq(parametrized(nn.Embedding(11, 11), Symmetric())), TOKENS, ("0",)),
    Specimen("pruned", lambda: seq(prune.l1_unstructured(nn.Linear(8, 6), "weight", 0.5)), floats(8), ("0",)),
    Specimen("noisy", lambda: seq(parametrized(nn.Linear(8, 6), Noise())), floats(8), (), {"0": "another one at each"}),
    # Shapes, types, ways to call
    Specimen("lazy", lambda: seq(nn.LazyLinear(5)), floats(8)),
    Specimen("half", lambda: seq(nn.Linear(8, 6).half()), floats(8, dtype=torch.float16), ("0",), {}, 5e-3),
    Specimen("bfloat16", lambda: seq(nn.Linear(8, 6), nn.Linear(6, 5)).bfloat16(), floats(8, dtype=torch.bfloat16),
             ("0", "1"), {}, 4e-2),
    Specimen("complex", lambda: seq(nn.Linear(8, 6, dtype=torch.complex64)), floats(8, dtype=torch.complex64), (),
             {"0": "complex64"}),
    Specimen("no-outputs", lambda: seq(nn.Linear(8, 0)), floats(8), (), {"0": "empty"}),
    Specimen("no-inputs", lambda: seq(nn.Linear(0, 6)), floats(0), (), {"0": "empty"}),
    Specimen("one-number", lambda: seq(nn.Linear(1, 1)), floats(1), ("0",)),
    Specimen("identity", lambda: seq(nn.Identity()), floats(8)),
    Specimen("never-called", lambda: Calls(lambda self, x: self.used(x), used=nn.Linear(8, 6), dead=nn.Linear(8, 6)),
             floats(8), ("used",), {"dead": "never ran"}),
    Specimen("named-inputs", lambda: Calls(lambda self, x: self.fc(input=self.conv(input=x).flatten(1)),
             conv=nn.Conv1d(4, 5, 3), fc=nn.Linear(25, 6)), {"x": floats(4, 7)}, ("conv", "fc")),
    Specimen("nested-and-shared", nested, floats(6), ("parts.a", "parts.inner.c")),
    Specimen("bilinear", lambda: Calls(lambda self, x: self.pair(x, x), pair=nn.Bilinear(6, 6, 3)), floats(6), (),
             {"pair": "bare parameters"}),
    Specimen("begins-otherwise", lambda: seq(Begins(3, 5), nn.Conv3d(5, 4, 1)), floats(3, 2, 5, 6), ("0", "1")),
    Specimen("same-padding", lambda: seq(SamePadding(4, 6, (3, 5), stride=2), SamePadding(6, 6, 3, groups=2)),
             floats(4, 7, 9), ("0", "1")),
    Specimen("times-transposed", lambda: seq(TimesTransposed(8, 6), nn.Linear(6, 4)), floats(5, 8), ("0", "1")),
    Specimen("casts", lambda: seq(Casts(8, 6), Casts(6, 6, bias=False), nn.Linear(6, 4)), floats(8), ("0", "1", "2")),
    Specimen("standardised", lambda: seq(Standardised(4, 6, 3), nn.Conv2d(6, 4, 1)), floats(4, 7, 8), ("1",),
             {"0": "a special kind of Conv2d, and Standardised '0' gives its weight to std_mean()"}),
    Specimen("scaled-table", lambda: seq(Scaled(11, 6), nn.Linear(6, 4)), TOKENS, ("0", "1")),
    Specimen("scaled-and-tied", scaled_and_tied, (TOKENS, TOKENS), ("encoder",)),
    Specimen("bare-parameters", bare, floats(4, 8), ("up", "fc", "down", "table", "mix"), {"Calls": "bare parameters"}),
    Specimen("bare-windows", lambda: Calls(
        lambda self, x: F.conv_transpose1d(F.conv1d(x, self.there, None, 2, 1), self.back, self.bias, 2, 1),
        there=nn.Parameter(floats(4, 5)), back=nn.Parameter(floats(6, 4)), bias=nn.Parameter(floats(2)[0, :].repeat(3)),
    ), floats(4, 9), ("there", "back")),
    Specimen("reads-a-child", lambda: Calls(
        lambda self, x: self.fc(F.linear(x, self.qkv.weight, torch.cat([self.qkv.bias[:6], self.more]))),
        qkv=nn.Linear(8, 9), fc=nn.Linear(9, 4), more=nn.Parameter(torch.ones(3))), floats(5, 8), ("qkv", "fc")),
    Specimen("runs-and-is-read", lambda: Calls(
        lambda self, x: self.fc(x) + F.linear(x.flip(-1), self.fc.weight), fc=nn.Linear(8, 6)), floats(8), ("fc",)),
    Specimen("own-forward", lambda: seq(OwnForward(8, 6), nn.Linear(6, 4)), floats(8), ("1",), {"0": "special kind"}),
    Specimen("adapter", lambda: seq(LowRankAdapter()), floats(8), ("0.base", "0.down", "0.up")),
    Specimen("bare-parameter", lambda: Calls(lambda self, x: F.linear(x, self.weight), weight=nn.Parameter(
        floats(8))), floats(8), ("Calls",)),
    Specimen("reads-the-dtype", lambda: reader(lambda self, x: self.wo(x.to(self.wo.weight.dtype)) * len(self.wo.bias),
             wo=nn.Linear(8, 6)), floats(8), ("wo",)),
    Specimen("reads-the-weight", lambda: reader(
        lambda self, x: self.fc(x * self.fc.weight.sum(0)) * self.fc.in_features,
        fc=nn.Linear(8, 6, bias=False)), floats(8), (), {"fc": "computes with its weight"}),
    Specimen("both-ways", lambda: reader(
        lambda self, x: F.linear(self.fc(x), self.fc.weight.T, self.bias) * self.fc.in_features,
        fc=nn.Linear(8, 6), bias=nn.Parameter(torch.ones(8))), floats(8), ("fc",)),
    Specimen("both-ways-bare", lambda: Calls(
        lambda self, x: torch.einsum("...o,oi->...i", torch.tanh(x @ self.code.t()), self.code) @ self.code.mT,
        code=nn.Parameter(floats(5, 9)[0])), floats(4, 9), ("code",)),
    Specimen("table-as-head", lambda: Calls(
        lambda self, x: F.linear(self.fc(self.table(x) * 6**0.5), self.table.weight, self.bias),
        table=nn.Embedding(11, 6, padding_idx=1), fc=nn.Linear(6, 6), bias=nn.Parameter(torch.ones(11))), TOKENS,
        ("table", "fc")),
    Specimen("table-three-ways", lambda: Calls(
        lambda self, x: (self.table(x) @ torch.transpose(self.table.weight.to(torch.float32), 0, 1)).softmax(-1)
        @ self.table.weight, table=nn.Embedding(11, 6)), TOKENS, ("table",)),
    Specimen("reads-the-sizes", lambda: reader(
        lambda self, x: self.conv(x.to(self.conv.weight)).view(len(x), self.conv.weight.shape[0], -1)
        * self.conv.out_channels * self.conv.in_channels * self.conv.stride[1] * self.conv.kernel_size[0]
        * self.conv.weight.dim() * self.conv.weight.shape[1],
        conv=nn.Conv2d(4, 6, 3, stride=2)), floats(4, 7, 8), ("conv",)),
    Specimen("scripted", lambda: seq(torch.jit.script(nn.Sequential(nn.Linear(8, 6))), nn.Linear(6, 4)), floats(8),
             ("1",), {"0.0": "bare parameters"}),
    Specimen("begins-otherwise", begins_otherwise, floats(5, 8), (
        "rnn.weight_ih_l0", "rnn.weight_hh_l0", "cell.weight_ih", "cell.weight_hh",
        *(f"attention.{part}" for part in ATTENTION))),
    Specimen("one-cell", lambda: nn.GRUCell(6, 5), floats(6), ("weight_ih", "weight_hh")),
    Specimen("one-attention", lambda: nn.MultiheadAttention(8, 2, batch_first=True), (floats(5, 8),) * 3, ATTENTION),
    Specimen("one-bag", lambda: nn.EmbeddingBag(11, 6), TOKENS, ("EmbeddingBag",)),
    Specimen("tied-and-read", tied_and_read, (TOKENS, TOKENS), ("encoder", "fc")),
    Specimen("held-twice", held_twice, floats(8), ("first.fc",)),
    Specimen("tied-three", tied_three, (TOKENS, TOKENS), ("source", "middle")),
    Specimen("tied-linears", lambda: twins(nn.Linear(6, 6), nn.Linear(6, 6)), floats(6), ("a",)),
    Specimen("tied-convolutions", lambda: twins(nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3)), floats(4, 9), (),
             {"a": "shared with 'b'", "b": "shared with 'a'"}),
    Specimen("dynamic-int8", quantised, floats(8),
             ("1",), {"0.0": "quantised"}, unsaved="not a tensor"),
)  # fmt: skip
