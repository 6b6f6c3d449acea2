"""discover: what is in a network, what can be compressed, and why the rest cannot."""

import math
import threading
import warnings
from fractions import Fraction

import pytest
import torch
from awkward_layers import seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from lowrank_core.compression.apply import apply
from lowrank_core.compression.correct import Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidData, InvalidModel
from lowrank_core.layers.data import Dataset
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, Way, fingerprint, module_at, weight_at
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import dense_cost, layer_cost, plan_cost
from lowrank_core.plans.plan import Choice, RankPlan


class Calls(nn.Module):
    """A network whose forward is the given function of its modules and the input."""

    def __init__(self, forward, **modules: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._calls = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._calls(self, *inputs)


def chain(**modules: nn.Module) -> nn.Module:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        for name in modules:
            x = getattr(self, name)(x)
            x = x[0] if isinstance(x, tuple) else x
        return x

    return Calls(forward, **modules).eval()


def reasons(model: nn.Module, inputs: object) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in discover(model, inputs).skipped}


def names(model: nn.Module, inputs: object) -> list[str]:
    return [layer.name for layer in discover(model, inputs).layers]


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 3 * 8, 5),
    )  # fmt: skip


def test_layers_come_in_order_of_execution():
    model = Calls(lambda self, x: self.first(self.second(x)), first=nn.Linear(5, 3), second=nn.Linear(4, 5))
    assert names(model, torch.ones(1, 4)) == ["second", "first"]


def test_a_module_called_twice_is_listed_once_with_both_sizes():
    conv = nn.Conv2d(4, 4, 3)
    profile = discover(Calls(lambda self, x: self.b(self.a(x)), a=conv, b=conv), torch.ones(1, 4, 9, 8))
    (layer,) = profile.layers
    assert (layer.name, layer.aliases) == ("a", ("b",))
    assert layer.in_sizes == ((9, 8), (7, 6))
    total = plan_cost(profile)
    assert total.parameters == sum(p.numel() for p in conv.parameters())
    assert total.multiplies == 4 * 4 * 9 * (7 * 6 + 5 * 4)


def test_a_weight_shared_with_something_else_stays():
    model = chain(embedding=nn.Embedding(11, 6), head=nn.Linear(6, 11, bias=False))
    model.head.weight = model.embedding.weight
    model.also = nn.Bilinear(1, 6, 11)
    model.also.weight = nn.Parameter(model.head.weight.detach()[:, None])
    assert names(model, torch.zeros(1, 3, dtype=torch.long)) == ["embedding"]
    model.also.bias = model.head.weight
    profile = discover(model, torch.zeros(1, 3, dtype=torch.long))
    assert profile.layers == ()
    assert "shared with 'embedding'" in {s.name: s.reason for s in profile.skipped}["head"]


def test_what_is_tied_to_a_layer_that_must_stay_stays_too():
    model = chain(embedding=nn.Embedding(11, 6, max_norm=1.0), head=nn.Linear(6, 11, bias=False))
    model.head.weight = model.embedding.weight
    found = reasons(model, torch.zeros(1, 3, dtype=torch.long))
    assert "max_norm" in found["embedding"]
    assert found["head"] == "its weight is shared with 'embedding', which stays as it is"


