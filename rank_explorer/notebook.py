"""The live board in a notebook: `board(workspace)` in Jupyter, marimo, or wherever anywidget is at home.

The same board as on the page Ranks, from the same files: a cell shows it, thumbs are dragged, figures are measured in
the notebook's own process, and `.plan` is the plan as it stands. Needs `pip install 'rank-explorer[notebook]'`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lowrank_core.builtin import POINTS
from lowrank_core.compression.start import suggested_plan
from lowrank_core.errors import InvalidModel, InvalidPlan
from lowrank_core.extras import extra
from lowrank_core.measure.glance import Glances
from lowrank_core.measure.measurement import Figure, measurement
from lowrank_core.plans.candidate import Candidate
from lowrank_core.plans.cost import check_plan
from lowrank_core.plans.plan import RankPlan
from lowrank_core.predict.survey import Finding, Learnt
from lowrank_core.predict.survey import survey as learn
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.scoring.scores import Score
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace

try:  # in a wheel the dashboard lies inside the library
    from lowrank_core.dashboard.pages.ui import board_values, glancing, history_panel
    from lowrank_core.dashboard.pages.ui import front as fronts
    from lowrank_core.dashboard.pages.ui.history import History
except ModuleNotFoundError:
    from pages.ui import board_values, glancing, history_panel
    from pages.ui import front as fronts
    from pages.ui.history import History

with extra("notebook", "the board in a notebook"):
    import anywidget
    import traitlets
    from plotly.offline import get_plotlyjs

HERE = Path(__file__)


def board(workspace: Workspace, plan: RankPlan | None = None) -> Board:
    """The live board of a network, as a widget: the last line of a cell shows it.

    workspace: of a file or a live module (`Workspace.open`, `Workspace.of`). plan: to begin with; without one the plan
    that the spectra suggest. Layers are factorised here, so large networks take a while. Raises a LowRankError for a
    network that can have no figures, a plan of another network, and where anywidget is not installed.

        from lowrank_core import Workspace
        from rank_explorer.notebook import board

        live = board(Workspace.open("builtin:digits-cnn"))
        live          # in a cell of its own: drag
        live.plan     # the plan as it stands; live.candidate has its correction, live.score what was measured
    """
    if not isinstance(workspace, Workspace):
        raise InvalidModel(
            "board() takes a Workspace, as Workspace.open('net.onnx') or Workspace.of(model, inputs) gives it, but "
            f"got {type(workspace).__name__}."
        )
    workspace.require_figures()
    if plan is None:
        plan = suggested_plan(workspace.profile, workspace.factors)
    _check(workspace, plan)
    return Board(workspace, plan)


def _check(workspace: Workspace, plan: RankPlan) -> None:
    if not isinstance(plan, RankPlan):
        raise InvalidPlan(
            f"the board's plan must be a RankPlan, but got {type(plan).__name__}; read one with read_plan."
        )
    check_plan(workspace.profile, plan)


class Board(anywidget.AnyWidget):
    """A board in a cell. Figures come from threads of this process, which end when the widget is closed."""

    _esm = "\n".join((get_plotlyjs(), board_values.script(), HERE.with_suffix(".js").read_text(encoding="utf-8")))
    _css = board_values.style() + HERE.with_suffix(".css").read_text(encoding="utf-8")
    constants = traitlets.Dict().tag(sync=True)
    board = traitlets.Dict().tag(sync=True)
    survey = traitlets.Dict().tag(sync=True)
    front = traitlets.Dict().tag(sync=True)

    def __init__(self, workspace: Workspace, plan: RankPlan) -> None:
        self.workspace = workspace
        self._history = History(plan)
        self._heard: dict[str, int] = {}
        self._last = ("", 0)
        self._with_steps = self._closed = False
        self._lock = threading.RLock()
        self._measuring: Job[Figure] | None = None
        self._surveying: dict[bool, Job[tuple[Finding, ...]]] = {}
        self._drawing: Job[fronts.Drawn] | None = None
        self._asking: dict[int, Job[dict[str, Any]]] = {}
        self._folder = TemporaryDirectory(prefix="rank-explorer-")  # of a workspace that keeps nothing
        self._glances = Glances(workspace)
        self._noise = board_values.noise(workspace)
        super().__init__(constants=board_values.constants(workspace, self._dense, self._noise), board=self._fields())
        self.on_msg(self._hear)
        self._measure()

    # ---- what a person has of it ------------------------------------------------------------------------------------

    @property
    def plan(self) -> RankPlan:
        """The plan as it stands on the board."""
        plan: RankPlan = self._history.plan
        return plan

    @plan.setter
    def plan(self, plan: RankPlan) -> None:
        _check(self.workspace, plan)
        if self._closed:
            raise InvalidPlan("this board was closed; make another one of its workspace.")
        self._become(self._history.commit(plan))

    @property
    def candidate(self) -> Candidate:
        """The plan with its correction: what is measured, and what `Workspace.compress` takes."""
        return self.workspace.candidate(self.plan, corrected=self._history.corrected)

    @property
    def score(self) -> Score | None:
        """What was measured of the plan as it stands on all samples; None while it is not."""
        known: Score | None = self.workspace.scores.get(self.candidate.plain)
        return known

    def close(self) -> None:
        """End what is measured for it, and take it off, for good."""
        self._closed = True
        for job in self._jobs():
            job.cancel()
        super().close()

    def _jobs(self) -> list[Job[Any]]:
        jobs = (self._measuring, self._drawing, *self._surveying.values(), *self._asking.values())
        return [job for job in jobs if job is not None]

    # ---- what the browser says --------------------------------------------------------------------------------------

    def _hear(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if self._closed or not isinstance(content, Mapping):
            return
        with suppress(KeyError, TypeError, ValueError):  # of a board that is not this one's
            match content.get("kind"):
                case "question":
                    self._answer(int(content["question"]), content["choices"])
                case "called off":
                    if (asked := self._asking.pop(int(content["question"]), None)) is not None:
                        asked.cancel()
                case "messages" if content.get("model") == self.workspace.identity:
                    self._take(str(content["board"]), content["messages"])

    def _take(self, view: str, messages: list[dict[str, Any]]) -> None:
        changed = self._history
        for message in messages:
            number = int(message["id"])
            if number <= self._heard.get(view, 0):
                continue
            self._heard[view] = number
            match message["action"]:
                case "commit":
                    changed = board_values.commit(self.workspace, changed, message)
                case "open":
                    self._with_steps = bool(message.get("on"))
                case _:
                    changed = board_values.act(changed, message)
        self._last = (view, self._heard.get(view, 0))
        self._become(changed)

    def _become(self, history: History) -> None:
        before, self._history = self._history, history
        if (before.plan, before.corrected, before.tolerance) != (history.plan, history.corrected, history.tolerance):
            self._measure()
        else:
            self._show()
        if before.held != history.held:
            self._draw_front()

    def _answer(self, question: int, choices: dict[str, Any]) -> None:
        asked = {name: (str(c["method"]), tuple(map(int, c["rank"]))) for name, c in choices.items()}
        base = self.candidate
        job = self._asking[question] = Job("the glance", lambda: glancing.answers(self._glances, base, asked))

        def reply() -> None:
            snapshot = job.wait(until=lambda snapshot: bool(snapshot.found) or snapshot.over)
            if self._asking.pop(question, None) is not None:
                answer = snapshot.found[0] if snapshot.found else {"error": snapshot.error}
                self.send({"question": question, "answer": answer})

        threading.Thread(target=reply, name="the answer", daemon=True).start()

    # ---- what it is told --------------------------------------------------------------------------------------------

    @property
    def _dense(self) -> float:
        value: float = board_values.dense_score(self.workspace)[0]
        return value

    def _fields(self) -> dict[str, Any]:
        history, workspace = self._history, self.workspace
        snapshot: Snapshot[Figure] = Snapshot() if self._measuring is None else self._measuring.snapshot
        return {
            "model": workspace.identity,
            "rev": history.rev,
            "heard": list(self._last),
            "secret": "this notebook",
            "choices": board_values.choices_of(history.plan),
            "tails": board_values.more_tails(workspace, history.plan),
            "latency": {},
            "can_undo": bool(history.past),
            "can_redo": bool(history.future),
            "locked": list(history.locked),
            "pinned": list(history.pinned),
            "corrected": history.corrected,
            "tolerance": history.tolerance,
            "goals": board_values.goals_fields(workspace, history.goals),
            "peak": None,
            "unfolded": [],
            "layer": None,
            "read_only": False,
            "view": "",
            **history_panel.fields(workspace, history, self._find, with_steps=self._with_steps),
            **board_values.figures(snapshot, self._dense, self.candidate.correction),
        }

    def _find(self, plan: RankPlan) -> history_panel.Known | None:
        candidate = self.workspace.candidate(plan, corrected=self._history.corrected)
        score = self.workspace.scores.get(candidate.plain)
        return None if score is None else history_panel.Known(score, candidate.correction)

    def _show(self) -> None:
        with self._lock:  # figures come from other threads
            self.board = self._fields()

    def _measure(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()
        job = measurement(self.workspace, self.candidate, tolerance=self._history.tolerance, quick_first=True)
        self._measuring = job
        self._show()
        threading.Thread(target=self._follow, args=(job,), name="the figures", daemon=True).start()

    def _follow(self, job: Job[Figure]) -> None:
        """Show each figure of a measurement while it is the latest, then begin to learn the layers."""
        seen: Snapshot[Figure] = Snapshot()
        while self._measuring is job and not seen.over:
            now = job.changed(seen, seconds=0.2)
            if now is not seen and self._measuring is job:
                seen = now
                self._show()
        if seen.over and not seen.cancelled and self._measuring is job:
            self._learn()

    def _learn(self) -> None:
        corrected = self._history.corrected
        if corrected in self._surveying:
            return
        shipped = POINTS if (self.workspace.opened.ref or "").startswith("builtin:") else None
        cache = self.workspace.cache or Cache(Path(self._folder.name))
        job = self._surveying[corrected] = Job(
            "the survey",
            lambda: learn(self.workspace, corrected=corrected, folder=cache.points, shipped=shipped),
            patience_seconds=inf,
        )
        seen: Snapshot[tuple[Finding, ...]] = Snapshot()
        while not seen.over:
            now = job.changed(seen, seconds=0.5)
            if len(now.found) > len(seen.found) or now.over:
                self.survey = {"model": self.workspace.identity, **board_values.survey_fields(now, self._noise)}
                self._draw_front()
            seen = now

    def _draw_front(self) -> None:
        """Ask for the best plans within each budget, from what is learnt so far; an older question is called off."""
        history = self._history
        surveyed = self._surveying.get(history.corrected)
        points = () if surveyed is None else Learnt.of(surveyed.snapshot).points
        if not points:
            return
        free = any(choice.free for _, choice in history.plan.choices)
        asked = fronts.Asked(self.workspace.identity, history.corrected, len(points), tuple(history.held.items()), free)
        if self._drawing is not None:
            self._drawing.cancel()
        job = self._drawing = Job("the front", lambda: fronts.draw(self.workspace, points, asked))
        threading.Thread(target=self._show_front, args=(job, asked, points), name="the front", daemon=True).start()

    def _show_front(self, job: Job[fronts.Drawn], asked: fronts.Asked, points: Any) -> None:
        snapshot = job.wait(until=lambda snapshot: snapshot.over)
        if self._drawing is not job or snapshot.cancelled:
            return
        self.front = {
            "model": self.workspace.identity,
            "front": fronts.fields(self.workspace, snapshot.found, points, snapshot.error, board_values.tails_of),
            "measured": [],
        }
