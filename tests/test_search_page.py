"""The page Search without a browser: any rule, what it is asked, what is shown of it, and the plan that is adopted."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from lowrank_core.errors import Cancelled, InvalidFile
from lowrank_core.measure.effort import Measurements
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.running.scope import somebody_waits
from lowrank_core.scoring.scores import Score
from lowrank_core.selection import RULES, make
from lowrank_core.selection._problem import Problem, Trial
from lowrank_core.training.recipe import Settings
from lowrank_core.workspace import Workspace
from pages.ui import devices, goals, question, tried
from pages.ui.asked import from_json, to_json
from pages.ui.devices import Device
from pages.ui.question import Question, Search
from pages.ui.state import jobs, models
from pages.ui.tuning import Sweep, Training
from tests.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
RANKS = (10, 20, 30)
CONVOLUTIONS = {"conv2": Choice("spatial_svd", (8,)), "conv3": Choice("spatial_svd", (16,))}


@dataclass(frozen=True, slots=True)
class Planted:
    """Three ranks of fc1,
    one after the other.

    Nothing else.
    """

    name: ClassVar[str] = "planted"
    label: ClassVar[str] = "Planted"
    source: ClassVar[str] = "this test"
    serves: ClassVar[frozenset[str]] = frozenset({"budget", "max_drop", "nothing"})
    methods: ClassVar[tuple[str, ...]] = ()
    asked: ClassVar[list[tuple["Planted", Problem]]] = []
    breaks: ClassVar[list[Exception]] = []

    count: int = field(default=3, metadata={"min": 1, "max": 3, "label": "Ranks tried", "help": "How many."})
    keep: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})
    quick: bool = False
    order: str = field(default="up", metadata={"choices": ("up", "down"), "label": "Order"})
    note: str = field(default="hello", metadata={"label": "Remark"})

    def measurements(self, problem: Problem) -> Iterator[Measurements]:
        return iter(())

    def search(self, problem: Problem) -> Iterator[Trial]:
        self.asked.append((self, problem))
        if self.note == "more samples":
            assert problem.correction is not None
            more = problem.workspace.correction_in(replace(problem.correction, samples=300))
            problem = replace(problem, correct_by=more)
        for rank in RANKS[: self.count]:
            plan = problem.plan({**CONVOLUTIONS, "fc1": Choice("svd", (rank,))})
            yield problem.trial(plan, self.note, problem.measure(plan, samples=64))
            if self.breaks:
                raise self.breaks.pop()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    """A rule that nobody has written yet."""
    monkeypatch.setitem(RULES, "planted", Planted)
    Planted.asked.clear()
    Planted.breaks.clear()
    return Planted


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    """Sessions share searches for as long as the process lives."""
    jobs.searches.clear()


Open = Callable[..., AppTest]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """`opened(rule)`: the page in a fresh session, with that rule chosen."""

    def opener(rule: str, model: str = "builtin:digits-cnn", **address: str) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["app.py", model])
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=PATIENCE_SECONDS).switch_page("pages/4_Search.py")
        for name, value in address.items():
            app.query_params[name] = value
        return app.run().selectbox(key="search rule").set_value(rule).run()

    return opener


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open("builtin:digits-cnn")


def press(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label == label).click().run()


def labelled(page: AppTest, kind: str, label: str):
    return next(element for element in page.get(kind) if element.label == label)


def text(page: AppTest) -> str:
    return "\n".join(str(element.value) for kind in ("markdown", "caption") for element in page.get(kind))


def traces(page: AppTest) -> dict[str, dict]:
    figure = json.loads(page.get("plotly_chart")[0].proto.spec)
    return {trace["name"]: trace for trace in figure["data"]}


def goal(page: AppTest, wish: str) -> AppTest:
    return page.get("button_group")[0].set_value(wish).run()


def histories(page: AppTest):
    return next(iter(page.session_state["histories"].values()))


def test_a_rule_appears_by_itself_with_its_words_and_settings(opened: Open, planted: type[Planted]) -> None:
    page = opened("planted")
    assert "Three ranks of fc1, one after the other. *Source: this test.*" in text(page)
    assert "Nothing else" not in text(page)
    count = labelled(page, "number_input", "Ranks tried")
    assert (count.value, count.min, count.max, count.help) == (3, 1, 3, "How many.")
    count.set_value(2)
    labelled(page, "number_input", "Keep").set_value(0.25)
    labelled(page, "checkbox", "Quick").set_value(True)
    labelled(page, "selectbox", "Order").set_value("down")
    labelled(page, "text_input", "Remark").set_value("good day")
    page = press(page, "Start search")
    assert not page.error
    assert planted.asked[-1][0] == Planted(2, 0.25, True, "down", "good day")


def test_what_is_asked_reaches_the_rule(opened: Open, planted: type[Planted], workspace: Workspace) -> None:
    page = opened("planted")
    labelled(page, "slider", "Multiplies budget").set_value(80.0)
    labelled(page, "slider", "Bytes budget").set_value(90.0)
    labelled(page, "multiselect", "Methods").set_value(["svd", "tucker2"])
    labelled(page, "multiselect", "Layers that stay dense").set_value(["conv1"])
    labelled(page, "selectbox", "Ranks in multiples of").set_value(8)
    labelled(page, "number_input", "Evaluation samples per trial").set_value(100)
    press(page, "Start search")
    problem, dense = planted.asked[-1][1], plan_cost(workspace.profile)
    assert dict(problem.budgets) == pytest.approx({"multiplies": 0.8 * dense.multiplies, "bytes": 0.9 * dense.bytes})
    assert (problem.methods, problem.locked, problem.multiple_of) == (("svd", "tucker2"), {"conv1"}, 8)
    assert (problem.samples, problem.corrected, problem.max_drop) == (100, True, None)


def test_a_goal_decides_what_can_be_given(opened: Open, planted: type[Planted]) -> None:
    page = goal(opened("planted"), "nothing")
    assert not page.slider
    press(page, "Start search")
    assert planted.asked[-1][1].budgets == ()
    page = goal(page, "max_drop")
    labelled(page, "number_input", "Largest drop of the top-1 accuracy, points").set_value(2.5)
    page = press(page, "Start search")
    assert planted.asked[-1][1].max_drop == pytest.approx(0.025)
    assert planted.asked[-1][1].budgets == (), "the whole network is no budget"
    assert "Bytes budget" not in [slider.label for slider in opened("planted").slider if slider.value < 100]


def test_only_what_a_rule_serves_is_offered(
    opened: Open, planted: type[Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Planted, "serves", frozenset({"max_drop"}))
    page = opened("planted")
    assert not page.slider
    assert "Goal" not in [group.label for group in page.get("button_group")]
    assert labelled(page, "number_input", "Largest drop of the top-1 accuracy, points").value == 1.0


def test_trials_answer_and_dense_are_on_one_axis(opened: Open, planted: type[Planted], workspace: Workspace) -> None:
    """All stand by their paired change against dense on their own samples, whatever those are."""
    page = press(opened("planted"), "Start search")
    drawn, (_, problem) = traces(page), planted.asked[-1]
    plans = [problem.plan({**CONVOLUTIONS, "fc1": Choice("svd", (rank,))}) for rank in (*RANKS, RANKS[-1])]
    dense = plan_cost(workspace.profile).multiplies
    assert drawn["tried"]["x"] == pytest.approx([plan_cost(workspace.profile, p).multiplies / dense for p in plans])
    whole = replace(problem, correct_by=None).measure(plans[-1])  # with the thorough correction
    scores = [*(problem.measure(plan, samples=64) for plan in plans[:-1]), whole]
    assert drawn["tried"]["y"] == pytest.approx([-100 * score.drop for score in scores])
    assert (drawn["answer"]["x"], drawn["answer"]["y"]) == (drawn["tried"]["x"][-1:], drawn["tried"]["y"][-1:])
    assert (drawn["dense"]["x"], drawn["dense"]["y"]) == ([1.0], [0.0])
    assert "earlier searches" not in drawn
    page = press(labelled(page, "slider", "Multiplies budget").set_value(99.0).run(), "Start search")
    assert traces(page)["earlier searches"]["x"] == drawn["answer"]["x"]
    against = next(g for g in page.get("button_group") if g.label == "Change against")
    bytes_share = plan_cost(workspace.profile, plans[-1]).bytes / plan_cost(workspace.profile).bytes
    assert traces(against.set_value("bytes").run())["answer"]["x"] == pytest.approx([bytes_share])


def layer_table(page: AppTest) -> pd.DataFrame:
    """The plan that is looked at, layer by layer; the charts have tables of their own."""
    return next(table.value for table in page.dataframe if "Layer" in table.value)


def test_a_plan_is_adopted_and_can_be_undone(opened: Open, workspace: Workspace) -> None:
    page = press(opened("uniform"), "Start search")
    assert not page.error
    page = press(page, "Adopt this plan")
    history = histories(page)
    share = plan_cost(workspace.profile, history.plan).multiplies / plan_cost(workspace.profile).multiplies
    assert 0.47 < share <= 0.5
    assert len(history.past) == 1
    assert "Adopt this plan" not in [button.label for button in page.button]
    assert "This is the plan now" in text(page)
    assert set(layer_table(page)["Layer"]) == {layer.name for layer in workspace.profile.layers}
    row = layer_table(page).set_index("Layer").loc["fc1"]
    assert (row["Method"], row["Rank"]) == ("SVD", str(history.plan.get("fc1").rank[0]))


def test_any_trial_can_be_adopted(opened: Open, planted: type[Planted]) -> None:
    page = press(opened("planted"), "Start search")
    trial = labelled(page, "selectbox", "Plan")
    assert trial.options[trial.index].endswith("the answer")
    page = press(trial.select_index(0).run(), "Adopt this plan")
    assert histories(page).plan.get("fc1") == Choice("svd", RANKS[:1])


def test_the_adopted_plan_keeps_the_correction_it_was_measured_with(opened: Open, planted: type[Planted]) -> None:
    page = press(opened("planted"), "Start search")
    found = page.session_state["histories"]
    for fingerprint, history in found.items():
        found[fingerprint] = history.correct(False)
    page = press(page.run(), "Adopt this plan")
    assert histories(page).corrected
    assert planted.asked[-1][1].corrected


def test_the_adopted_plan_keeps_the_samples_that_it_was_corrected_on(opened: Open, planted: type[Planted]) -> None:
    page = opened("planted")
    labelled(page, "text_input", "Remark").set_value("more samples")
    page = press(page, "Start search")
    page = press(labelled(page, "selectbox", "Plan").select_index(0).run(), "Adopt this plan")
    assert histories(page).correction.samples == 300
    assert "This is the plan now" in " ".join(each.value for each in page.markdown)


def test_an_impossible_budget_is_one_clear_text(opened: Open) -> None:
    page = opened("uniform")
    labelled(page, "slider", "Multiplies budget").set_value(0.1)
    page = press(page, "Start search")
    assert not page.exception
    assert len(page.error) == 1
    assert "cannot be reached" in page.error[0].value
    assert not page.get("plotly_chart")
    labelled(page, "slider", "Multiplies budget").set_value(50.0)
    page = press(page, "Start search")
    assert not page.error
    assert page.get("plotly_chart")


def test_a_rule_that_fails_is_one_clear_text_and_what_it_measured_stays(opened: Open, planted: type[Planted]) -> None:
    planted.breaks.append(ZeroDivisionError("by zero"))
    page = press(opened("planted"), "Start search")
    assert not page.exception
    assert [error.value for error in page.error] == ["Search\\: Planted failed\\: ZeroDivisionError\\: by zero"]
    assert len(traces(page)["tried"]["x"]) == 1
    assert list(page.dataframe[-1].value["Ended"]) == ["failed"]


def test_a_search_that_was_cancelled_goes_on_where_it_was(opened: Open, planted: type[Planted]) -> None:
    page = opened("planted")
    labelled(page, "text_input", "Remark").set_value("cut short")
    planted.breaks.append(Cancelled("called off."))
    page = press(page, "Start search")
    assert "Cancelled after 1 plan;" in page.info[0].value
    assert list(page.dataframe[-1].value["Ended"]) == ["cancelled"]
    page = press(page, "Start search")
    assert not page.info
    assert len(planted.asked) == 2
    first, second = (problem.ledger for _, problem in planted.asked)
    assert len(second._values) >= len(RANKS)
    assert first._values.items() <= second._values.items()
    assert list(page.dataframe[-1].value["Ended"]) == ["answered"]


def test_the_same_question_of_two_sessions_is_one_search(opened: Open, planted: type[Planted]) -> None:
    for _ in range(2):
        page = opened("planted")
        labelled(page, "text_input", "Remark").set_value("the same")
        page = press(page, "Start search")
        assert "answer" in traces(page)
    assert len(planted.asked) == 1


def test_a_refresh_loses_nothing(opened: Open, planted: type[Planted]) -> None:
    page = opened("planted")
    assert page.info
    page = press(page, "Start search")
    again = opened("planted", w=page.session_state["session"])
    assert "answer" in traces(again)
    assert list(again.dataframe[-1].value["Rule"]) == ["Planted"]


def test_rules_stand_side_by_side(opened: Open, planted: type[Planted], workspace: Workspace) -> None:
    page = press(opened("planted"), "Start search")
    page = press(page.selectbox(key="search rule").set_value("uniform").run(), "Start search")
    table = page.dataframe[-1].value
    assert list(table["Rule"]) == ["Planted", "Uniform"]
    assert list(table["Asked"]) == ["50 % multiplies"] * 2
    assert list(table["Trials"]) == [4, 1]  # and the answer once more, with the thorough correction
    shown = labelled(page, "selectbox", "Search shown")
    assert shown.options == ["Uniform: 50 % multiplies", "Planted: 50 % multiplies"]
    page = shown.select_index(1).run()
    assert table["Multiplies"][0] == plan_cost(workspace.profile, planted_plan(workspace)).multiplies
    assert list(layer_table(page)["Rank"])[3] == "30"
    assert page.get("download_button")[0].label == "Export as CSV"


def planted_plan(workspace: Workspace) -> RankPlan:
    return RankPlan.of(workspace.profile.fingerprint, {**CONVOLUTIONS, "fc1": Choice("svd", (30,))})


def test_the_exported_rows_hold_plain_figures(planted: type[Planted], workspace: Workspace, tmp_path: Path) -> None:
    asked = Question(Planted(note="x"), (("multiplies", 0.9),), locked=("conv1",), multiple_of=4)
    known = Job("planted", lambda: question.ask(workspace, asked, tmp_path), patience_seconds=inf).wait()
    (row,) = question.comparison(workspace, [Search(asked, known)])
    score, cost = known.found[-1].score, plan_cost(workspace.profile, planted_plan(workspace))
    assert row["asked"] == "90 % multiplies, note x, 1 locked, multiples of 4"
    assert (row["multiplies"], row["bytes"], row["trials"], row["plan"]) == (
        cost.multiplies,
        cost.bytes,
        4,
        "conv2=spatial_svd:8; conv3=spatial_svd:16; fc1=svd:30",
    )
    assert (row["score"], row["drop"], row["drop_low"]) == (score.value, score.drop, score.drop_low)
    assert row["multiplies_share"] == cost.multiplies / plan_cost(workspace.profile).multiplies


def test_a_device_sets_the_budget_of_bytes(opened: Open, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, tiny = Device("small", 96 << 10), Device("large", 2 << 20), Device("tiny", 10)
    monkeypatch.setattr(devices, "DEVICES", (small, large, tiny))
    page = opened("uniform")
    dense, empty = plan_cost(workspace.profile).bytes, RankPlan(workspace.profile.fingerprint)
    page.selectbox(key="goal device").set_value("small").run()
    share = labelled(page, "slider", "Bytes budget").value
    buffers = goals.flash_bytes(workspace, empty, "float32") - dense
    assert share / 100 * dense + buffers <= 96 << 10 < (share + 0.1) / 100 * dense + buffers
    assert labelled(page, "slider", "Multiplies budget").value == 100, "the device alone is the limit"
    page.selectbox(key="goal number").set_value("int8").run()
    assert labelled(page, "slider", "Bytes budget").value > 3 * share
    page.selectbox(key="goal device").set_value("large").run()
    assert labelled(page, "slider", "Bytes budget").value == 100
    assert "flash in int8: it fits." in text(page).replace("\\", "")
    page.selectbox(key="goal device").set_value("tiny").run()
    assert "what cannot be factorised is too large alone" in text(page)


def score_of(drop: float, samples: int = 100, within: bool | None = None, half: float | None = 0.01) -> Score:
    low, high = (None, None) if half is None else (drop - half, drop + half)
    return Score("top-1 accuracy", 0.95 - drop, 0.95, samples, True, 0.8, 0.99, drop, low, high, within)


def trial_of(workspace: Workspace, score: Score, rank: int = 4, note: str = "") -> Trial:
    plan = RankPlan.of(workspace.profile.fingerprint, {"fc1": Choice("svd", (rank,))})
    return Trial(Candidate(plan), plan_cost(workspace.profile, plan), score, note)


def test_a_mark_stands_by_its_change_with_the_reason_beside_it(workspace: Workspace) -> None:
    found = tried.mark(workspace, trial_of(workspace, score_of(0.05), note="too far"), "bytes", "key", says="refuted")
    assert found is not None
    assert (found.y, found.low, found.high) == pytest.approx((-5, -6, -4))
    assert found.says == "refuted. too far. −5.00 points against dense (95 %: −6.00 to −4.00) on 100 samples"
    broken = replace(score_of(inf), not_finite=3)
    assert tried.mark(workspace, trial_of(workspace, broken), "bytes", "key") is None


def test_verdicts_are_those_of_the_test_where_there_was_one_else_of_the_interval(workspace: Workspace) -> None:
    tests, walks = (Question(make(rule, {}), max_drop=0.01) for rule in ("budget", "bisection"))
    within_budget = Question(make("budget", {}), (("bytes", 0.5),))

    def verdict(asked: Question, score: Score, limit: float | None) -> str | None:
        return tried.verdict(workspace, asked, score, limit)

    assert [verdict(tests, score_of(0.0, within=known), 0.01) for known in (True, False, None)] == [
        *("shown within", "refuted", "undecided")
    ]
    for asked in (walks, within_budget):
        assert [verdict(asked, score_of(drop), 0.02) for drop in (0.0, 0.02, 0.04)] == [
            *("shown within", "undecided", "refuted")
        ]
    assert verdict(walks, score_of(0.0, half=None), 0.01) == "undecided"
    assert verdict(tests, replace(score_of(inf), not_finite=1), 0.01) == "refuted"
    assert verdict(within_budget, score_of(0.5), None) is None


def test_what_is_said_of_a_verdict(workspace: Workspace) -> None:
    asked, all_samples = Question(make("budget", {}), max_drop=0.01), len(workspace.reference)

    def said(score: Score) -> str:
        return tried.sentence(workspace, asked, score, 0.01)

    assert said(score_of(0.25, 64, False)) == (
        "Decided on 64 samples: it drops by more than 1 point; −25.00 points on these (95 %: −26.00 to −24.00)."
    )
    assert said(score_of(0.0, all_samples)).endswith(
        "Undecided: 797 samples cannot tell whether it drops by at most 1 point."
    )
    assert said(score_of(0.0, all_samples, True)).endswith(". It is shown that it drops by at most 1 point.")
    assert tried.short(workspace, score_of(0.25, 64, False), "refuted") == "refuted, decided on 64 samples"
    assert tried.short(workspace, score_of(0.25, 64), None) == "70.00 %"


def finished(workspace: Workspace, rule: str, trial: Trial | None, **asked: float) -> Search:
    found = () if trial is None else (trial,)
    wish = Question(make(rule, {}), tuple(asked.items()))
    return Search(wish, Snapshot(found, over=True, cancelled=trial is None))


def test_the_best_search_is_shown_and_the_sign_of_a_loss_is_one(workspace: Workspace) -> None:
    small, large = (trial_of(workspace, score_of(0.01), rank) for rank in (4, 20))
    lossy = trial_of(workspace, score_of(0.2), 20)
    listed = [
        finished(workspace, "budget", small, multiplies=0.5),
        finished(workspace, "uniform", lossy, multiplies=0.6),
        finished(workspace, "balf", large, multiplies=0.7),
        finished(workspace, "lc", None),
    ]

    def best(keeps: Callable[[Trial], bool] = lambda trial: True, some: list[Search] = listed) -> int:
        return tried.best(some, "multiplies", keeps)

    assert best() == 0, "no other one costs less and loses less"
    assert best(lambda trial: trial == large) == 2, "a goal comes first"
    assert best(some=[*listed, listed[0]]) == 4, "of equals the latest"
    assert best(some=listed[3:]) == 0

    row, *_ = tried.rows(workspace, listed, lambda asked: 0.03)
    assert (row["Change"], row["95 %"], row["Verdict"]) == (pytest.approx(-1), "−2.00 to +0.00", "shown within")
    early = [finished(workspace, "budget", trial_of(workspace, score_of(0.01, 64, True)))]
    (row,) = tried.rows(workspace, early, lambda asked: 0.03)
    assert row["Score"] is None, "what ended with a verdict is no score"


def test_sizes_of_flash_as_they_are_typed() -> None:
    assert [devices.size(t) for t in ("96 kB", "1.5MB", "64KiB", " 2 m ")] == [96000, 1500000, 65536, 2000000]
    assert [devices.size(t) for t in ("", "many", "12", "-3 kB", "kB")] == [None] * 5


LATENCY = "layer,method,rank,microseconds\nfc1,dense,,90\nfc1,svd,16,30\nfc1,svd,64,50\nconv2,dense,,10\n"


def test_a_latency_table_brings_a_budget(opened: Open, planted: type[Planted]) -> None:
    page = opened("planted")
    assert "Microseconds budget" not in [slider.label for slider in page.slider]
    page.file_uploader[0].upload("times.csv", LATENCY.encode(), "text/csv").run()
    labelled(page, "slider", "Microseconds budget").set_value(60.0)
    page = press(page, "Start search")
    assert not page.error
    assert dict(planted.asked[-1][1].budgets)["microseconds"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("table", "says"),
    [("layer,method\n", "has the columns"), (LATENCY.replace("fc1", "x").replace("conv2", "y"), "no dense time")],
)
def test_a_bad_latency_table_is_one_clear_text(opened: Open, table: str, says: str) -> None:
    page = opened("uniform")
    page.file_uploader[0].upload("times.csv", table.encode(), "text/csv").run()
    assert not page.exception
    assert len(page.error) == 1
    assert says in page.error[0].value
    assert labelled(page, "button", "Start search").disabled


def test_an_empty_latency_text_is_no_table(workspace: Workspace) -> None:
    assert not question.latency_table("", workspace).layers
    with pytest.raises(InvalidFile):
        question.latency_table("x", workspace)


def test_a_search_gives_way_to_whoever_waits(planted: type[Planted], workspace: Workspace, tmp_path: Path) -> None:
    asked = Question(Planted(note="patient"), (("multiplies", 0.9),))
    with somebody_waits():
        job = Job("planted", lambda: question.ask(workspace, asked, tmp_path), patience_seconds=inf)
        assert not job.wait(0.3).found
        assert not job.snapshot.over
    assert len(job.wait().found) == 4


def test_a_search_goes_on_even_where_somebody_always_waits(
    planted: type[Planted], workspace: Workspace, tmp_path: Path
) -> None:
    asked = Question(Planted(note="not starved"), (("multiplies", 0.9),))
    with somebody_waits():
        job = Job("planted", lambda: question.ask(workspace, asked, tmp_path), patience_seconds=0.05)
        assert len(job.wait().found) == 4


def test_a_search_that_waits_can_be_cancelled(planted: type[Planted], workspace: Workspace, tmp_path: Path) -> None:
    asked = Question(Planted(note="waiting"), (("multiplies", 0.9),))
    with somebody_waits():
        job = Job("planted", lambda: question.ask(workspace, asked, tmp_path), patience_seconds=inf)
        job.cancel()
        assert job.wait().cancelled


def test_a_stopped_server_is_asked_again_where_it_was(opened: Open, planted: type[Planted]) -> None:
    page = press(opened("planted"), "Start search")
    jobs.searches.clear()  # as after a new start
    again = opened("planted", w=page.session_state["session"])
    assert not again.dataframe
    assert labelled(again, "selectbox", "Asked").options == ["Planted: 50 % multiplies"]
    again = press(again, "Go on")
    assert "answer" in traces(again)
    assert not [button for button in again.button if button.label == "Go on"]
    first, second = (problem.ledger for _, problem in planted.asked)
    assert first._values.items() <= second._values.items()


def test_what_was_asked_comes_back_from_its_text_and_what_cannot_be_asked_is_left_out() -> None:
    candidate = Candidate(RankPlan("sha256:0", (("a", Choice("svd", (3,))),)), Correction(samples=3, data="x"))
    wanted = (
        Question(make("energy", {"keep": "0.8"}), (("multiplies", 0.5),), methods=("svd",)),
        Sweep((0.5, 0.2), "bytes", make("budget", {}), Settings(epochs=2)),
        Training(candidate, Settings(), starts=(False, True)),
    )
    documents = json.loads(to_json(wanted))
    assert from_json(to_json(wanted)) == wanted
    gone, other, damaged = (dict(documents[0]) for _ in range(3))
    gone["rule"] = {"name": "gone", "settings": {}}
    other["rule"] = {"name": "energy", "settings": {"keep": "much"}}
    damaged.pop("kind")
    assert from_json(json.dumps([gone, documents[1], other, damaged, {}]).encode()) == wanted[1:2]
    assert from_json(b'{"cut') == from_json(b"[3]") == ()


def test_a_job_is_seen_on_other_pages_until_its_own_was_looked_at(
    opened: Open, planted: type[Planted], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = opened("planted")
    hold = threading.Event()

    def slow(self: Planted, problem: Problem) -> Iterator[Trial]:
        hold.wait()
        yield problem.trial(problem.plan({**CONVOLUTIONS, "fc1": Choice("svd", (10,))}))

    monkeypatch.setattr(planted, "search", slow)
    rule = planted(note="held")
    asked, key = Question(rule, (("multiplies", 0.5),)), models.key
    shown = models.open_model("builtin:digits-cnn", "")
    job = Job("Search: Planted", lambda: question.ask(shown, asked, models.cache().points))
    jobs.searches().begin(page.session_state["session"], key(shown), asked, lambda: job)
    page = page.switch_page("pages/1_Model.py").run()
    assert any("Search: Planted · since" in label for label in links(page))
    hold.set()
    assert job.wait().error is None
    page = page.run()
    assert "Search: Planted · done" in links(page)
    page = page.switch_page("pages/4_Search.py").run()
    assert not any("Planted" in label for label in links(page))
    page = page.switch_page("pages/1_Model.py").run()
    assert not any("Planted" in label for label in links(page))


def links(page: AppTest) -> list[str]:
    return [link.proto.label.replace("\\", "") for link in page.get("page_link")]


def test_a_job_that_is_over_is_put_away_and_stays_away_until_it_is_asked_again(opened: Open) -> None:
    page = press(opened("uniform"), "Start search")
    session, job = page.session_state["session"], jobs.searches().of_session(page.session_state["session"])[0].job
    jobs.searches.clear()
    shown = models.open_model("builtin:digits-cnn", "")
    jobs.searches().begin(session, models.key(shown), Question(make("uniform", {})), lambda: job)
    page = page.switch_page("pages/1_Model.py").run()
    assert "Search: Uniform · done" in links(page)
    page = press(page, "Put away")
    again = opened("uniform", w=session).switch_page("pages/1_Model.py").run()  # as another tab, or after a reload
    for one in (page, again):
        assert not any("Uniform" in label for label in links(one))
    jobs.searches().begin(session, models.key(shown), Question(make("uniform", {})), lambda: job)
    assert "Search: Uniform · done" in links(page.run())


def test_the_list_of_rules_begins_with_the_recommended_one_and_says_a_line_of_each(opened: Open) -> None:
    page = opened("budget")
    rules = page.selectbox(key="search rule").options
    assert rules[0] == "Budget (recommended): least loss in a budget"
    assert len(rules) == len(RULES)
    assert all(": " in rule for rule in rules)
    assert labelled(page, "multiselect", "Methods").placeholder.startswith("Usual: ")
    assert "Make smallest" not in [box.label for box in page.selectbox], "a budget is not spent on anything else"
    assert "Make smallest" in [box.label for box in goal(page, "max_drop").selectbox]


def test_the_floor_of_the_goals_is_the_drop_that_is_asked_for(opened: Open) -> None:
    page = opened("budget")
    floor = labelled(page, "number_input", "Top-1 accuracy at least, %")
    dense, _ = models.dense_score(models.open_model("builtin:digits-cnn", ""))
    page = floor.set_value(98.0).run()
    drop = labelled(page, "number_input", "Largest drop of the top-1 accuracy, points")
    assert drop.value == pytest.approx(100 * dense - 98, abs=1e-4)


def test_a_search_says_what_it_takes_before_it_starts_or_that_it_is_not_known(opened: Open) -> None:
    page = opened("uniform")
    assert re.search(r"At most 1 measurement, about \d+ s on this machine", text(page))
    page = labelled(page, "slider", "Multiplies budget").set_value(0.1).run()
    assert "What it takes is not known" in text(page)
