"""The zoo: each odd network is discovered, compressed, run, saved and loaded again, or it says why not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO, Specimen

from lowrank_core import Choice, RankPlan, load_checkpoint
from lowrank_core.compression.apply import apply, restructure
from lowrank_core.compression.checkpoint import write_checkpoint
from lowrank_core.compression.correct import CorrectedLayer, Corrector, load_overlay
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidModel
from lowrank_core.exports.safetensors import LOADER, MODULES
from lowrank_core.layers.data import Dataset, batch_size, call
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile, fingerprint
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

LIVING = [specimen for specimen in ZOO if specimen.layers]
every = pytest.mark.parametrize("specimen", ZOO, ids=str)
every_compressible = pytest.mark.parametrize("specimen", LIVING, ids=str)


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return next(iter(call(model, inputs).values()))


def plan_at(profile: ModelProfile, share: float) -> RankPlan:
    """The default method of every layer at that share of its largest rank."""
    choices = {}
    for layer in profile.layers:
        method = layer.methods[0]
        choices[layer.name] = Choice(method.name, tuple(max(1, int(share * n)) for n in method.max_rank(layer.spec)))
    return RankPlan.of(profile.fingerprint, choices)


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@every
def test_discovery_finds_what_it_can_and_says_why_not(specimen: Specimen) -> None:
    model = specimen.build()
    if specimen.name == "lazy":
        with pytest.raises(InvalidModel, match="have no shape yet"):
            discover(model, specimen.inputs)
        return
    names, mark = model.state_dict().keys(), fingerprint(model)
    profile = discover(model, specimen.inputs)
    assert {layer.name for layer in profile.layers} == set(specimen.layers)
    found = {skipped.name: skipped.reason for skipped in profile.skipped}
    for name, word in specimen.skipped.items():
        assert word in found[name]
    assert plan_cost(profile).parameters == sum(p.numel() for p in model.parameters())
    assert model.state_dict().keys() == names
    if "max-norm" not in specimen.name:  # which rescales its own rows as it is called
        assert fingerprint(model) == mark == profile.fingerprint
        assert discover(specimen.build(), specimen.inputs) == profile


@every_compressible
def test_at_full_rank_it_answers_as_the_dense_network(specimen: Specimen) -> None:
    model = specimen.build()
    profile = discover(model, specimen.inputs)
    full = apply(model, profile, plan_at(profile, 1), FactorStore(model, profile))
    expected = outputs(specimen.build(), specimen.inputs)
    assert far(outputs(full, specimen.inputs), expected) < specimen.tolerance
    assert torch.equal(outputs(model, specimen.inputs), expected)


@contextmanager
def countable(model: nn.Module) -> Iterator[None]:
    """PyTorch on paths that its own counter sees, and without what parametrizations compute: an oracle of our own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), parametrize.cached():
            for module in filter(parametrize.is_parametrized, model.modules()):
                for name, _ in module.get_submodule("parametrizations").named_children():
                    getattr(module, name)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@every_compressible
def test_at_a_low_rank_it_costs_what_is_said_and_comes_back_from_a_file(specimen: Specimen, tmp_path: Path) -> None:
    model = specimen.build()
    profile = discover(model, specimen.inputs)
    plan = plan_at(profile, 0.5)
    half = apply(model, profile, plan, FactorStore(model, profile))
    expected = outputs(half, specimen.inputs)
    assert torch.isfinite(expected).all()
    cost = plan_cost(profile, plan)
    assert cost.parameters == sum(p.numel() for p in half.parameters())
    with countable(half), FlopCounterMode(display=False) as counter:
        outputs(half, specimen.inputs)
    if "packed" not in specimen.name:  # padded to run, counted as what the sequences hold
        assert cost.multiplies == counter.get_total_flops() // 2 // batch_size(specimen.inputs)

    again = restructure(specimen.build(), profile, plan)
    again.load_state_dict(half.state_dict())
    assert torch.equal(outputs(again, specimen.inputs), expected)

    path = tmp_path / "half.safetensors"
    if specimen.unsaved:
        with pytest.raises(InvalidModel, match=specimen.unsaved):
            write_checkpoint(half, profile, plan, path, plan_document=plan.to_json(), provenance={})
        return
    write_checkpoint(half, profile, plan, path, plan_document=plan.to_json(), provenance={})
    loaded = load_checkpoint(specimen.build(), path).model
    assert torch.equal(outputs(loaded, specimen.inputs), expected)
    assert sum(p.numel() for p in loaded.parameters()) == cost.parameters
    alone: dict[str, Any] = {}
    plain = all(layer.plain for layer in profile.layers)
    exec(LOADER if plain else f"{LOADER}\n{MODULES}", alone)
    assert torch.equal(outputs(alone["load_lowrank"](specimen.build(), str(path)), specimen.inputs), expected)


@every_compressible
def test_the_correction_refits_every_layer_whose_factors_serve_it_alone(specimen: Specimen) -> None:
    model = specimen.build()
    profile = discover(model, specimen.inputs)
    factors = FactorStore(model, profile)
    corrector = Corrector(model, profile, factors, lambda: Dataset(specimen.inputs))
    plan = plan_at(profile, 0.5)
    corrected_layers: list[CorrectedLayer] = []
    overlay = corrector(plan, Correction(), each=corrected_layers.append)
    alone = sorted(layer.name for layer in profile.layers if not layer.shared)
    assert sorted({layer.name for layer in corrected_layers} - {""}) == alone
    corrected = load_overlay(apply(model, profile, plan, factors), overlay)
    assert torch.isfinite(outputs(corrected, specimen.inputs)).all()
    for layer in profile.layers:
        alone = RankPlan.of(profile.fingerprint, {layer.name: plan.get(layer.name)})
        copied = apply(model, profile, alone, factors)
        load_overlay(copied, corrector.alone(copied, alone, Correction()))
        assert torch.isfinite(outputs(copied, specimen.inputs)).all()