def test_tied_biases_stay():
    model = chain(a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    model.b.bias = model.a.bias
    assert "its bias is shared with 'a'" in reasons(model, torch.ones(1, 6))["b"]
    assert plan_cost(discover(model, torch.ones(1, 6))).parameters == 36 + 36 + 6


def own_hook() -> nn.Module:
    """A Linear whose weight somebody's own hook computes."""
    linear = nn.Linear(6, 4)
    linear.raw = nn.Parameter(linear.weight.detach())
    del linear.weight
    linear.register_forward_pre_hook(lambda m, _: setattr(m, "weight", m.raw * 2))
    return linear


def with_more() -> nn.Module:
    linear = nn.Linear(6, 4)
    linear.scale = nn.Parameter(torch.ones(4))
    return linear


BARE = Calls(lambda self, x: self.fc(x + self.position), fc=nn.Linear(6, 6), position=nn.Parameter(torch.zeros(6)))


@pytest.mark.parametrize(
    ("model", "inputs", "skipped"),
    [
        (chain(c=nn.Conv2d(2, 2, 3, bias=False), m=nn.BatchNorm2d(2)), torch.ones(2, 2, 5, 6), {"m": "normalisation"}),
        (chain(m=nn.LayerNorm(6)), torch.ones(2, 6), {"m": "normalisation"}),
        (
            Calls(lambda self, x: self.m(x, output_size=(11, 13)), m=nn.ConvTranspose2d(2, 3, 3, stride=2)),
            torch.ones(2, 2, 5, 6),
            {"m": "called with an output_size"},
        ),
        (BARE, torch.ones(2, 6), {"Calls": "bare parameters"}),
        (chain(m=nn.Bilinear(6, 6, 3)).m, (torch.ones(2, 6), torch.ones(2, 6)), {"Bilinear": "bare parameters"}),
        (chain(m=nn.Conv2d(6, 6, 3, groups=6)), torch.ones(2, 6, 5, 7), {"m": "3 + 3 instead of 3 * 3"}),
        (
            chain(m=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
            torch.ones(2, 5, 8),
            {"m.norm1": "normalisation", "m.norm2": "normalisation"},
        ),
        (chain(m=own_hook()), torch.ones(2, 6), {"m": "by a hook that is not known"}),
        (chain(m=with_more()), torch.ones(2, 6), {"m": "holds 'scale' beside weight and bias"}),
        (chain(m=nn.Linear(6, 4, dtype=torch.complex64)), torch.ones(2, 6, dtype=torch.complex64), {"m": "complex64"}),
    ],
    ids=lambda value: type(value.get_submodule("m")).__name__ if hasattr(value, "m") else "",
)  # fmt: skip
def test_what_is_skipped_says_why(model, inputs, skipped):
    profile = discover(model.eval(), inputs)
    found = {s.name: s.reason for s in profile.skipped}
    for name, reason in skipped.items():
        assert reason in found[name]
    assert not set(skipped) & {layer.name for layer in profile.layers}
    assert plan_cost(profile).parameters == sum(p.numel() for p in model.parameters())


def test_an_attention_that_is_not_plain_is_skipped_and_the_layers_around_it_are_not():
    model = Calls(
        lambda self, x: self.after(self.attention(x, x, x)[0]),
        attention=nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True),
        after=nn.Linear(8, 3),
    )
    profile = discover(model, torch.ones(2, 5, 8))
    assert [layer.name for layer in profile.layers] == ["after"]
    assert "attention.out_proj" in {s.name for s in profile.skipped}


def test_a_layer_that_never_ran_is_skipped():
    model = Calls(lambda self, x: self.used(x), used=nn.Linear(4, 4), dead=nn.Linear(4, 4))
    assert reasons(model, torch.ones(1, 4)) == {"dead": "its forward never ran on the example inputs"}


def test_a_weight_that_is_read_without_its_forward_is_a_layer_where_the_read_is_a_product():
    model = Calls(lambda self, x: nn.functional.linear(x, self.read.weight), read=nn.Linear(4, 4))
    assert reasons(model, torch.ones(1, 4)) == {}
    (layer,) = discover(model, torch.ones(1, 4)).layers
    assert (layer.name, layer.read, layer.spec.bias, layer.plain) == ("read", True, False, False)
    model = Calls(lambda self, x: x * self.read.weight.sum(), read=nn.Linear(4, 4))
    assert reasons(model, torch.ones(1, 4)) == {"read": "Calls gives its weight to sum()"}


def test_a_matrix_is_one_layer_in_all_ways_in_which_it_is_multiplied_with():
    """Looked up, by its transpose and as it is; all of them cost, its bytes count once."""
    model = Calls(
        lambda self, x: (self.table(x) @ self.table.weight.T)[:, :2].softmax(-1) @ self.table.weight,
        table=nn.Embedding(9, 4),
    )
    tokens = torch.arange(15).reshape(3, 5) % 9
    profile = discover(model, tokens)
    (layer,) = profile.layers
    assert (layer.name, layer.in_sizes, layer.shared, layer.plain) == ("table", ((5,),), True, False)
    assert layer.ways == (Way(True, ((5,),)), Way(False, ((2,),)))
    assert (dense_cost(layer).multiplies, dense_cost(layer).parameters) == ((5 + 2) * 9 * 4, 36)
    assert (profile.rest.multiplies, profile.rest.parameters) == (0, 0)
    cost = layer_cost(layer, Choice("svd", (2,)))
    assert cost.multiplies == 5 * 2 * 4 + (5 + 2) * 2 * (9 + 4)  # looked up rows are made longer
    assert cost.parameters == 2 * (9 + 4)


def test_a_weight_read_beside_the_forward_is_skipped_and_sizes_are_free():
    read = Calls(lambda self, x: self.fc(x) * self.fc.weight.norm(), fc=nn.Linear(4, 4))
    assert "Calls also computes with its weight" in reasons(read, torch.ones(1, 4))["fc"]
    inside = chain(first=Calls(lambda self, x: x * self.fc.weight.norm(), fc=nn.Linear(4, 4)), fc=nn.Linear(4, 4))
    inside.fc.weight = inside.first.fc.weight
    assert "Calls 'first' also computes" in reasons(inside, torch.ones(1, 4))["fc"]
    asking = Calls(lambda self, x: self.fc(x.to(self.fc.weight.dtype)) * self.fc.weight.shape[0], fc=nn.Linear(4, 4))
    (layer,) = discover(asking, torch.ones(1, 4)).layers
    assert (layer.asked, layer.plain) == (True, False)


def test_a_subclass_that_answers_as_its_parent_is_replaced_as_a_whole():
    (layer,) = discover(chain(m=type("Special", (nn.Linear,), {})(4, 4)), torch.ones(1, 4)).layers
    assert (layer.name, layer.type, layer.read, layer.plain) == ("m", "Special", False, True)


def test_the_users_model_is_as_it_was():
    model = small_cnn().train()
    model[0].eval()
    seen: list[str] = []
    hook = model[0].register_forward_hook(lambda *_: seen.append("hook"))
    before = [module.training for module in model.modules()]
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    statistics = model[1].running_mean.clone()
    mark = fingerprint(model)
    inputs = torch.ones(2, 3, 9, 10)
    discover(model, inputs)
    assert [module.training for module in model.modules()] == before
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert seen == ["hook"]
    assert torch.equal(model[1].running_mean, statistics)
    assert fingerprint(model) == mark
    assert torch.equal(inputs, torch.ones(2, 3, 9, 10))
    assert torch.is_grad_enabled()
    hook.remove()


def test_training_flags_and_hooks_are_put_back_after_a_failure():
    model = small_cnn().train()
    with pytest.raises(InvalidModel):
        discover(model, torch.ones(2, 3, 9, 11))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_inputs_that_the_model_writes_into_are_kept():
    inputs = torch.ones(1, 4)
    discover(Calls(lambda self, x: self.fc(x.mul_(2)), fc=nn.Linear(4, 4)), inputs)
    assert torch.equal(inputs, torch.ones(1, 4))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (small_cnn(), (3, 9, 10)),
        (nn.Linear(4, 3), (4,)),
        (chain(a=nn.Linear(4, 6), b=nn.Linear(6, 2)), (5, 7, 4)),
        (chain(up=nn.ConvTranspose2d(2, 3, 3), c=nn.Conv2d(3, 4, 3)), (2, 5, 6)),
        (chain(m=nn.Conv3d(2, 3, (1, 2, 3))), (2, 4, 5, 6)),
        (Calls(lambda self, x: self.fc(x.transpose(0, 1)).transpose(0, 1), fc=nn.Linear(4, 3)), (6, 4)),  # tokens first
        (Calls(lambda self, x: self.c(x.flatten(0, 1)), c=nn.Conv2d(2, 3, 3)), (4, 2, 5, 6)),  # frames in the batch
        (Calls(lambda self, x: self.fc(x) @ x.mT, fc=nn.Linear(4, 4)), (5, 4)),  # a product outside all layers
    ],
    ids=["cnn", "one-layer", "tokens", "transposed", "conv3d", "seq-first", "frames", "matmul"],
)
def test_multiplies_are_those_of_pytorch_per_sample(model, shape, batch):
    inputs = torch.ones(batch, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    profile = discover(model, inputs)
    assert plan_cost(profile).multiplies == counter.get_total_flops() // 2 // batch
    assert plan_cost(profile).parameters == sum(p.numel() for p in model.parameters())
    assert profile == discover(model, torch.ones(1, *shape))


@pytest.mark.parametrize(
    ("model", "shape", "multiplies", "rest"),
    [
        (nn.LSTM(6, 4, batch_first=True), (3, 6), 3 * 4 * 4 * (6 + 4), 0),
        (nn.GRU(6, 4, batch_first=True, bidirectional=True), (3, 6), 2 * 3 * 3 * 4 * (6 + 4), 0),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8), 5 * 8 * (4 * 8 + 2 * 16) + 400, 2 * 5 * 5 * 8),
    ],
    ids=["lstm", "gru", "transformer"],
)
def test_fused_operations_are_counted_too(model, shape, multiplies, rest):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile = discover(model, torch.ones(2, *shape))
    assert plan_cost(profile).multiplies == multiplies
    assert profile.rest.multiplies == rest
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_sizes_are_of_one_sample():
    def sizes(model: nn.Module, *shape: int) -> list[tuple]:
        return [layer.in_sizes for layer in discover(model, torch.ones(shape)).layers]

    assert sizes(nn.Linear(4, 3), 5, 4) == [((),)]
    assert sizes(nn.Linear(4, 3), 5, 7, 4) == [((7,),)]
    assert sizes(nn.Linear(4, 3), 5, 7, 2, 4) == [((14,),)]
    assert sizes(nn.Conv2d(3, 4, 3), 5, 3, 8, 9) == [((8, 9),)]
    assert sizes(nn.Conv2d(3, 4, 3), 3, 8, 9) == [((8, 9),)]  # without a batch axis
    assert sizes(nn.Conv1d(3, 4, 3), 5, 3, 8) == [((8,),)]
    frames = Calls(lambda self, x: self.c(x.flatten(0, 1)), c=nn.Conv2d(3, 4, 3))
    assert sizes(frames, 5, 2, 3, 8, 9) == [((8, 9), (8, 9))]


