"""Chains of stages as ONNX: what onnxruntime makes of them is what PyTorch computes."""

import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from lowrank_core.graphs.onnx_chain import example_input, onnx_chain
from lowrank_core.layers.spec import LayerSpec, Size, free_form, sharing
from lowrank_core.methods import METHODS, Method
from tests.awkward_layers import AWKWARD, EACH_ONCE

pytestmark = pytest.mark.usefixtures("one_thread")


def small(method: Method, spec: LayerSpec) -> tuple[LayerSpec, ...]:
    """The chain at rank 2, where there is one."""
    return method.stages(spec, tuple(min(2, top) for top in method.max_rank(spec)))


DENSE = [(awkward.name, (awkward.spec,), awkward.size) for awkward in AWKWARD]
FACTORISED = [(f"{awkward}-{method.name}", small(method, awkward.spec), awkward.size) for method, awkward in EACH_ONCE]
FREE = [
    (f"{awkward}-{name}-free", free_form(small(METHODS[name], awkward.spec)), awkward.size)
    for awkward in AWKWARD
    for name in ("svd", "tucker2")
    if awkward.name in ("groups-2", "conv1d", "linear", "linear-tokens", "up-3x2")
    and METHODS[name].obstacle(awkward.spec) is None
]
FREE += [("head-free", sharing(free_form(small(METHODS["svd"], LayerSpec(11, 6, table=True))), LayerSpec(6, 11)), (5,))]
REFUSED = "up-dilated"  # onnxruntime takes no output_padding beyond the stride


@pytest.mark.parametrize(
    ("stages", "size"),
    [
        pytest.param(stages, size, id=name)
        for name, stages, size in DENSE + FACTORISED + FREE
        if not name.startswith(REFUSED)
    ],
)
def test_a_chain_as_onnx_computes_what_pytorch_computes(stages: tuple[LayerSpec, ...], size: Size) -> None:
    program = onnx_chain(stages, size, 2)
    given = example_input(stages[0], size, 2)
    (ours,) = onnxruntime.InferenceSession(program.SerializeToString()).run(None, {"x": given})
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in program.graph.initializer}
    chain = torch.nn.Sequential(*(stage.build() for stage in stages)).eval()
    with torch.no_grad():
        for i, (stage, part) in enumerate(zip(stages, chain, strict=True)):
            weight = weights[f"w{i}"]
            part.weight.copy_(weight if stage.kernel or stage.table or stage.transposed else weight.T)
            if stage.identity:
                part.order.copy_(weights[f"o{i}"])
            if stage.bias:
                part.bias.zero_()
        theirs = chain(torch.from_numpy(given))
    assert ours.shape == tuple(theirs.shape)
    assert torch.allclose(torch.from_numpy(ours), theirs, atol=1e-4)


def test_one_vector_is_a_gemm() -> None:
    program = onnx_chain((LayerSpec(6, 4),), (), 3)
    assert [node.op_type for node in program.graph.node] == ["Gemm"]
