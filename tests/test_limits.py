"""What has an end says so in one line, and what is hostile is no traceback: names, depth, plans, options."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, note, settings
from torch import nn

from benchmarks import option_fuzz
from benchmarks.option_fuzz import Ended, Line, fault, invoked, late, lines, single_faults, stood_in, workplace
from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli, one_line, printable
from lowrank_core.errors import LISTED, MESSAGE_LETTERS, MOST_LAYERS, InvalidFile, InvalidModel, InvalidPlan, few
from lowrank_core.networks import discover
from lowrank_core.networks.profile import LONGEST_NAME
from lowrank_core.networks.wrappers import DEEPEST
from lowrank_core.plans.correction import LARGEST_SEED, Correction
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import read_plan
from lowrank_core.sources import _weights, open_any
from lowrank_core.sources._inventory import take_stock
from tests.test_bad_input import GOOD, refused

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- names and depth ------------------------------------------------------------------------------------------------


def nested(depth: int) -> nn.Module:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(depth):
        model = nn.Sequential(model)
    return model


def named(leaf: str, *, parameter: bool = False) -> nn.Module:
    model = nn.Module()
    model._modules["a"] = inside = nn.Linear(4, 4)
    (inside._parameters if parameter else inside._modules)[leaf] = (
        nn.Parameter(torch.ones(2)) if parameter else nn.ReLU()
    )
    return model


MODELS = {
    "2,000 deep": (lambda: nested(2000), f"deeper than {DEEPEST}"),
    "a dot": (lambda: named("a.b"), "'a.b' of a module or tensor inside 'a' must be a text without dots"),
    "empty": (lambda: named(""), "'' of a module or tensor inside 'a' must be a text"),
    "half a character": (lambda: named("a\ud800"), r"'a\\ud800' .* no text"),
    "acts on a terminal": (lambda: named("a\x1b[2J", parameter=True), r"'a\\x1b\[2J' .* no text"),
    "5,000 letters": (lambda: named("a" * 5000), f"5,002 letters, at most {LONGEST_NAME:,}"),
}


@pytest.mark.parametrize(("model", "says"), MODELS.values(), ids=MODELS)
def test_networks_that_nothing_could_be_done_with(model, says: str) -> None:
    with pytest.raises(InvalidModel, match=says):
        Workspace.of(model(), torch.ones(2, 4))


def test_a_network_that_is_as_deep_as_may_be(tmp_path: Path) -> None:
    x = torch.randn(40, 4)
    workspace = Workspace.of(nested(DEEPEST - 1).eval(), x[:2], x)
    plan = RankPlan.of(workspace.profile.fingerprint, {workspace.profile.layers[0].name: Choice("svd", (2,))})
    assert [score.samples for score in workspace.measure(workspace.compress(plan, workspace.correction))] == [40]


def test_a_network_of_too_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "MOST_LAYERS", 2)
    with pytest.raises(InvalidModel, match="3 layers that can be compressed, at most 2"):
        Workspace.of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(2, 4))


def weights(path: Path, *names: str) -> Path:
    header, at = {}, 0
    for name in names:
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [at, at + 16]}
        at += 16
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


@pytest.mark.parametrize("name", ["a\ud800.weight", "a\x1b[2J.weight", "a" * 5000])
def test_tensors_with_names_that_cannot_be_shown(name: str, tmp_path: Path) -> None:
    shards = tmp_path / "model.safetensors.index.json"
    shards.write_text(json.dumps({"weight_map": {name: "w.safetensors"}}))
    torch.save({name: torch.ones(2, 2)}, tmp_path / "w.pth")
    for path in (weights(tmp_path / "w.safetensors", name), shards, tmp_path / "w.pth"):
        assert "of a tensor" in refused("layers", path)


def test_weights_of_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights, "MOST_TENSORS", 2)
    with pytest.raises(InvalidFile, match="holds 3 tensors, at most 2"):
        open_any(str(weights(tmp_path / "w.safetensors", "a", "b", "c")))


class Counted(str):
    """A name that counts how often it is hashed: what is done again for each tensor is done too often."""

    hashed = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return super().__hash__()


def test_layers_of_weights_are_linear_in_tensors(tmp_path: Path) -> None:
    work = []
    for count in (50, 100):
        found = open_any(str(weights(tmp_path / "w.safetensors", *(f"blocks.{i}.weight" for i in range(count)))))
        assert isinstance(found, _weights.Weights)
        for tensor in found.tensors:
            object.__setattr__(tensor, "name", Counted(tensor.name))
        Counted.hashed = 0
        assert len(take_stock(found).layers) == count
        work.append(Counted.hashed)
    assert work[1] < 2.1 * work[0]


# ---- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_of_many_unknown_layers_is_refused_in_a_few_words() -> None:
    workspace = Workspace.open("builtin:iris-mlp")
    choices = {f"layer {'x' * 200} {number}": Choice("svd", (1,)) for number in range(2000)}
    with pytest.raises(InvalidPlan, match=r"has no layer 'layer x.*; and 1,995 more faults") as caught:
        check_plan(workspace.profile, RankPlan.of(workspace.profile.fingerprint, choices))
    assert len(str(caught.value)) < MESSAGE_LETTERS
    text = RankPlan.of("sha256:0", {str(number): Choice("svd", (1,)) for number in range(MOST_LAYERS + 1)}).to_json()
    with pytest.raises(InvalidPlan, match=r"at most 20,000 layers, but this has 20,001"):
        read_plan(text)


@pytest.mark.parametrize("changed", [{"seed": 2**70}, {"seed": -1}, {"samples": 2**70}, {"ridge": 1e300}])
def test_a_correction_beyond_what_can_be_computed(changed: dict[str, object]) -> None:
    with pytest.raises(InvalidPlan, match=f"not valid: .*{next(iter(changed))}"):
        Correction.from_dict({"kind": "least_squares", "samples": 10, **changed})
    assert Correction.from_dict({"kind": "bias", "samples": 1, "seed": LARGEST_SEED}).seed == LARGEST_SEED


# ---- messages -------------------------------------------------------------------------------------------------------


def test_lists_and_names_in_messages_are_cut() -> None:
    assert few(["x" * 5000, *"abcdefg"]) == f"{'x' * 80}..., a, b, c, d and 3 more"
    assert few(list("abcde")).count(",") == LISTED - 1
    assert len(one_line("word " * 5000)) == MESSAGE_LETTERS + 3
    assert one_line("a\n b\x1b[2J\udce9") == "a b\\x1b[2J\\udce9"
    assert printable("ü\t≥\n") == "ü\t≥\n"


def test_a_file_whose_name_is_no_text_is_opened_and_shown(tmp_path: Path) -> None:
    """Names of files are bytes: these are latin-1."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.py")
    Path(path).write_text(GOOD)
    shown = CliRunner().invoke(cli, ["check", path])
    assert (shown.exit_code, shown.exception) == (0, None)
    out = tmp_path / "p.json"
    found = CliRunner().invoke(cli, ["search", path, "--multiplies", "0.8", "--no-cache", "--out", str(out), "--json"])
    assert json.loads(found.stdout)["plan"] == json.loads(out.read_text())
    assert read_plan(out.read_bytes()).plan.choices


