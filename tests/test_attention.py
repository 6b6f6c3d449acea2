"""Attention: q, k, v and the output are layers of their own, and the fused paths leave none of them out."""

from pathlib import Path

import pytest
import torch
from awkward_layers import filled, seeded
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core import Choice, RankPlan, Workspace, load_checkpoint
from lowrank_core.compression.apply import apply, chain_at
from lowrank_core.compression.calibration import input_moments
from lowrank_core.compression.correct import Corrector
from lowrank_core.compression.factors import FactorStore
from lowrank_core.exports import EXPORTS
from lowrank_core.exports.safetensors import export_checkpoint
from lowrank_core.layers.attention import factored_attention, watched_attention
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.parts import Attention
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, bias_at, weight_at
from lowrank_core.networks.twin import twin
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost

pytestmark = pytest.mark.usefixtures("one_thread")


class Cross(nn.Module):
    """Queries look at other tokens, which are longer than they are."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(12, 3, dtype=torch.float64, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.att(x, y, y.flip(-1), need_weights=False)[0]


def encoder(layers: int = 2, **options: object) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, dtype=torch.float64, **options)
    return filled(nn.TransformerEncoder(layer, layers))


def plan_for(profile: ModelProfile, rank: int | None = None, only: str = "") -> RankPlan:
    """Every layer with `only` in its name at this rank, or at its largest."""
    tops = {la.name: METHODS["svd"].max_rank(la.spec)[0] for la in profile.layers if only in la.name}
    return RankPlan.of(profile.fingerprint, {n: Choice("svd", (min(top, rank or top),)) for n, top in tops.items()})


def compressed(model: nn.Module, profile: ModelProfile, plan: RankPlan) -> nn.Module:
    return apply(model, profile, plan, FactorStore(model, profile))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-9 * float(other.abs().max()), equal_nan=True)


CALLS = {
    "weights": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": torch.tensor([[False] * 7, [False] * 4 + [True] * 3])},
    "mask": {"attn_mask": torch.triu(torch.ones(5, 7, dtype=torch.bool), 2), "need_weights": False},
    "float mask": {"attn_mask": seeded((5, 7), 3)},
    "mask of each head": {"attn_mask": seeded((6, 5, 7), 4) > 1},
    "both": {
        "attn_mask": torch.triu(torch.ones(5, 7, dtype=torch.bool), 3),
        "key_padding_mask": torch.tensor([[False] * 7, [False] * 4 + [True] * 3]),
        "need_weights": False,
    },
    "causal": {"attn_mask": torch.triu(torch.ones(5, 7, dtype=torch.bool), 1), "is_causal": True},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"bias": False}], ids=str)
def test_the_module_is_pytorchs(call: str, options: dict[str, bool]) -> None:
    dense = filled(nn.MultiheadAttention(12, 3, dtype=torch.float64, **options))
    ours = watched_attention(dense)
    x, y = seeded((2, 5, 12), 1), seeded((2, 7, 12), 2)
    x, y = (x, y) if options.get("batch_first") else (x.transpose(0, 1), y.transpose(0, 1))
    with torch.no_grad():
        expected, weights = dense(x, y, y.flip(-1), **CALLS[call])
        got, beside = ours(x, y, y.flip(-1), **CALLS[call])
    assert got.shape == expected.shape
    assert close(got, expected)
    assert (beside is None) == (weights is None)
    if weights is not None:
        assert beside.shape == weights.shape
        assert close(beside, weights)


def test_without_a_batch_axis() -> None:
    dense = filled(nn.MultiheadAttention(12, 3, dtype=torch.float64))
    x, y = seeded((5, 12), 1), seeded((7, 12), 2)
    with torch.no_grad():
        for expected, got in zip(dense(x, y, y), watched_attention(dense)(x, y, y), strict=True):
            assert got.shape == expected.shape
            assert close(got, expected)


def test_what_discovery_finds_and_counts() -> None:
    model, inputs = filled(Cross(batch_first=True)), (seeded((2, 5, 12)), seeded((2, 7, 12)))
    profile = discover(model, inputs)
    assert [la.name for la in profile.layers] == ["att.in_proj.q", "att.in_proj.k", "att.in_proj.v", "att.out_proj"]
    assert [la.in_sizes for la in profile.layers] == [((5,),), ((7,),), ((7,),), ((5,),)]
    assert {la.module for la in profile.layers} == {"att"}
    assert not profile.skipped
    assert profile.rest.parameters == 0
    joined = torch.cat([weight_at(model, la) for la in profile.layers[:3]])
    assert torch.equal(joined, model.att.in_proj_weight)
    assert torch.equal(torch.cat([bias_at(model, la) for la in profile.layers[:3]]), model.att.in_proj_bias)
    for plan in (RankPlan.of(profile.fingerprint, {}), plan_for(profile, 3), plan_for(profile, 2, "in_proj.k")):
        made = compressed(model, profile, plan)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            made(*inputs)
        assert plan_cost(profile, plan).multiplies == counter.get_total_flops() // 2 // 2
        assert plan_cost(profile, plan).parameters == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("only", ["", "in_proj.q", "in_proj.v", "out_proj"])
def test_full_rank_is_the_module_and_one_part_alone_changes_it(only: str) -> None:
    model, inputs = filled(Cross()), (seeded((5, 2, 12)), seeded((7, 2, 12), 1))
    profile = discover(model, inputs)
    with torch.no_grad():
        assert close(compressed(model, profile, plan_for(profile, None, only))(*inputs), model(*inputs))
        low = compressed(model, profile, plan_for(profile, 3, only))
        assert not close(low(*inputs), model(*inputs))
        dense = filled(Cross())  # the same with the reconstructed weights
        for name, _ in plan_for(profile, 3, only).choices:
            weight = weight_at(dense, profile.layer(name))
            weight.copy_(FactorStore(model, profile)(name, "svd").reconstruct((3,)))
        assert close(low(*inputs), dense(*inputs))
    assert isinstance(model.att, nn.MultiheadAttention)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("only", ["", "linear1", "1.linear2", "0.self_attn.out_proj", "1.self_attn"])
@pytest.mark.parametrize("padded", [False, True])
def test_factors_of_an_encoder_really_run(only: str, padded: bool) -> None:
    model, x = encoder(), seeded((3, 6, 12))
    mask = torch.arange(6) >= torch.tensor([[6], [4], [3]]) if padded else None
    profile = discover(model, x)
    assert len(profile.layers) == 12
    plan = plan_for(profile, None, only)
    made = compressed(model, profile, plan)
    ran: list[str] = []
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        quiet = made(x, src_key_padding_mask=mask)  # no hooks, which alone would switch the fused path off
        for name, _ in plan.choices:
            chain_at(model, made, name).register_forward_hook(lambda *_, name=name: ran.append(name))
        assert torch.equal(made(x, src_key_padding_mask=mask), quiet)
    kept = ~mask if padded else torch.ones(3, 6, dtype=torch.bool)
    assert close(quiet[kept], expected[kept])
    assert sorted(ran) == [name for name, _ in plan.choices]
    with torch.no_grad():
        assert not close(compressed(model, profile, plan_for(profile, 2, only))(x), model(x))


def test_an_encoder_that_computes_by_itself_is_left_alone() -> None:
    class Own(nn.TransformerEncoderLayer):
        def forward(self, src: Tensor) -> Tensor:
            return self.linear2(torch.relu(nn.functional.linear(src, self.linear1.weight)))

    profile = discover(nn.Sequential(Own(12, 2, 20)).eval(), torch.ones(2, 5, 12))
    reasons = {s.name: s.reason for s in profile.skipped}
    assert [layer.name for layer in profile.layers] == ["0.linear1"]  # a function multiplies by its weight
    assert "reads this weight directly" in reasons["0.linear2"]
    assert "never ran" in reasons["0.self_attn"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kdim": 10, "vdim": 10}, "another width (kdim, vdim)"),
        ({"add_bias_kv": True}, "add_bias_kv"),
        ({"add_zero_attn": True}, "add_zero_attn"),
    ],
)
def test_what_is_not_plain_is_skipped(options: dict[str, object], reason: str) -> None:
    model = filled(Cross(**options))
    profile = discover(model, (seeded((5, 2, 12)), seeded((7, 2, 10 if "kdim" in options else 12))))
    assert profile.layers == ()
    assert reason in {s.name: s.reason for s in profile.skipped}["att"]


def test_attentions_that_share_a_weight_are_skipped() -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2), "b": nn.MultiheadAttention(8, 2)})
    model["b"].in_proj_weight = model["a"].in_proj_weight
    model.forward = lambda x: model["b"](model["a"](x, x, x)[0], x, x)[0]  # type: ignore[method-assign]
    reasons = {s.name: s.reason for s in discover(model, torch.ones(3, 2, 8)).skipped}
    assert "shared with 'b'" in reasons["a"]
    assert "shared with 'a'" in reasons["b"]


def test_moments_and_corrections_reach_every_projection() -> None:
    """The inputs of q, k and v are what goes into the attention; a spoilt output is found again."""
    model, x = encoder(1), seeded((40, 6, 12))
    profile, data = discover(model, x[:2]), Dataset(x)
    moments = input_moments(model, profile.layers, data)
    rows = x.reshape(-1, 12)
    for part in "qkv":
        assert torch.allclose(moments[f"layers.0.self_attn.in_proj.{part}"].second[0], rows.T @ rows / len(rows))
    plan = plan_for(profile, 4, "self_attn")
    corrector = Corrector(model, profile, FactorStore(model, profile), lambda: data)
    overlay = corrector(plan, Correction(samples=40))
    plain = compressed(model, profile, plan)
    better = compressed(model, profile, plan)
    better.load_state_dict(better.state_dict() | overlay)
    with torch.no_grad():
        assert float((better(x) - model(x)).norm()) < 0.9 * float((plain(x) - model(x)).norm())
    copied = twin(model, profile.layers)
    assert copied.get_submodule("layers.0.self_attn.in_proj.q").weight.data_ptr() == (
        model.layers[0].self_attn.in_proj_weight.data_ptr()
    )


def test_a_network_that_is_one_attention() -> None:
    model, x = filled(nn.MultiheadAttention(12, 3, dtype=torch.float64)), seeded((5, 2, 12))
    profile = discover(model, (x, x, x))
    assert [la.name for la in profile.layers] == ["in_proj.q", "in_proj.k", "in_proj.v", "out_proj"]
    made = compressed(model, profile, plan_for(profile))
    assert isinstance(made, Attention)
    with torch.no_grad():
        assert close(made(x, x, x)[0], model(x, x, x)[0])


def test_frozen_and_training_flags_are_kept() -> None:
    dense = nn.MultiheadAttention(12, 3).requires_grad_(False).train()
    made = factored_attention(dense, {"out_proj": 2})
    assert made.training
    assert not made.in_proj["q"].weight.requires_grad


MODEL = """
import torch
from torch import nn

