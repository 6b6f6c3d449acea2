"""`export --format hf`: a folder that from_pretrained loads with the plug-in, and only with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lowrank_core import RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.compression.precision import Storage
from lowrank_core.errors import InvalidFile, InvalidModel, InvalidSettings
from lowrank_core.exports import EXPORTS, Compressed, bundle, hf, loading
from lowrank_core.layers.data import Dataset, run
from lowrank_core.plans.plan import Choice
from lowrank_core.scoring.scores import Score
from lowrank_core.store.kinds import file_hash
from lowrank_core.store.reference import with_parts

pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

ROOT = Path(__file__).parents[1]
KINDS = ("BertForSequenceClassification", "GPT2LMHeadModel")
"""An encoder with a head; a decoder whose table is that of its last layer, and whose weights are given to functions."""

FRESH = """
import json, sys
import torch, transformers
from transformers.utils import logging

def loaded(path, kind):
    return getattr(transformers, kind).from_pretrained(path, output_loading_info=True)

said, kinds = {}, json.loads(sys.argv[1])
for kind, path in kinds.items():
    try:
        loaded(path, kind)
        said[kind] = ["loaded without the plug-in"]
    except RuntimeError as error:
        said[kind] = [type(error).__name__]
import lowrank_hf
for kind, path in kinds.items():
    model, about = loaded(path, kind)
    saved = torch.load(path + ".answers", weights_only=True)
    with torch.no_grad():
        given = model(**saved["inputs"])
    far = max(float((given[name] - value).abs().max()) for name, value in saved["outputs"].items())
    wrong = [*about["missing_keys"], *about["unexpected_keys"], *about["mismatched_keys"]]
    said[kind] += [far, sorted(map(str, wrong))]
    model.save_pretrained(path + "-again", max_shard_size="20KB")
    again, about = loaded(path + "-again", kind)
    ours, theirs = model.state_dict(), again.state_dict()
    said[kind] += [[name for name in ours if not torch.equal(ours[name], theirs[name])], sorted(about["missing_keys"])]
