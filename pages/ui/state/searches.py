"""Searches: what this session has asked about a model."""

from __future__ import annotations

from lowrank_core.running.jobs import PATIENCE_SECONDS, Job
from lowrank_core.selection._problem import Trial
from lowrank_core.workspace import Workspace
from pages.ui import question as asking
from pages.ui.question import Question, ask
from pages.ui.state import jobs, models
from pages.ui.state.session import session_id


def begun(workspace: Workspace) -> dict[Question, Job[Trial]]:
    """What this session has asked about this model, the latest last; the same question of two sessions is one job."""
    return jobs.searches().asked_by(session_id(), models.key(workspace))


def before_it_starts(workspace: Workspace, question: Question) -> tuple[str, ...]:
    """What a person should know of a search before it starts, in sentences."""
    if jobs.is_done(begun(workspace).get(question)):
        return ("Answered already: it is shown at once.",)
    return asking.before_it_starts(workspace, question, models.cache().points)


def start(workspace: Workspace, question: Question) -> None:
    """Ask, unless it was answered or is being answered; a search that broke off goes on where it was."""
    folder = models.cache().points
    jobs.note_asked(workspace, question)
    jobs.searches().begin(
        session_id(),
        models.key(workspace),
        question,
        lambda: Job(
            f"Search: {question.rule.label}",
            lambda: ask(workspace, question, folder),
            patience_seconds=PATIENCE_SECONDS,
        ),
    )


def asked_before(workspace: Workspace) -> list[Question]:
    """What was asked of a server that was stopped since, the latest first."""
    already = begun(workspace)
    return [wish for wish in jobs.noted(workspace)[::-1] if isinstance(wish, Question) and wish not in already]
