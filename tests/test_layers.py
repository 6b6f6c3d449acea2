"""LayerSpec: shapes and counts are those of PyTorch's own modules."""

import json
from dataclasses import replace

import pytest
import torch
from awkward_layers import AWKWARD, conv
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.layers.spec import LayerSpec, build_part, chain_additions, chain_multiplies

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
every_layer = pytest.mark.parametrize("awkward", AWKWARD, ids=str)


@every_layer
def test_counts_and_shapes_are_those_of_the_module(awkward):
    spec = awkward.spec
    module = spec.build(device="meta")
    with FlopCounterMode(display=False) as counter:
        out = module(awkward.inputs(1, device="meta", dtype=torch.float32))
    assert spec.multiplies(awkward.size) == counter.get_total_flops() // 2
    assert spec.parameters == sum(p.numel() for p in module.parameters())
    assert spec.weight_shape == tuple(module.weight.shape)
    assert spec.weights == module.weight.numel()
    assert spec.out_size(awkward.size) == tuple(out.shape[2:] if spec.kernel else out.shape[1:-1])


@every_layer
def test_spec_survives_the_module_and_json(awkward):
    spec = replace(awkward.spec, gates=0)  # what a module is part of cannot be seen in it
    assert LayerSpec.of(spec.build(device="meta")) == spec
    arguments = json.loads(json.dumps(spec.arguments))
    assert LayerSpec.of(build_part(spec.op, arguments, device="meta")) == spec


@every_layer
def test_additions_are_counted_one_by_one(awkward):
    """A sum of n products takes n - 1 additions; a bias is one more."""
    spec = awkward.spec
    outputs = spec.out_channels * torch.Size(spec.out_size(awkward.size)).numel()
    products = spec.multiplies(awkward.size)
    assert spec.additions(awkward.size) == products - outputs + (outputs if spec.bias else 0)


def test_a_3x4_matrix_times_a_vector():
    matrix = LayerSpec(4, 3, bias=False)
    assert (matrix.parameters, matrix.multiplies(()), matrix.additions(())) == (12, 12, 9)


def test_a_chain_is_counted_at_the_size_that_reaches_each_stage():
    first, second = conv(3, 4, (3, 1), stride=(2, 1), bias=False), conv(4, 5, (1, 3))
    assert first.out_size((9, 8)) == (4, 8)
    assert chain_multiplies((first, second), (9, 8)) == 4 * 3 * 3 * (4 * 8) + 5 * 4 * 3 * (4 * 6)
    assert chain_additions((first, second), (9, 8)) == (4 * 8) * 4 * (9 - 1) + (4 * 6) * 5 * 12


def test_valid_padding_is_none():
    assert LayerSpec.of(nn.Conv2d(2, 3, 3, padding="valid")).padding == (0, 0)


def test_pointwise_and_along_keep_what_is_theirs():
    spec = conv(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=2, padding_mode="reflect")
    assert spec.pointwise(4, 8) == conv(4, 8, (1, 1), groups=2, bias=False)
    assert spec.along(0, 4, 8) == replace(
        spec, out_channels=8, kernel=(3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 1), bias=False
    )
    assert spec.along(1, 8, 6, bias=True) == replace(
        spec, in_channels=8, kernel=(1, 5), stride=(1, 1), padding=(0, 2), dilation=(1, 3)
    )


@pytest.mark.parametrize("module", [nn.LSTM(2, 3), nn.ReLU()], ids=lambda m: type(m).__name__)
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=type(module).__name__):
        LayerSpec.of(module)


@pytest.mark.parametrize("op", ["LSTM", "linear", "__class__", ""])
def test_unknown_parts_are_refused(op):
    with pytest.raises(ValueError, match="op must be one of Linear"):
        build_part(op, {})