# ---- options --------------------------------------------------------------------------------------------------------

SLOW = {"app", "latency"}


@pytest.fixture(scope="module")
def opened() -> Iterator[list[int]]:
    with workplace(), stood_in() as count:
        yield count


def test_one_wrong_value_is_one_line_that_names_it_before_a_model_is_opened(opened: list[int]) -> None:
    every = [(param, line) for param, line in single_faults() if line.command.name not in SLOW]
    for param, line in every[::41]:
        ended = invoked(line, opened)
        assert not fault(line, ended), line.shown
        assert not late(param, ended), line.shown


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(line=lines())
def test_options_in_any_company_end_in_an_answer_or_one_line(opened: list[int], line: Line) -> None:
    if line.command.name in SLOW:
        return
    note(line.shown)
    assert fault(line, invoked(line, opened)) is None


FAULTS = {
    "traceback": Ended(1, "", "", False, "ValueError()"),
    "lines of refusal": Ended(1, "", "Error: --out a\nError: b\n", False),
    "names nothing": Ended(1, "", "Error: it is wrong.\n", False),
    "after a model was opened": Ended(2, "", "Error: Invalid value for '--plan'.\n", True),
    "letters": Ended(1, "", f"Error: --plan {'x' * 9000}\n", False),
    "status 3": Ended(3, "", "", False),
}


@pytest.mark.parametrize(("says", "ended"), FAULTS.items(), ids=FAULTS)
def test_the_fuzz_sees_what_is_wrong(says: str, ended: Ended) -> None:
    command = next(command for command in option_fuzz.commands() if command.name == "cost")
    assert says in (fault(option_fuzz.plain_line(command), ended) or "")
    assert isinstance(command, click.Command)


def test_a_state_without_a_name() -> None:
    said = refused("finetune", "builtin:iris-mlp", "--plan", "p", "--out", "x", "--state", "", status=2)
    assert re.search("--state|--plan", said)


@pytest.mark.slow
def test_a_real_process_prints_names_that_are_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(path)).touch()
    command = [sys.executable, "-m", "lowrank_core", "layers", path]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True)
    assert done.returncode == 1
    assert b"caf\\udce9.txt" in done.stderr
    assert b"Traceback" not in done.stderr
