"""The report of a plan: complete, safe whatever a name holds, of one network, and the same twice."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lowrank_core import Choice, RankPlan, Workspace
from lowrank_core.commands import cli
from lowrank_core.exports import Compressed
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.reports.as_html import html
from lowrank_core.reports.as_markdown import markdown
from lowrank_core.reports.findings import Confusion, Findings, told
from lowrank_core.reports.sections import Section, Table, sections

MODEL = "builtin:iris-mlp"


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


class Page(HTMLParser):
    """What a browser would fetch or run, and the text it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.shown += data


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open(MODEL)


@pytest.fixture(scope="module")
def plans(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("plans")
    small = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (1,)), "fc2": Choice("svd", (1,))})
    paths = folder / "<img src=x>.json", folder / "wide.json"
    for path, plan in zip(paths, (small, uniform_plan(workspace.profile, 0.9)), strict=True):
        path.write_text(plan.to_json(model_name="iris-mlp"))
    return paths


@pytest.fixture(scope="module")
def pages(plans: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """HTML of both plans, and Markdown of the first, with the front."""
    out = tmp_path_factory.mktemp("out")
    done = report(MODEL, "--plan", plans[0], "--plan", plans[1], "--out", out / "r.html")
    assert done.exit_code == 0, done.output
    done = report(MODEL, "--plan", plans[0], "--out", out / "r.md", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["front"] > 10
    return (out / "r.html").read_text(), (out / "r.md").read_text()


def test_the_page_says_all_and_asks_nothing_of_a_network(pages, workspace):
    page = Page(pages[0])
    assert page.fetched == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in pages[0]
    for part in ("Figures", "What was measured", "The front", "Layers", "Curves of single layers", "To repeat it"):
        assert part in page.shown
    for said in (workspace.profile.fingerprint, workspace.reference.hash, "95 %:", "flash in int8", "fc2", "quick, on"):
        assert said in page.shown
    assert "prefers-color-scheme: dark" in pages[0]
    assert "@media print" in pages[0]


def test_names_with_markup_are_text(pages, plans):
    page = Page(pages[0])
    assert "img" not in page.tags
    assert "<img src=x>" in page.shown
    assert "<img" not in pages[1]
    assert "&lt;img src=x>" in pages[1]


def test_the_plans_in_a_report_are_those_that_went_in(pages, plans):
    """What stands under a plan's name, saved under it, is that plan, and the command reads it."""
    (document,) = re.findall(r"```\n(\{.*?\n\})\n```", pages[1], re.DOTALL)
    assert json.loads(document)["layers"] == json.loads(plans[0].read_text())["layers"]
    assert "rank-explorer evaluate builtin:iris-mlp --plan img-src-x.json" in pages[1]


def test_the_same_report_twice(plans, tmp_path):
    written = []
    for name in ("a.md", "b.md"):
        assert report(MODEL, "--plan", plans[1], "--out", tmp_path / name, "--no-front").exit_code == 0
        written.append((tmp_path / name).read_text())
    assert written[0] == written[1]
    assert report(MODEL, "--plan", plans[1], "--out", tmp_path / "a.md", "--no-front").exit_code == 0  # over its own
    (tmp_path / "notes.md").write_text("# My notes\n")
    refused = report(MODEL, "--plan", plans[1], "--out", tmp_path / "notes.md", "--no-front")
    assert refused.exit_code == 1
    assert "--force" in refused.output


def test_plans_of_two_networks_are_refused_in_one_line(plans, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(RankPlan("sha256:" + "0" * 64).to_json(model_name="another"))
    refused = report(MODEL, "--plan", plans[1], "--plan", other, "--out", tmp_path / "r.html")
    assert refused.exit_code == 1
    assert refused.output.count("\n") == 1
    assert "a report is of one network" in refused.output
    assert not (tmp_path / "r.html").exists()
    assert report(MODEL, "--plan", plans[1], "--out", tmp_path / "r.pdf").exit_code == 2


def test_classes_add_up_to_the_score(workspace, plans):
    plan = uniform_plan(workspace.profile, 0.9)
    found, dense = told(workspace, "wide", Compressed(workspace.compress(plan), plan))
    assert found.confusion is not None
    assert sum(map(sum, found.confusion.counts)) == found.score.samples
    assert sum(found.confusion.right) == round(found.score.value * found.score.samples)
    assert sum(dense.right) == round(found.score.dense * found.score.samples)


def test_classes_have_the_names_that_the_model_file_gives_them(tmp_path):
    model = tmp_path / "net.py"
    model.write_text("""
import torch
from torch import nn

class_names = ["<i>cat", "dog"]

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()

def example_inputs():
    return (torch.zeros(1, 8),)

def eval_data():
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 2
""")
    plan = tmp_path / "plan.json"
    plan.write_text(uniform_plan(Workspace.open(str(model)).profile, 0.9).to_json(model_name="net"))
    assert report(model, "--plan", plan, "--out", tmp_path / "r.html", "--no-front", "--no-correct").exit_code == 0
    text = (tmp_path / "r.html").read_text()
    assert '<th scope="row">&lt;i&gt;cat</th>' in text
    assert '<th scope="col">dog</th>' in text


def test_of_many_classes_those_that_lose_most_are_listed(workspace):
    plan = uniform_plan(workspace.profile, 0.9)
    found, _ = told(workspace, "wide", Compressed(workspace.compress(plan), plan))
    size = 30
    dense = Confusion(tuple(range(size)), tuple(tuple(4 * (a == b) for b in range(size)) for a in range(size)))
    rows = [list(row) for row in dense.counts]
    rows[7][7], rows[7][8] = 1, 3
    many = Confusion(dense.labels, tuple(map(tuple, rows)))
    changed = type(found)("wide", found.compressed, found.cost, found.score, found.document, many)
    parts = sections(Findings(workspace, plan_cost(workspace.profile), (changed,), dense))
    (classes,) = (part for part in parts if part.title == "Classes")
    assert classes.table.rows[0] == ("7", "4", "4", "1", "−3")
    assert len(classes.table.rows) == 20


def test_a_layer_called_anything_is_only_ever_text():
    """Both writers, of sections that hold nothing but trouble."""
    bad = "</td><script>alert(1)</script> | `x` [a](javascript:b) & \n# c"
    parts = [Section(bad, (bad,), table=Table((bad,), ((bad,),)), copied=((bad, "```\n" + bad),))]
    page = Page(html(bad, parts))
    assert "script" not in page.tags
    assert page.fetched == []
    text = markdown(bad, parts)
    outside = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(javascript", outside)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 2 for line in outside.splitlines() if line.startswith("|"))