def test_rows_that_the_samples_do_not_share_evenly_count_with_their_mean():
    def of_each(rows: int, samples: int) -> ModelProfile:
        some = Calls(lambda self, x: self.fc(x.flatten(0, 1)[:rows]), fc=nn.Linear(4, 3))
        return discover(some, torch.ones(samples, 3, 4))

    for rows, samples in ((1, 4), (5, 4), (7, 3)):
        profile = of_each(rows, samples)
        assert (profile.layer("fc").in_sizes, profile.layer("fc").shares) == (((),), (Fraction(rows, samples),))
        assert plan_cost(profile).multiplies == math.floor(4 * 3 * rows / samples + 0.5)
    for rows, samples, size in ((4, 4, ()), (9, 3, (3,))):
        profile = of_each(rows, samples)
        assert (profile.layer("fc").in_sizes, profile.layer("fc").shares) == ((size,), ())
    words = Calls(lambda self, x: self.table(x.flatten()[:5]), table=nn.Embedding(7, 4))
    assert discover(words, torch.zeros(4, 3, dtype=torch.long)).layers[0].shares == (Fraction(5, 4),)
    bags = Calls(lambda self, x: self.table(x.flatten(), x.new_tensor([0, 4, 7])), table=nn.EmbeddingBag(7, 4))
    assert discover(bags, torch.zeros(2, 5, dtype=torch.long)).layers[0].shares == (Fraction(3, 2),)
    one_by_one = Calls(lambda self, x: torch.stack([self.fc(row) for row in x]), fc=nn.Linear(4, 3))
    assert discover(one_by_one, torch.ones(5, 4)).layers[0].in_sizes == ((),)


