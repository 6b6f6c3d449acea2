"""Node data for Model Explorer: on the nodes of the file that is written, and adding up to the plan."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lowrank_core import Workspace, plan_cost
from lowrank_core.commands import cli
from lowrank_core.exports import Compressed
from lowrank_core.exports._node_data import node_data
from lowrank_core.measure.latency import LatencyTable
from lowrank_core.plans.plan import RankPlan
from lowrank_core.plans.uniform import uniform_plan


def values(text: str) -> dict[str, float]:
    return {node: one["value"] for node, one in json.loads(text)["graph"]["results"].items()}


@pytest.mark.parametrize("name", ["digits-cnn", "digits-lstm", "digits-attention"])
@pytest.mark.parametrize("kept", [0.5, None])
def test_what_nodes_take_adds_up_to_the_plan(name: str, kept: float | None) -> None:
    workspace = Workspace.open(f"builtin:{name}")
    profile = workspace.profile
    plan = RankPlan(profile.fingerprint) if kept is None else uniform_plan(profile, kept)
    found = node_data(workspace, Compressed(workspace.compress(plan), plan))
    cost = plan_cost(profile, plan)
    assert sum(values(found["bytes"]).values()) == cost.bytes
    assert sum(values(found["multiplies"]).values()) == cost.multiplies - profile.rest.multiplies
    assert ("rank" in found) == bool(plan.choices)


def test_the_command_writes_a_file_for_each_quantity_about_the_nodes_of_the_program(tmp_path: Path) -> None:
    workspace = Workspace.open("builtin:digits-cnn")
    plan = uniform_plan(workspace.profile, 0.5)
    (tmp_path / "plan.json").write_text(plan.to_json())
    rows = ["layer,method,rank,microseconds"]
    rows += [f"{name},{choice.method},{choice.rank[0]},{at}.5" for at, (name, choice) in enumerate(plan.choices)]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    files = ["--plan", "plan.json", "--out", "net.pt2", "--node-data", "nodes.json", "--latency-table", "table.csv"]
    given = [word if word.startswith("-") else str(tmp_path / word) for word in files]
    arguments = ["export", "builtin:digits-cnn", "--format", "pt2", *given, "--json"]
    for _ in range(2):  # over its own files again
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
    nodes = {node.name for node in torch.export.load(tmp_path / "net.pt2").graph.nodes}
    written = [Path(path) for path in json.loads(done.stdout)["node_data"]]
    assert [path.name for path in written] == [
        f"nodes-{quantity}.json" for quantity in ("graph", "bytes", "multiplies", "rank", "error", "microseconds")
    ]
    (graph,) = json.loads(written.pop(0).read_text())["graphs"]
    shown = {node["id"] for node in graph["nodes"]}
    assert shown <= nodes
    assert {edge["sourceNodeId"] for node in graph["nodes"] for edge in node["incomingEdges"]} <= shown
    assert {node["namespace"] for node in graph["nodes"]} >= {"fc1/0", "fc1/1"}
    for path in written:
        assert set(values(path.read_text())) <= shown
    assert sorted(values(written[-1].read_text()).values()) == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert values(written[2].read_text())["linear_1"] == plan.get("fc1").rank[0]
    onnx = {"pt2": "onnx", str(tmp_path / "net.pt2"): str(tmp_path / "net.onnx")}
    refused = CliRunner().invoke(cli, [onnx.get(word, word) for word in arguments])
    assert refused.exit_code == 2


def test_a_layer_that_the_table_does_not_know_has_no_time() -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    plan = RankPlan(workspace.profile.fingerprint)
    table = LatencyTable({("fc2", "dense"): (((), 3.0),)})
    found = node_data(workspace, Compressed(workspace.model, plan), table)
    assert list(values(found["microseconds"]).values()) == [3.0]
