"""What goes into a layer: unfolding, moments, memory, and that the network itself is left alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_core.compression.calibration import MomentStore, calibration_samples, input_moments, moment_bytes
from lowrank_core.compression.unfold import draw_positions, input_rows, output_rows
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Dataset, data_hash
from lowrank_core.layers.spec import LayerSpec, inputs_first
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import fingerprint
from lowrank_core.networks.twin import twin

LAYERS = {
    "3x5 stride 2x1": nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2)),
    "dilated, grouped": nn.Conv2d(4, 6, 3, dilation=(1, 2), groups=2, bias=False),
    "reflect": nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
    "circular, stride 3": nn.Conv2d(4, 6, 3, stride=3, padding=1, padding_mode="circular"),
    "same, even kernel": nn.Conv2d(4, 6, (4, 3), padding="same"),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "Conv1d": nn.Conv1d(4, 6, 5, stride=2, padding=2),
    "Conv3d": nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), stride=(1, 2, 1)),
    "ConvTranspose1d": nn.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 2), groups=2, bias=False),
    "transposed, cropped": nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 2), padding=(2, 1), dilation=(1, 2)),
    "ConvTranspose3d": nn.ConvTranspose3d(4, 6, (1, 3, 2), stride=(1, 2, 3), output_padding=(0, 1, 2)),
    "Linear with tokens": nn.Linear(4, 6),
}


def example(layer: nn.Module, batch: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = {"Linear": (5, 4), "Conv1d": (4, 13), "Conv2d": (4, 9, 11), "Conv3d": (4, 3, 7, 5)}
    return torch.randn(batch, *sizes[type(layer).__name__.replace("Transpose", "")], generator=generator)


@pytest.mark.parametrize("name", LAYERS)
def test_weight_times_unfolded_input_is_the_output(name: str) -> None:
    layer = copy.deepcopy(LAYERS[name]).double()
    spec, x = LayerSpec.of(layer), example(layer).double()
    with torch.no_grad():
        expected = output_rows(spec, layer(x))
    index = draw_positions(len(expected), 20, seed=3)
    rows = input_rows(spec, x, index)
    assert rows.shape == (spec.groups, 20, spec.weights // spec.out_channels)
    weight = inputs_first(layer.weight.detach(), spec.groups) if spec.transposed else layer.weight.detach()
    computed = rows @ weight.reshape(spec.groups, -1, rows.shape[-1]).mT
    computed = computed.transpose(0, 1).flatten(1) + (0 if layer.bias is None else layer.bias.detach())
    assert torch.allclose(computed, expected[index], atol=1e-12)


def test_a_convolution_called_without_a_batch_axis() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    x = torch.randn(3, 6, 7, dtype=torch.float64)
    rows = input_rows(LayerSpec.of(layer), x, torch.arange(42))
    with torch.no_grad():
        assert torch.allclose(
            rows[0] @ layer.weight.flatten(1).mT, output_rows(LayerSpec.of(layer), layer(x)), atol=1e-12
        )


def test_moments_are_those_of_torch_unfold() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1)).eval()
    x = torch.randn(10, 3, 8, 8)
    profile = discover(model, x[:1])
    found = input_moments(model, profile.layers, Dataset(x), batch=4)
    with torch.no_grad():
        hidden = model[1](model[0](x))
    for name, inputs, stride in (("0", x, 1), ("2", hidden, 2)):
        rows = F.unfold(inputs.double(), 3, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
        assert found[name].rows == len(rows)
        assert torch.allclose(found[name].second[0], rows.mT @ rows / len(rows), atol=1e-6)
        assert torch.allclose(found[name].mean[0], rows.mean(0), atol=1e-6)
        assert found[name].second.dtype == torch.float64


def test_a_layer_called_twice_counts_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc(10 * x)

    x = torch.eye(2)
    model = Twice().eval()
    moment = input_moments(model, discover(model, x[:1]).layers, Dataset(x))["fc"]
    assert moment.rows == 4
    assert torch.allclose(moment.second[0], torch.eye(2, dtype=torch.float64) * (1 + 100) / 4)


def test_the_network_is_neither_changed_nor_hooked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before, x = fingerprint(model), torch.randn(6, 4)
    copied = twin(model)
    assert copied[0].weight is model[0].weight
    assert copied[0] is not model[0]
    input_moments(model, discover(model, x).layers, Dataset(x))
    assert fingerprint(model) == before
    assert model.training
    assert not model[0]._forward_hooks


def test_memory_is_bounded_and_too_large_a_layer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 5)).eval()
    x = torch.randn(8, 10)
    profile = discover(model, x)
    everything = sum(moment_bytes(layer.spec) for layer in profile.layers)
    complete = MomentStore(model, profile, lambda: Dataset(x), limit_bytes=everything)
    limit = moment_bytes(profile.layers[1].spec)
    small = MomentStore(model, profile, lambda: Dataset(x), limit_bytes=limit)
    for name in ("0", "1", "0"):
        assert torch.equal(small(name).second, complete(name).second)
        assert 0 < small.bytes <= limit
    with pytest.raises(InvalidModel, match="layer '2' takes"):
        small("2")


def test_samples_have_no_labels_and_depend_on_the_seed_alone() -> None:
    pool = Dataset({"a": torch.arange(100), "b": torch.arange(100) * 2}, torch.arange(100))
    first, again, other = (calibration_samples(pool, 10, seed) for seed in (1, 1, 2))
    assert first.targets is None
    assert len(first) == 10
    assert torch.equal(first.inputs["a"] * 2, first.inputs["b"])
    assert torch.equal(first.inputs["a"], again.inputs["a"])
    assert not torch.equal(first.inputs["a"], other.inputs["a"])
    assert torch.equal(calibration_samples(pool, 5, 1).inputs["a"], first.inputs["a"][:5])
    assert data_hash(first.inputs) == data_hash(again.inputs) != data_hash(other.inputs)