def test_sequences_of_unequal_length_count_with_their_mean():
    """5 and 2 words: 3.5 of one sample, for the input weight at once and for the hidden weight too."""
    packed = Calls(lambda self, x: self.rnn(pack_padded_sequence(x, [5, 2], True))[1][0], rnn=nn.LSTM(4, 3))
    profile = discover(packed, torch.ones(2, 5, 4))
    for name in ("rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        assert (profile.layer(name).in_sizes, profile.layer(name).shares) == (((),), (Fraction(7, 2),))
    assert plan_cost(profile).multiplies == 12 * (4 + 3) * 7 / 2


def test_a_network_that_is_one_layer_goes_by_its_type():
    model = nn.Linear(4, 3)
    profile = discover(model, torch.ones(1, 4))
    assert [layer.name for layer in profile.layers] == ["Linear"]
    assert module_at(model, "Linear") is model
    assert profile.rest.parameters == 0


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_bytes_are_those_of_the_dtype(dtype, itemsize):
    model = chain(fc=nn.Linear(6, 5), norm=nn.LayerNorm(5)).to(dtype)
    profile = discover(model, torch.ones(1, 6, dtype=dtype))
    assert profile.layer("fc").itemsize == itemsize
    assert plan_cost(profile).bytes == itemsize * sum(p.numel() for p in model.parameters())


def test_buffers_are_listed_apart():
    profile = discover(chain(fc=nn.Linear(6, 5), norm=nn.BatchNorm1d(5)), torch.ones(2, 6))
    assert profile.rest.buffer_bytes == 2 * 5 * 4 + 8
    assert profile.rest.bytes == 2 * 5 * 4


@pytest.mark.parametrize(
    "inputs", [(torch.ones(1, 4),), {"x": torch.ones(1, 4)}, [torch.ones(1, 4)]], ids=["tuple", "dict", "list"]
)
def test_inputs_may_be_a_tuple_or_a_dict(inputs):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(input=x)}

    assert names(Net(), inputs) == ["fc"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    model = small_cnn()
    model[3].weight.data[0, 0, 0, 0] = bad
    with pytest.raises(InvalidModel, match=r"'3\.weight' hold NaN or Inf"):
        discover(model, torch.ones(1, 3, 9, 10))


def test_a_mask_of_minus_infinity_is_no_fault_and_a_nan_statistic_is():
    model = chain(fc=nn.Linear(6, 5), norm=nn.BatchNorm1d(5))
    model.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))
    assert names(model, torch.ones(2, 6)) == ["fc"]
    model.norm.running_mean[0] = torch.nan
    with pytest.raises(InvalidModel, match=r"norm\.running_mean"):
        discover(model, torch.ones(2, 6))


