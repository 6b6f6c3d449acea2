"""LoRA adapters: opened as weights, spectra of B A that nobody forms, ranks by rules, and the smaller file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from streamlit.testing.v1 import AppTest
from torch import Tensor

from lowrank_core.algebra.product import ThinProduct, distance
from lowrank_core.commands import cli
from lowrank_core.errors import InvalidFile, InvalidPlan, InvalidSettings
from lowrank_core.exports._adapter import (
    alpha_for,
    kept_energy,
    ranks_at_most,
    ranks_for_energy,
    ranks_within,
    write_adapter,
)
from lowrank_core.sources import open_any
from lowrank_core.sources._adapter import Adapter, matching
from lowrank_core.sources._inventory import take_stock
from lowrank_core.sources._weights import Weights
from pages.ui import dropped, words
from tests.conftest import PATIENCE_SECONDS, ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

MODULES = {"model.layers.0.self_attn.q_proj": (24, 16), "model.layers.0.mlp.down_proj": (12, 20), "conv": (10, 4)}
CONFIG = {
    "peft_type": "LORA",
    "r": 6,
    "lora_alpha": 9,
    "target_modules": ["q_proj", "down_proj", "conv"],
    "rank_pattern": {"down_proj": 4},
    "alpha_pattern": {"down_proj": 5},
    "use_rslora": False,
    "base_model_name_or_path": "org/base",
}


def random(*shape: int, seed: int = 0) -> Tensor:
    """With singular values that fall."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return value * torch.logspace(0, -1.5, shape[0]).view(-1, *[1] * (len(shape) - 1))


def peft_state(prefix: str = "base_model.model.") -> dict[str, Tensor]:
    """Pairs of PEFT: two Linear layers, a convolution, and a whole head beside them."""
    state = {}
    for name, (out, into) in MODULES.items():
        rank = 4 if "down" in name else 6
        window = (3, 3) if name == "conv" else ()
        state[f"{prefix}{name}.lora_A.weight"] = random(rank, into, *window)
        state[f"{prefix}{name}.lora_B.weight"] = random(out, rank, *[1] * len(window), seed=1)
    return state | {f"{prefix}score.weight": random(3, 16)}


