"""Jobs of all sessions: one for the same wish, seen by whoever asked, and never more of them than the limit."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from lowrank_core.running.jobs import Job
from pages.ui import shared_jobs
from pages.ui.shared_jobs import SharedJobs


def finished(*found: int) -> Job[int]:
    job = Job("finished", lambda: iter(found))
    job.wait()
    return job


class Held:
    """A job that ends when it is told to."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.job = Job("held", self._work)

    def _work(self) -> Iterator[int]:
        self.end.wait()
        yield 1


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.end.set()


def test_the_same_wish_of_two_sessions_is_one_job(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 10)
    first = jobs.begin("anna", "model", "wish", lambda: held.job)
    second = jobs.begin("bert", "model", "wish", lambda: pytest.fail("started twice"))
    assert first is second is held.job
    assert jobs.asked_by("anna", "model") == jobs.asked_by("bert", "model") == {"wish": held.job}
    assert [started.job for started in jobs.of_session("bert")] == [held.job]
    assert jobs.of_session("clara") == []
    assert jobs.asked_by("anna", "other model") == {}


def test_a_session_that_only_looks_sees_the_job_elsewhere_too(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Spectra", 10)
    jobs.begin("anna", "model", "all", lambda: held.job)
    for _ in range(2):
        jobs.join("bert", "model", "all")
    assert [(one.page, one.job) for one in jobs.of_session("bert")] == [("Spectra", held.job)]
    jobs.join("bert", "model", "unknown")
    assert len(jobs.of_session("bert")) == 1


def test_what_failed_or_was_cancelled_is_started_again_and_what_is_done_only_on_demand() -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 10)
    failed: Job[int] = Job("failed", lambda: iter(()).throw(ValueError("x")))  # type: ignore[attr-defined]
    failed.wait()
    gone = finished(1)
    gone.cancel()
    for before in (failed, gone):
        jobs.begin("anna", "model", str(before), lambda before=before: before)
        done = jobs.begin("anna", "model", str(before), lambda: finished(2))
        assert done is not before
        assert jobs.begin("anna", "model", str(before), lambda: finished(3)) is done
        assert jobs.begin("anna", "model", str(before), lambda: finished(3), again=True) is not done


def test_the_oldest_that_are_over_are_forgotten(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 3)
    jobs.begin("anna", "model", "running", lambda: held.job)
    for number in range(6):
        jobs.begin("anna", "model", f"wish {number}", lambda number=number: finished(number))
    assert list(jobs.asked_by("anna", "model")) == ["running", "wish 4", "wish 5"]
    assert len(jobs) == 3


def test_what_jobs_found_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_jobs, "MOST_FOUND", 10)
    jobs: SharedJobs[str, int] = SharedJobs("Search", 100)
    for number in range(6):
        jobs.begin("anna", "model", f"wish {number}", lambda: finished(1, 2, 3, 4))
    assert list(jobs.asked_by("anna", "model")) == ["wish 4", "wish 5"]


def test_sessions_are_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_jobs, "MOST_ASKERS", 3)
    jobs: SharedJobs[str, int] = SharedJobs("Search", 100)
    for number in range(6):
        jobs.begin(f"session {number}", "model", "wish", lambda: finished(1))
    assert [number for number in range(6) if jobs.asked_by(f"session {number}", "model")] == [3, 4, 5]


def test_sessions_may_look_while_others_ask() -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 5)
    failed: list[BaseException] = []

    def use(session: str) -> None:
        try:
            for number in range(40):
                jobs.begin(session, f"model {number % 3}", f"wish {number}", partial(finished, number))
                jobs.of_session(session), jobs.asked_by(session, "model 1"), jobs.of_model("model 2")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(f"session {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(jobs) <= 5 + len(threads)


def test_a_job_ends_when_everybody_has_called_it_off(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 10)
    for session in ("anna", "bert"):
        jobs.begin(session, "model", "wish", lambda: held.job)
    jobs.cancel("clara", jobs.begin("clara", "model", "other", lambda: finished(1)))
    jobs.cancel("anna", held.job)
    assert not held.job.cancelled()
    seen = jobs.asked_by("anna", "model")["wish"]
    assert (seen.snapshot.over, seen.snapshot.cancelled, seen.cancelled()) == (True, True, True)
    assert [started.job for started in jobs.of_session("anna")] == [seen]
    assert seen.wait(0).over, "nobody who looks at it waits for the others' job"
    assert jobs.asked_by("bert", "model") == {"wish": held.job}
    assert not held.job.snapshot.over
    jobs.cancel("anna", held.job)
    assert not held.job.cancelled(), "called off twice by one is not called off by both"
    jobs.cancel("bert", held.job)
    assert held.job.cancelled()
    held.end.set()
    assert jobs.asked_by("bert", "model")["wish"].wait(60).cancelled


def test_who_called_it_off_may_ask_again_while_it_goes_on(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 10)
    for session in ("anna", "bert"):
        jobs.begin(session, "model", "wish", lambda: held.job)
    jobs.cancel("anna", held.job)
    assert jobs.begin("anna", "model", "wish", lambda: pytest.fail("started twice")) is held.job
    assert jobs.asked_by("anna", "model") == {"wish": held.job}
    jobs.cancel("bert", held.job)
    assert not held.job.cancelled(), "Anna waits again"
    held.end.set()
    assert held.job.wait(60).found == (1,)


def test_a_session_that_is_gone_keeps_up_nothing_and_ends_nothing(held: Held) -> None:
    now = [0.0]
    jobs: SharedJobs[str, int] = SharedJobs("Search", 10, clock=lambda: now[0])
    for session in ("anna", "bert"):
        jobs.begin(session, "model", "wish", lambda: held.job)
    now[0] += shared_jobs.GONE_SECONDS + 1
    assert not held.job.cancelled(), "what it finds is kept"
    jobs.of_session("anna")
    jobs.cancel("anna", held.job)
    assert held.job.cancelled(), "Bert has closed his tab"


def test_what_was_left_is_forgotten_with_its_job(held: Held) -> None:
    jobs: SharedJobs[str, int] = SharedJobs("Search", 1)
    for session in ("anna", "bert"):
        jobs.begin(session, "model", "wish", lambda: held.job)
    jobs.cancel("anna", held.job)
    held.end.set()
    held.job.wait(60)
    jobs.begin("clara", "model", "another", lambda: finished(1))
    assert jobs.asked_by("anna", "model") == jobs.asked_by("bert", "model") == {}
    assert not jobs._left
