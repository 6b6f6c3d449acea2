"""Works: what a session saves as one file to go on with elsewhere, and takes from one."""

from __future__ import annotations

from lowrank_core.errors import LowRankError
from lowrank_core.measure.ledger import VERSION, score_key
from lowrank_core.plans.candidate import Candidate
from lowrank_core.workspace import Workspace
from pages.ui.state import measurements, plans, session
from pages.ui.work_file import every_plan, read_work, says, taken_in, work_file


def saved(workspace: Workspace) -> bytes:
    """The work of this session on a network: all plans, and the scores that are known of them."""
    history, scores = plans.history(workspace), []
    for plan in every_plan(history):
        known = measurements.known(workspace, plan)
        if known is not None:
            scores.append((score_key(Candidate(plan, known.correction), None), known.score))
    return work_file(workspace.name, history, scores, _under(workspace))


def take(workspace: Workspace, content: bytes) -> str:
    """Go on with the work in a file, and say what was taken; raises LowRankError, and then nothing has changed."""
    if session.viewed():
        raise LowRankError(plans.READ_ONLY)
    work = read_work(content, workspace.profile, workspace.name)
    hold = work.under == _under(workspace)
    if hold:
        measurements.keep_opened(workspace, work.scores)
    plans.set_history(workspace, taken_in(plans.history_if_any(workspace), work.history))
    return says(work, scores=hold)


def _under(workspace: Workspace) -> str:
    return workspace.name_for("scores", VERSION)