def kohya_state(alpha: float | None = 2.0) -> dict[str, Tensor]:
    """The same with names of kohya, in half precision."""
    state = {}
    for name, value in peft_state("lora_unet_").items():
        if ".lora_" in name:
            module, _, part = name.removesuffix(".weight").rpartition(".")
            kohya = {"lora_A": "lora_down", "lora_B": "lora_up"}[part]
            module = module.replace(".", "_")
            state[f"{module}.{kohya}.weight"] = value.half()
            if alpha is not None:
                state[f"{module}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    return state


def peft_folder(folder: Path, **config: Any) -> Path:
    """A folder as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    save_file(peft_state(), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def opened(path: Path) -> Adapter:
    found = open_any(str(path))
    assert isinstance(found, Weights)
    assert found.adapter is not None
    return found.adapter


def deltas(path: Path) -> dict[str, tuple[Tensor, int]]:
    """What PEFT, or kohya's tools, add to each weight, computed plainly: scale B A, and its rank."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    state, added = load_file(file), {}
    for name, a in state.items():
        for first, second in (("lora_A", "lora_B"), ("lora_down", "lora_up")):
            if f".{first}." not in name:
                continue
            module = name.partition(f".{first}.")[0].removeprefix("base_model.model.")
            b, rank = state[name.replace(first, second)], len(a)
            if first == "lora_A":
                config = json.loads((path / "adapter_config.json").read_text())
                assert matching(config["rank_pattern"], module, config["r"]) == rank
                alpha = matching(config["alpha_pattern"], module, config["lora_alpha"])
                scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            else:
                alpha = state.get(f"{module}.alpha")
                scale = 1.0 if alpha is None else float(alpha) / rank
            added[module] = scale * b.double().flatten(1) @ a.double().flatten(1), rank
    return added


# ---- the product ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 5, 40), (3, 5, 40), (30, 5, 2), (4, 4, 4)])
def test_singular_values_of_a_product_that_is_not_formed(shape: tuple[int, int, int]) -> None:
    out, rank, into = shape
    b, a = random(out, rank).double(), random(rank, into, seed=3).double()
    product = ThinProduct.of(b, a)
    expected = torch.linalg.svdvals(b @ a)[: len(product.sigma)]
    assert torch.allclose(product.sigma, expected, atol=1e-12)
    for k in range(1, rank + 1):
        thin_b, thin_a = product.factors(k)
        assert (thin_b.shape, thin_a.shape) == ((out, k), (k, into))
        assert distance((b, a), (thin_b, thin_a)) == pytest.approx(float(expected[k:].norm()), abs=1e-7)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_kept_to_its_last_bit_at_every_rank(rslora: bool) -> None:
    for rank in (4, 6, 7, 8, 16, 64):
        for alpha in (1, 8, 16, 27, 32, 0.3):
            scale = alpha / (math.sqrt(rank) if rslora else rank)
            for k in range(1, rank + 1):
                now = alpha_for(scale, k, rslora=rslora) / (math.sqrt(k) if rslora else k)
                assert now == pytest.approx(scale, rel=3e-16)
                assert now == scale or rslora or rank not in (4, 8, 16, 64) or alpha == 0.3


# ---- opened ---------------------------------------------------------------------------------------------------------


def test_an_adapter_opens_as_weights_and_its_products_are_its_layers(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    found = open_any(str(folder))
    assert isinstance(found, Weights)
    stock = take_stock(found)
    assert {layer.name: layer.spec.weight_shape for layer in stock.layers} == {
        "conv": (10, 4, 3, 3),
        "model.layers.0.mlp.down_proj": (12, 20),
        "model.layers.0.self_attn.q_proj": (24, 16),
    }
    state = peft_state()
    assert stock.bytes == sum(tensor.nbytes for tensor in state.values())
    for name, (added, rank) in deltas(folder).items():
        pair = next(pair for pair in opened(folder).pairs if pair.name == name)
        expected = torch.linalg.svdvals(added)[:rank]
        assert torch.allclose(stock.spectrum(name) * pair.scale, expected, atol=1e-9)
        assert pair.rank == rank
    shown = CliRunner().invoke(cli, ["layers", str(folder), "--json"])
    listed = {one["name"]: one for one in json.loads(shown.stdout)["layers"]}
    assert listed["conv"]["parameters"] == 6 * (4 * 9 + 10), "what the file holds, not the product"
    assert listed["conv"]["methods"][0]["break_even_bytes"] == [5]


@pytest.mark.parametrize("alpha", [2.0, None])
def test_names_of_kohya_hold_their_scale_themselves(alpha: float | None, tmp_path: Path) -> None:
    save_file(kohya_state(alpha), tmp_path / "style.safetensors")
    adapter = opened(tmp_path / "style.safetensors")
    assert not adapter.peft
    scales = {pair.name: pair.scale for pair in adapter.pairs}
    assert scales["lora_unet_conv"] == (1.0 if alpha is None else alpha / 6)
    ranks = ranks_for_energy(adapter, 0.95)
    written = write_adapter(adapter, ranks, tmp_path / "small.safetensors")
    _compare(deltas(tmp_path / "style.safetensors"), deltas(tmp_path / "small.safetensors"), ranks, 2e-3)
    assert written.bytes < (tmp_path / "style.safetensors").stat().st_size
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys() if "lora_up" in name} == {torch.float16}  # noqa: SIM118


def _compare(
    before: dict[str, tuple[Tensor, int]], now: dict[str, tuple[Tensor, int]], ranks: dict[str, int], near: float
) -> None:
    """What is added at each rank must be the best approximation of that rank of what was added."""
    assert before.keys() == now.keys() == ranks.keys()
    for name, (added, _) in before.items():
        u, s, v = torch.linalg.svd(added, full_matrices=False)
        k = ranks[name]
        assert now[name][1] == k
        assert torch.allclose(now[name][0], (u[:, :k] * s[:k]) @ v[:k], atol=near * float(s[0]))


# ---- made smaller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_a_smaller_adapter_adds_the_nearest_of_what_the_larger_one_added(rslora: bool, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", use_rslora=rslora)
    adapter = opened(folder)
    ranks = {"model.layers.0.self_attn.q_proj": 2, "model.layers.0.mlp.down_proj": 4, "conv": 3}
    written = write_adapter(adapter, ranks, tmp_path / "small")
    _compare(deltas(folder), deltas(tmp_path / "small"), ranks, 1e-6)
    again = opened(tmp_path / "small")
    scales = {pair.name: pair.scale for pair in adapter.pairs}
    assert {pair.name: pair.scale for pair in again.pairs} == pytest.approx(scales, rel=3e-16)
    assert again.ranks == ranks == written.ranks
    state, first = load_file(tmp_path / "small" / "adapter_model.safetensors"), peft_state()
    kept = [name for name in first if "down_proj" in name or "score" in name]
    assert len(kept) == 3
    assert all(torch.equal(state[name], first[name]) for name in kept), "what keeps its rank is as it was"
    assert written.lost["model.layers.0.mlp.down_proj"] == 0
    sigma = adapter.product("conv").sigma.square()
    assert written.lost["conv"] == pytest.approx(float(sigma[3:].sum() / sigma.sum()), abs=1e-6)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["target_modules"]) == ("org/base", CONFIG["target_modules"])


