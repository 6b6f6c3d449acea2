"""Searches: what this session has asked about a model."""

from __future__ import annotations

from lowrank_core.running.jobs import Job
from lowrank_core.selection._problem import Trial
from lowrank_core.workspace import Workspace
from pages.ui import question
from pages.ui.question import Question
from pages.ui.state import jobs, models
from pages.ui.state.session import session_id


def begun(shown: Workspace) -> dict[Question, Job[Trial]]:
    """What this session has asked about this model, the latest last; the same question of two sessions is one job."""
    return jobs.searches().asked_by(session_id(), models.key(shown))


def start(shown: Workspace, asked: Question) -> None:
    """Ask, unless it was answered or is being answered; a search that broke off goes on where it was."""
    folder = models.cache().points
    jobs.note_asked(shown, asked)
    jobs.searches().begin(
        session_id(),
        models.key(shown),
        asked,
        lambda: Job(f"Search: {asked.rule.label}", lambda job: question.ask(shown, asked, folder, job)),
    )


def asked_before(shown: Workspace) -> list[Question]:
    """What was asked of a server that was stopped since, the latest first."""
    known = begun(shown)
    return [one for one in jobs.noted(shown)[::-1] if isinstance(one, Question) and one not in known]