def build_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
        return nn.Sequential(nn.Embedding(9, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 9)).eval()

def example_inputs():
    return (torch.arange(12).reshape(2, 6) % 9,)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    path = tmp_path / "small_encoder.py"
    path.write_text(MODEL)
    return Workspace.open(str(path))


@pytest.mark.slow
def test_a_checkpoint_rebuilds_it_exactly(workspace: Workspace, tmp_path: Path) -> None:
    plan = plan_for(workspace.profile, 3)
    path = tmp_path / "encoder.safetensors"
    assert export_checkpoint(workspace, plan, path).max_abs_diff == 0
    (inputs,) = workspace.opened.example_inputs
    with torch.no_grad():
        expected = workspace.compress(plan)(inputs)
        assert torch.equal(load_checkpoint(workspace.model, path).model(inputs), expected)
    (alone,) = [s for s in EXPORTS["safetensors"].snippets(workspace.opened.ref, path.name) if s.partial]
    code = alone.code.replace("from small_encoder import build_model", MODEL).replace(
        f"{path.name!r}", f"{str(path)!r}"
    )
    space: dict[str, object] = {}
    exec(code, space)
    with torch.no_grad():
        assert torch.equal(space["model"](inputs), expected)


@pytest.mark.slow
def test_exported_programs_hold_the_factors(workspace: Workspace) -> None:
    made = workspace.compress(plan_for(workspace.profile, 3))
    program = torch.export.export(made, workspace.opened.example_inputs)
    (inputs,) = workspace.opened.example_inputs
    with torch.no_grad():
        assert close(program.module()(inputs), made(inputs))
    assert any(name.endswith("in_proj.q.0.weight") for name in program.state_dict)
