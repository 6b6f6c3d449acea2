"""Networks as ONNX in memory: what they are given and give, at any batch size; a clear refusal where it cannot be."""

from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidModel
from lowrank_core.graphs.exporting import OnnxNetwork, exported_program, onnx_program
from lowrank_core.running import own_process


class Named(nn.Module):
    """Keyword inputs, of which one broadcasts; a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"answer": self.fc(tokens).mean(1) * scale, "unused": tokens}


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 8)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j1(x)


def answers(proto: onnx.ModelProto, feed: dict[str, Tensor], output: str = "output") -> Tensor:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (found,) = session.run([output], {name: value.numpy() for name, value in feed.items()})
    return torch.from_numpy(found)


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("example", [seeded(1, 3, 8, 8), seeded(4, 3, 8, 8)], ids=["batch-1", "batch-4"])
def test_any_batch_size_and_the_names_of_the_weights(example: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).train()
    proto = onnx_program(model, example)
    onnx.checker.check_model(proto)
    assert model.training
    assert "".join(capfd.readouterr()) == ""
    assert {"0.weight", "0.bias", "3.weight", "3.bias"} <= {weight.name for weight in proto.graph.initializer}
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 2, 7):
        x = seeded(batch, 3, 8, 8)
        torch.testing.assert_close(answers(proto, {"input": x}), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_by_keyword_and_by_position(batch: int) -> None:
    model = Named().eval()
    x, scale = seeded(batch, 6, 4), seeded(batch, 3)
    expected = model(x, scale)["answer"]
    cases: list[tuple[Any, tuple[str, str]]] = [
        ({"scale": scale, "tokens": x}, ("tokens", "scale")),
        ((x, scale), ("input_0", "input_1")),
    ]
    for given, names in cases:
        proto, feed = onnx_program(model, given), dict(zip(names, (x, scale), strict=True))
        found = answers(proto, feed, "answer")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(answers(proto, feed, "unused"), x)


def test_encoder_layers_are_not_fused_and_the_switch_is_put_back() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = seeded(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(answers(onnx_program(model, x), {"input": x}), model(x), rtol=1e-5, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Branches(), r"layer '1' stops at `return x if x.sum\(\) > 0 else -x`: .* known only when it runs"),
        (FixedBatch(), "one batch size only"),
    ],
)
def test_a_network_that_is_no_graph(
    part: nn.Module, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_process, "_alone", True)  # as in a command
    model = nn.Sequential(nn.Linear(8, 8), part)
    for make in (onnx_program, exported_program):
        with pytest.raises(InvalidModel, match=words) as caught:
            make(model, seeded(2, 8))
        assert "safetensors" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == ""


def test_an_operator_that_onnx_lacks() -> None:
    with pytest.raises(InvalidModel, match=r"written as ONNX: layer '0' calls bessel_j1: .*\.pt2"):
        onnx_program(nn.Sequential(Bessel()), seeded(2, 8))


def test_attention_with_a_bias_is_written_though_its_numbers_lie_otherwise_once_taken_apart() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.bias = nn.Linear(8, 8), nn.Parameter(torch.randn(1, 2, 5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.q(x).reshape(-1, 5, 2, 4).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=self.bias)
            return mixed.transpose(1, 2).contiguous().view(-1, 5, 8)

    model, x = Biased().eval(), torch.randn(3, 5, 8)
    (answered,) = OnnxNetwork(onnx_program(model, x).SerializeToString())(x)
    assert torch.allclose(answered, model(x), atol=1e-5)