def test_a_lazy_layer_is_refused_with_the_remedy_and_not_changed():
    model = chain(fc=nn.LazyLinear(5))
    with pytest.raises(InvalidModel, match=r"'fc\.weight', 'fc\.bias' have no shape yet; run the model once"):
        discover(model, torch.ones(2, 6))
    assert type(model.fc) is nn.LazyLinear
    model(torch.ones(2, 6))
    assert names(model, torch.ones(2, 6)) == ["fc"]


def test_a_forward_that_fails_is_one_clear_line():
    with pytest.raises(
        InvalidModel, match=r"forward pass on the example inputs failed with RuntimeError.*must return"
    ) as caught:
        discover(nn.Sequential(nn.Linear(4, 3)), torch.ones(1, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [torch.tensor(1.0), (), {}, "image.png", None], ids=repr)
def test_inputs_without_a_batch_are_refused(inputs):
    with pytest.raises(InvalidData, match="batch axis"):
        discover(nn.Linear(4, 3), inputs)


def test_fingerprint_is_of_names_types_shapes_and_bytes_alone():
    torch.manual_seed(0)
    model = small_cnn()
    mark = fingerprint(model)
    assert mark.startswith("sha256:")
    assert len(mark) == 71
    assert fingerprint(model.train()) == mark
    other = small_cnn()
    assert fingerprint(other) != mark
    other.load_state_dict(model.state_dict())
    assert fingerprint(other) == mark
    assert fingerprint(nn.ModuleDict({"x": nn.Linear(2, 3)})) != fingerprint(nn.ModuleDict({"y": nn.Linear(2, 3)}))
    assert len({fingerprint(small_cnn().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float64)}) == 3
    with torch.no_grad():
        model[1].running_var[0] += 1
    assert fingerprint(model) != mark


def test_fingerprint_of_known_weights_never_changes():
    """The same on every machine and in every version: plans name it."""
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(2, 3))
        model.bias.zero_()
    assert fingerprint(model) == "sha256:abdbbfb5aa0ea07e62081784ecac79068bdd715200bd2f12adacca9c83e02e86"


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils: the weight is (in, out)."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(seeded((inputs, outputs)))
        self.bias = nn.Parameter(seeded((outputs,), 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def test_the_conv1d_of_transformers_is_a_linear_turned_round():
    model, x = chain(c_attn=Conv1D(12, 5), c_proj=Conv1D(3, 12)), seeded((2, 4, 5))
    profile = discover(model, x)
    layer = profile.layer("c_attn")
    assert (layer.type, layer.spec, layer.in_sizes) == ("Conv1D", LayerSpec(5, 12), ((4,),))
    assert (profile.skipped, profile.rest.parameters, profile.rest.multiplies) == ((), 0, 0)
    assert torch.equal(weight_at(model, layer), model.c_attn.weight.T)
    factors = FactorStore(model, profile)
    full = {layer.name: Choice("svd", (min(layer.spec.weight_shape),)) for layer in profile.layers}
    exact = apply(model, profile, RankPlan.of(profile.fingerprint, full), factors)
    torch.testing.assert_close(exact(x), model(x))
    plan = RankPlan.of(profile.fingerprint, {"c_attn": Choice("svd", (2,)), "c_proj": Choice("svd", (2,))})
    half = apply(model, profile, plan, factors)
    assert [part.weight.shape for part in half.c_attn] == [(2, 5), (12, 2)]
    assert sum(p.numel() for p in half.parameters()) == plan_cost(profile, plan).parameters
    pool = Dataset(seeded((60, 4, 5), 2))
    overlay = Corrector(model, profile, factors, lambda: pool)(plan, Correction())
    far = (half(pool.inputs) - model(pool.inputs)).norm()
    assert (load_overlay(half, overlay)(pool.inputs) - model(pool.inputs)).norm() < far


def test_networks_opened_at_once_are_counted_as_when_opened_alone() -> None:
    """What is switched off while multiplies are counted is switched for the whole process."""
    entered, left = (threading.Event(), threading.Event()), threading.Event()

    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.wait = lambda: None

        def forward(self, x: Tensor) -> Tensor:
            self.wait()
            return self.layer(x)

    def first_waits() -> None:
        entered[0].set()
        entered[1].wait(0.5)

    def second_waits() -> None:
        entered[1].set()
        left.wait(0.5)

    first, second, x = Waiting().eval(), Waiting().eval(), torch.zeros(1, 5, 8)
    alone = discover(first, (x,)).rest.multiplies
    first.wait, second.wait = first_waits, second_waits
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda model=model: found.append(discover(model, (x,)).rest.multiplies))
        for model in (first, second)
    ]
    threads[0].start()
    assert entered[0].wait()
    threads[1].start()
    threads[0].join()
    left.set()
    threads[1].join()
    assert found == [alone, alone]
    assert torch.backends.mha.get_fastpath_enabled()


class Switches(nn.Module):
    """Says how the switches of the process stand while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.mkldnn.enabled,
            parametrize._cache_enabled,
        )
        return x


def test_the_switches_of_the_process_stay_as_they_are():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = chain(e=encoder, s=Switches(), w=parametrizations.weight_norm(nn.Linear(8, 8))).eval()
    model.s(torch.ones(1))
    usual = model.s.seen
    profile = discover(model, torch.ones(2, 5, 8))
    assert model.s.seen == usual
    assert [layer.name for layer in profile.layers][-1] == "w"
    assert plan_cost(profile).multiplies == 5 * 8 * (4 * 8 + 2 * 16) + 2 * 5 * 5 * 8 + 5 * 8 * 8
