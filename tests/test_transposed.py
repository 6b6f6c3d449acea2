"""Transposed convolutions: 1 x 1 to fewer channels, then the window."""

import pytest
import torch
from awkward_layers import filled, seeded, up
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply
from lowrank_core.compression.checkpoint import load_checkpoint, write_checkpoint
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.compression.unfold import as_matrices, as_weight, input_rows, output_rows
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec, chain_multiplies
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.training.recipe import balance

pytestmark = pytest.mark.usefixtures("one_thread")


LAYERS = {
    "3x5": (up(6, 8, (3, 5)), (4, 5)),
    "strided": (up(7, 5, (4, 3), stride=(2, 3), padding=(1, 0)), (5, 4)),
    "output-padding": (up(5, 4, (3, 3), stride=(2, 2), padding=(1, 1), output_padding=(1, 0)), (4, 5)),
    "dilated-no-bias": (up(4, 6, (2, 3), dilation=(2, 1), bias=False), (5, 4)),
    "groups": (up(8, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (4, 5)),
    "1d": (up(6, 5, (4,), stride=(2,), padding=(1,)), (7,)),
    "3d": (up(4, 3, (2, 1, 3), stride=(2, 1, 1)), (2, 3, 4)),
}
every_layer = pytest.mark.parametrize(("spec", "size"), LAYERS.values(), ids=LAYERS)
SVD = METHODS["svd"]


def dense(spec: LayerSpec) -> nn.Module:
    return filled(spec.build(dtype=torch.float64))


@every_layer
def test_the_spec_is_the_module(spec, size):
    module, x = dense(spec), seeded((2, spec.in_channels, *size))
    assert LayerSpec.of(module) == spec
    assert module.weight.shape == spec.weight_shape
    assert spec.parameters == sum(p.numel() for p in module.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert module(x).shape[2:] == spec.out_size(size)
    assert spec.multiplies(size) == counter.get_total_flops() // 4


@every_layer
def test_rows_times_weight_are_the_outputs(spec, size):
    module, x = dense(spec), seeded((2, spec.in_channels, *size))
    with torch.no_grad():
        outputs = output_rows(spec, module(x))
        rows = input_rows(spec, x, torch.arange(len(outputs)))
        answers = (rows @ as_matrices(spec, module.weight).mT).transpose(0, 1).flatten(1)
        torch.testing.assert_close(answers + (module.bias if spec.bias else 0), outputs)
        assert torch.equal(as_weight(spec, as_matrices(spec, module.weight)), module.weight)


@every_layer
def test_the_chain_is_the_reconstructed_weight(spec, size):
    module, x = dense(spec), seeded((2, spec.in_channels, *size))
    weight = module.weight.detach().clone()
    found, (top,) = SVD.factorize(spec, weight), SVD.max_rank(spec)
    for rank in range(1, top + 1):
        stages = SVD.stages(spec, (rank,))
        chain = nn.Sequential(*(stage.build(dtype=torch.float64) for stage in stages))
        with torch.no_grad():
            for part, value in zip(chain, found.weights((rank,)), strict=True):
                part.weight.copy_(value)
            if spec.bias:
                chain[1].bias.copy_(module.bias)
            with FlopCounterMode(display=False) as counter:
                answers = chain(x)
        assert chain_multiplies(stages, size) == counter.get_total_flops() // 4
        left = found.reconstruct((rank,)) - weight
        assert found.error((rank,)) == pytest.approx(float(left.norm() / weight.norm()), abs=1e-9)
        with torch.no_grad():
            module.weight.copy_(found.reconstruct((rank,)))
            torch.testing.assert_close(answers, module(x))
            chain[0].weight.mul_(100)
            chain[1].weight.div_(100)
            balance(chain)
            torch.testing.assert_close(chain(x), answers)
            sides = [float(part.weight.norm()) for part in chain]
            assert sides[0] == pytest.approx(sides[1])
    assert found.error((top,)) < 1e-9


def test_a_planted_rank_is_found():
    spec = LAYERS["strided"][0]
    weight = (seeded((7, 2)) @ seeded((2, 5 * 12), 1)).reshape(spec.weight_shape)
    assert SVD.factorize(spec, weight).error((2,)) < 1e-6
    assert SVD.factorize(spec, weight).error((1,)) > 1e-2


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = filled(nn.ConvTranspose2d(8, 6, 4, 2, 1).double())
        self.last = filled(nn.ConvTranspose2d(6, 3, (3, 2), groups=3, bias=False).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(x).relu())


def test_a_decoder_is_compressed_corrected_and_loaded(tmp_path):
    model, x = Decoder(), seeded((2, 8, 4, 5))
    profile = discover(model, x)
    assert [layer.name for layer in profile.layers] == ["up", "last"]
    assert profile.rest.multiplies == 0
    factors = FactorStore(model, profile)
    plan = RankPlan.of(profile.fingerprint, {"up": Choice("svd", (4,)), "last": Choice("svd", (1,))})
    plain, corrected = (apply(model, profile, plan, factors) for _ in range(2))
    assert sum(p.numel() for p in plain.parameters()) == plan_cost(profile, plan).parameters
    pool = Dataset(seeded((60, 8, 4, 5), 3))
    overlay = Corrector(model, profile, factors, lambda: pool)(plan, Correction())
    assert set(overlay) == {"up.1.weight", "up.1.bias", "last.1.weight"}
    load_overlay(corrected, overlay)
    with torch.no_grad():
        far, near = (float((copy(pool.inputs) - model(pool.inputs)).norm()) for copy in (plain, corrected))
    assert near < 0.95 * far
    path = tmp_path / "c"
    write_checkpoint(corrected, profile, plan, path, plan_document=plan.to_json(), provenance={})
    torch.testing.assert_close(load_checkpoint(model, path).model(x), corrected(x), rtol=0, atol=0)


def test_an_output_size_cannot_be_passed_on():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(x, output_size=(12, 12))

    (skipped,) = discover(Sized(), torch.ones(1, 2, 5, 5)).skipped
    assert "output_size" in skipped.reason