def test_rules_keep_what_they_promise(tmp_path: Path) -> None:
    adapter = opened(peft_folder(tmp_path / "peft"))
    for share in (0.5, 0.9, 0.999, 1.0):
        for name, rank in ranks_for_energy(adapter, share).items():
            energy = adapter.product(name).sigma.square()
            assert energy[:rank].sum() >= share * energy.sum() * (1 - 1e-12)
            assert rank == 1 or energy[: rank - 1].sum() < share * energy.sum()
    assert ranks_at_most(adapter, 5) == {name: min(5, rank) for name, rank in adapter.ranks.items()}
    whole, last = adapter.bytes_at(adapter.ranks), 0.0
    smallest = adapter.bytes_at(dict.fromkeys(adapter.ranks, 1))
    for most in (smallest, (smallest + whole) // 2, whole):
        ranks = ranks_within(adapter, most)
        assert adapter.bytes_at(ranks) <= most
        assert kept_energy(adapter, ranks) > last
        last = kept_energy(adapter, ranks)
    assert ranks == adapter.ranks
    middle = (smallest + whole) // 2
    flat = max(r for r in range(1, 7) if adapter.bytes_at(ranks_at_most(adapter, r)) <= middle)
    assert kept_energy(adapter, ranks_within(adapter, middle)) >= kept_energy(adapter, ranks_at_most(adapter, flat))
    with pytest.raises(InvalidSettings, match="rank 1 everywhere takes"):
        ranks_within(adapter, smallest - 1)
    with pytest.raises(InvalidSettings, match="above 0 and at most 1"):
        ranks_for_energy(adapter, 1.5)
    with pytest.raises(InvalidPlan, match="must be 1 to 6, but is 9"):
        write_adapter(adapter, {"conv": 9}, tmp_path / "out")


def test_the_command_lists_chooses_and_writes(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    out = tmp_path / "small.zip"
    ran = CliRunner().invoke(
        cli, ["adapter", str(folder), "--energy", "0.9", "--set", "conv=2", "--out", str(out), "--json"]
    )
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert {one["name"]: one["rank"] for one in document["modules"]}["conv"] == 2
    assert document["bytes"] < document["bytes_before"]
    assert document["written"]["bytes"] > 0
    packed = CliRunner().invoke(cli, ["adapter", str(out), "--json"])
    assert packed.exit_code == 0, packed.output
    assert json.loads(packed.stdout)["bytes"] == document["bytes"]
    out.write_bytes(b"PK")
    damaged = CliRunner().invoke(cli, ["adapter", str(out)])
    assert (damaged.exit_code, damaged.output.count("\n")) == (1, 1)
    assert f"{out} is damaged, locked, or no zip" in damaged.output
    ran = CliRunner().invoke(cli, ["adapter", str(folder), "--out", str(folder), "--force"])
    assert (ran.exit_code, ran.output.count("\n")) == (1, 1), ran.output
    assert {file.name for file in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    ran = CliRunner().invoke(cli, ["adapter", "builtin:iris-mlp"])
    assert ran.exit_code == 1
    assert "is no LoRA adapter" in ran.output


# ---- refused --------------------------------------------------------------------------------------------------------

Harm = Callable[[dict[str, Tensor], Path], None]
Q, DOWN = "base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.0.mlp.down_proj"


def _foreign(state: dict[str, Tensor], folder: Path) -> None:
    state |= {name.removeprefix("base_model.model."): value for name, value in peft_state().items() if "conv" in name}


def configured(**more: Any) -> Harm:
    return lambda state, folder: (folder / "adapter_config.json").write_text(json.dumps(CONFIG | more)) and None


HARMS: dict[str, Harm] = {
    "A and B do not fit": lambda state, _: state.update({f"{Q}.lora_B.weight": random(24, 5)}),
    "has no lora_B beside it": lambda state, _: state.__delitem__(f"{Q}.lora_B.weight"),
    "has no A that it belongs to": lambda state, _: state.__delitem__(f"{Q}.lora_A.weight"),
    "of two base models": _foreign,
    "of two adapters: PEFT's and kohya's|of two adapters: kohya's and PEFT's": lambda state, _: state.update(
        {key: value for key, value in kohya_state().items() if "lora_" in key}
    ),
    "'x.lora_mid.weight' is of no pair": lambda state, _: state.update({"x.lora_mid.weight": random(3, 3)}),
    "'x.hada_w1_a' is of no pair": lambda state, _: state.update({"x.hada_w1_a": random(3, 3)}),
    "says rank 6 of .* but its A has 3 rows": lambda state, _: state.update(
        {f"{Q}.lora_A.weight": random(3, 16), f"{Q}.lora_B.weight": random(24, 3)}
    ),
    "must say r and lora_alpha of a LoRA, but has no r;": lambda state, folder: (
        (folder / "adapter_config.json").write_text("{}") and None
    ),
    r"adapter_config.json is cut short or damaged: it is no JSON \(line 1: Expecting": lambda state, folder: (
        (folder / "adapter_config.json").write_text("{") and None
    ),
    "only peft_type LORA is read, but it is 'LOHA'": configured(peft_type="LOHA"),
    r"lora_alpha must be a number above 0 \(1e-30 to 1e\+30\), but is inf": configured(lora_alpha=math.inf),
    r"lora_alpha must be .*, but is 0\.": configured(lora_alpha=0),
    "lora_alpha must be .*, but is '9'": configured(lora_alpha="9"),
    r"json: r must be .*, but is 0\.": configured(r=0),
    r"alpha_pattern of 'down_proj' must be .*, but is 0\.": configured(alpha_pattern={"down_proj": 0}),
    "rank_pattern must be a JSON object .*, but is 3": configured(rank_pattern=3),
    "holds several adapters": lambda state, _: state.update(
        {f"{DOWN}.lora_A.other.weight": random(4, 20), f"{DOWN}.lora_B.other.weight": random(12, 4)}
    ),
    "no matrix of an adapter": lambda state, _: state.update(
        {f"{Q}.lora_A.weight": torch.ones(6, 16, dtype=torch.int8)}
    ),
}


@pytest.mark.parametrize("said", HARMS)
def test_what_is_no_whole_adapter_is_refused_in_one_line(said: str, tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    state = peft_state()
    HARMS[said](state, folder)
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidFile, match=said) as refused:
        open_any(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("alpha", [math.nan, math.inf, 0.0, -1.0])
def test_an_alpha_of_kohya_is_a_number_above_0(alpha: float, tmp_path: Path) -> None:
    save_file(kohya_state(alpha), tmp_path / "style.safetensors")
    with pytest.raises(InvalidFile, match=rf"alpha' must be a number above 0 .*, but is {alpha}\."):
        open_any(str(tmp_path / "style.safetensors"))
    save_file(kohya_state() | {"lora_unet_conv.alpha": torch.ones(2)}, tmp_path / "style.safetensors")
    with pytest.raises(InvalidFile, match=r"'lora_unet_conv.alpha' must be one number, but is \(2,\) F32"):
        open_any(str(tmp_path / "style.safetensors"))


def test_what_is_missing_or_in_the_way_is_named_and_what_is_packed_is_opened(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    ran = [CliRunner().invoke(cli, ["adapter", str(folder), "--rank", "2", "--out", str(folder / "sub")])]
    export = ["export", str(folder), "--dense", "--format", "hf"]
    ran.append(CliRunner().invoke(cli, [*export, "--out", str(folder / "sub")]))
    small = str(tmp_path / "small.zip")
    assert CliRunner().invoke(cli, ["adapter", str(folder), "--out", small]).exit_code == 0
    packed, unpacked = (CliRunner().invoke(cli, ["adapter", each, "--json"]).output for each in (small, str(folder)))
    assert json.loads(packed)["modules"] == json.loads(unpacked)["modules"]
    ran.append(CliRunner().invoke(cli, ["layers", small]))
    (folder / "adapter_model.safetensors").unlink()
    ran.append(CliRunner().invoke(cli, ["adapter", str(folder)]))
    assert [(one.exit_code, one.output.count("\n")) for one in ran] == [(1, 1)] * 4, [one.output for one in ran]
    assert all("sub lies in the model, which this command reads" in one.output for one in ran[:2])
    assert "is a zip, which is not opened; unpack it and give the folder" in ran[2].output
    assert "peft has no adapter_model.safetensors beside its adapter_config.json" in ran[3].output
    assert [file.name for file in folder.iterdir()] == ["adapter_config.json"]
    assert "--weights" not in CliRunner().invoke(cli, ["adapter", "--help"]).output


def test_without_its_configuration_it_is_looked_at_and_not_written(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    (folder / "adapter_config.json").unlink()
    found = open_any(str(folder))
    assert isinstance(found, Weights)
    assert any("no adapter_config.json beside it" in notice for notice in found.notices)
    with pytest.raises(InvalidFile, match=r"has no adapter_config\.json beside it"):
        write_adapter(opened(folder), {"conv": 2}, tmp_path / "out")
    state = peft_state()
    state[f"{Q}.lora_A.weight"][0, 0] = math.nan
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(InvalidFile, match="A or B holds NaN"):
        ranks_for_energy(opened(folder), 0.9)
    assert [file.name for file in tmp_path.iterdir()] == ["peft"]


def test_a_whole_network_with_pairs_inside_is_weights_as_before(tmp_path: Path) -> None:
    save_file(peft_state() | {"q.base_layer.weight": random(4, 4)}, tmp_path / "all.safetensors")
    found = open_any(str(tmp_path / "all.safetensors"))
    assert isinstance(found, Weights)
    assert found.adapter is None


# ---- on the pages ---------------------------------------------------------------------------------------------------


def test_an_adapter_is_dropped_on_home_with_its_configuration(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft")
    files = [(file.name, file.read_bytes()) for file in folder.iterdir()]
    taken = dropped.take("0123456789abcdef", files)
    assert taken.plan is None
    assert taken.network is not None
    assert all(pair.scale for pair in opened(Path(taken.network)).pairs)
    with pytest.raises(InvalidFile, match=r"drop its \.safetensors together with it"):
        dropped.take("0123456789abcdef", [file for file in files if file[0].endswith(".json")])


def test_sliders_rules_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = peft_folder(tmp_path / "peft")
    monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS)
    page.switch_page("pages/3_Ranks.py").run()
    assert not page.exception
    assert not page.error
    sliders = {slider.label: slider for slider in page.slider}
    assert sliders["conv"].value == 6
    sliders["conv"].set_value(2).run()
    assert {slider.label: slider.value for slider in page.slider}["conv"] == 2
    bytes_of = opened(folder).bytes_at({**opened(folder).ranks, "conv": 2})
    assert {metric.label: metric.value for metric in page.metric}["Bytes of the tensors"] == f"{bytes_of / 1000:.3f} kB"
    next(button for button in page.button if button.label == "Set all ranks").click().run()
    ranks = ranks_for_energy(opened(folder), 0.99)
    values = {slider.label: slider.value for slider in page.slider}
    assert {name: values[words.plain(name)] for name in ranks} == ranks
    next(button for button in page.button if button.label == "Write the adapter").click().run()
    assert not page.error
    assert [line.value for line in page.success if "a zip of the folder that PEFT loads" in line.value]


# ---- PEFT itself ----------------------------------------------------------------------------------------------------


def test_peft_adds_the_same_before_and_after(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is installed where this is compared with it, and needed by nothing")
    torch.manual_seed(0)

    def base() -> torch.nn.Module:
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 8), torch.nn.Linear(8, 8))

    for rslora in (False, True):
        config = peft.LoraConfig(r=5, lora_alpha=3, target_modules=["0", "1"], rank_pattern={"1": 4}, use_rslora=rslora)
        model = peft.get_peft_model(base(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
        model.save_pretrained(tmp_path / f"first{rslora}")
        adapter = opened(tmp_path / f"first{rslora}")
        ranks = {"0": 2, "1": 4}
        write_adapter(adapter, ranks, tmp_path / f"small{rslora}")
        small = peft.PeftModel.from_pretrained(base(), tmp_path / f"small{rslora}")
        for name, rank in ranks.items():
            before, now = (net.base_model.model.get_submodule(name) for net in (model, small))
            assert now.r["default"] == rank
            assert now.scaling["default"] == before.scaling["default"]
            added = before.get_delta_weight("default").double()
            sigma = adapter.product(name).sigma * before.scaling["default"]
            assert torch.allclose(sigma, torch.linalg.svdvals(added)[: len(sigma)], atol=1e-6)
            u, s, v = torch.linalg.svd(added, full_matrices=False)
            best = (u[:, :rank] * s[:rank]) @ v[:rank]
            assert torch.allclose(now.get_delta_weight("default").double(), best, atol=1e-6)