print(json.dumps(said))
"""


def halved(workspace: Workspace, method: int = 0) -> RankPlan:
    """Every layer at half of its largest rank."""
    choices = []
    for layer in workspace.profile.layers:
        chosen = layer.methods[method]
        choices.append(
            (layer.name, Choice(chosen.name, tuple(max(1, most // 2) for most in chosen.max_rank(layer.spec))))
        )
    return RankPlan(workspace.profile.fingerprint, tuple(choices))


@pytest.fixture(scope="module")
def written_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Workspace, Compressed, Path]]:
    """Each kind opened, compressed and exported; of the decoder the weights go to several files."""
    from benchmarks.transformers_folders import written

    base = tmp_path_factory.mktemp("hf")
    made = {}
    for kind, shard in zip(KINDS, (hf.SHARD_BYTES, 30_000), strict=True):
        workspace = Workspace.open(str(written(kind, base / kind)))
        plan = halved(workspace)
        compressed = Compressed(workspace.compress(plan), plan, None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hf, "SHARD_BYTES", shard)
            exported = EXPORTS["hf"].write(workspace, compressed, base / f"{kind}-low")
        assert (exported.max_abs_diff, exported.verdict) == (0.0, "same")
        made[kind] = (workspace, compressed, base / f"{kind}-low")
    return made


def test_a_bundle_holds_the_folder(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace, compressed, folder = written_folders[KINDS[0]]
    few = {kind: bundle.MEMBERS[kind] for kind in ("safetensors", "hf", "plan")}
    monkeypatch.setattr(bundle, "MEMBERS", few)
    EXPORTS["bundle"].write(workspace, compressed, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        sums = dict(line.split("  ")[::-1] for line in archive.read("SHA256SUMS").decode().splitlines())
        assert {f"hf/{file.name}" for file in folder.iterdir()} <= set(sums)
        assert sums["hf/model.safetensors"] == file_hash(folder / "model.safetensors")
        assert "## hf, with transformers and lowrank_hf" in archive.read("README.md").decode()


def test_a_fresh_process_loads_it_with_the_plug_in_and_refuses_without(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]],
) -> None:
    for workspace, compressed, folder in written_folders.values():
        inputs = workspace.opened.example_inputs
        answers = {"inputs": inputs, "outputs": run(compressed.model, Dataset(inputs))}
        torch.save(answers, f"{folder}.answers")
    paths = {kind: str(folder) for kind, (_, _, folder) in written_folders.items()}
    ran = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(paths)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said == {kind: ["RuntimeError", 0.0, [], [], []] for kind in KINDS}
    assert "MISMATCH" in ran.stderr, "what does not fit is named"


def test_it_opens_again_as_a_network_of_transformers(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]],
) -> None:
    for kind, (workspace, compressed, folder) in written_folders.items():
        again = Workspace.open(str(folder))
        inputs = workspace.opened.example_inputs
        ours, theirs = (run(model, Dataset(inputs)) for model in (compressed.model, again.model))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any(layer.name.endswith(".0") for layer in again.profile.layers), f"{kind}: factors are layers"
        assert sum(p.numel() for p in again.model.parameters()) == sum(p.numel() for p in compressed.model.parameters())


def test_the_folder_holds_what_the_hub_reads(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]],
) -> None:
    from huggingface_hub import ModelCard

    workspace, compressed, folder = written_folders["GPT2LMHeadModel"]
    assert {"config.json", "plan.json", "README.md", "tokenizer.json", "model.safetensors.index.json"} <= {
        file.name for file in folder.iterdir()
    }
    card = ModelCard.load(folder / "README.md").data
    assert (card.base_model, card.library_name, card.license) == (workspace.name, "transformers", None)
    (snippet,) = loading(EXPORTS["hf"], workspace, compressed.plan, "net.zip")
    assert "from transformers import GPT2LMHeadModel" in snippet.code
    assert "import lowrank_hf" in (folder / "README.md").read_text()


def test_the_card_says_the_metric_with_its_interval_as_measured(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]],
) -> None:
    workspace, compressed, folder = written_folders["BertForSequenceClassification"]
    score = Score("accuracy", 0.9, 0.92, 500, True, 0.87, 0.93, 0.02, 0.01, 0.03)
    named: Any = type("Named", (), {})()
    named.name, named.profile = workspace.name, workspace.profile
    named.opened = replace(workspace.opened, ref=with_parts(str(workspace.opened.ref), data=folder / "reviews.npz"))
    card = hf._card(named, replace(compressed, score=score), Path(str(workspace.opened.ref)))
    assert "interval_95" in card
    assert "- 0.87" in card
    assert "text-classification" in card
    assert "| accuracy, 500 samples | 0.9 (95 % interval 0.87 to 0.93) | 0.92 |" in card


def test_the_command_writes_a_zip_and_replaces_only_what_it_wrote(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]], tmp_path: Path
) -> None:
    workspace, compressed, folder = written_folders["BertForSequenceClassification"]
    plan = tmp_path / "plan.json"
    plan.write_text(compressed.plan.to_json(model_name="b", correction=None, provenance={}))
    out = tmp_path / "out.zip"
    command = ["export", str(workspace.opened.ref), "--format", "hf", "--plan", str(plan), "--out"]
    ran = CliRunner().invoke(cli, [*command, str(out)])
    assert ran.exit_code == 0, ran.output
    with zipfile.ZipFile(out) as archive:
        assert {"config.json", "model.safetensors", "README.md"} <= {*archive.namelist()}
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years")
    for args in ([str(foreign)], [str(foreign), "--force"], [str(tmp_path)], [str(workspace.opened.ref), "--force"]):
        ran = CliRunner().invoke(cli, [*command, *args])
        assert ran.exit_code == 1, ran.output
        assert ran.output.count("\n") == 1, ran.output
        assert "is not overwritten" in ran.output
    assert (foreign / "thesis.txt").read_text() == "years"
    before = {file.name for file in folder.iterdir()}
    EXPORTS["hf"].write(workspace, compressed, folder)  # an own one is replaced
    assert {file.name for file in folder.iterdir()} == before
    (folder / "README.md").write_text("license: mit")
    ran = CliRunner().invoke(cli, [*command, str(folder)])
    assert ran.exit_code == 1
    assert (folder / "README.md").read_text() == "license: mit"


def test_nothing_half_written_where_it_fails(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, compressed, _ = written_folders["BertForSequenceClassification"]

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(InvalidFile, match="could not be written: No space left on device"):
        EXPORTS["hf"].write(workspace, compressed, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_folded_biases_are_refused(
    written_folders: dict[str, tuple[Workspace, Compressed, Path]], tmp_path: Path
) -> None:
    workspace, compressed, _ = written_folders["BertForSequenceClassification"]
    with pytest.raises(InvalidSettings, match="has no folded biases"):
        EXPORTS["hf"].write(workspace, compressed.stored(workspace, Storage(fold_bias=True)), tmp_path / "out")


def test_another_network_has_no_configuration_to_write(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    plan = RankPlan(workspace.profile.fingerprint)
    with pytest.raises(InvalidModel, match="did not come from a folder of save_pretrained"):
        EXPORTS["hf"].write(workspace, Compressed(workspace.model, plan, None), tmp_path / "out")


@pytest.mark.parametrize("harm", ["missing", "format", "layer"])
def test_a_folder_that_was_changed_is_refused_in_one_line(
    harm: str, written_folders: dict[str, tuple[Workspace, Compressed, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(written_folders["BertForSequenceClassification"][2], folder)
    config = json.loads((folder / "config.json").read_text())
    thin = config["quantization_config"]
    if harm == "missing":
        weights = load_file(folder / "model.safetensors")
        del weights[next(name for name in weights if name.endswith(".0.weight"))]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif harm == "format":
        thin["format"] = "lowrank-hf/2"
    else:
        thin["layers"][0]["parts"][0]["op"] = "eval"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=r"would be random|must be 'lowrank-hf/1'|cannot be built") as refused:
        Workspace.open(str(folder))
    assert "\n" not in str(refused.value)
