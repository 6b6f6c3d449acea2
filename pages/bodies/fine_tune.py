"""Fine-tune: train the factors at ranks that are chosen, watch the score come back, and send the weights to Export."""

from functools import partial

import pandas as pd
import streamlit as st

from lowrank_core.errors import LowRankError
from lowrank_core.plans.cost import plan_cost
from lowrank_core.running.jobs import Job
from lowrank_core.training.sweep import Swept
from lowrank_core.workspace import Workspace
from pages.ui import beside, charts, running, tables, tuning, tuning_form, words
from pages.ui.button import button
from pages.ui.state import plans, session, trainings
from pages.ui.tuning import Result, Sweep, Trained, Training, Tuned


def chart(workspace: Workspace, trained: Trained, key: str, main: Tuned | None = None) -> None:
    """Learning curves of a training, or what a sweep has found."""
    draw = beside.chart if trained.snapshot.over else st.plotly_chart
    dark, metric, percent = st.context.theme.type == "dark", words.axis(workspace), words.shares(workspace)
    if isinstance(trained.wish, Sweep):
        if not trained.swept:
            return
        quantity = trained.wish.quantity
        indirect, direct, dense = tables.swept_dots(workspace, trained, quantity)
        figure = charts.sweep(indirect, direct, dense, quantity=quantity, metric=metric, percent=percent, dark=dark)
        draw(figure, key=key, alt=f"{metric} against {quantity}, as compressed and as trained")
        return
    if not trained.runs:
        return
    runs = tables.learning(trained, None if main is None else main.settings)
    before = None if trained.before is None else trained.before.watched.value
    figure = charts.learning(
        runs, before, epochs=trained.wish.settings.passes, metric=metric, percent=percent, dark=dark
    )
    draw(figure, key=key, alt=f"{metric} and loss after each epoch")


def progress(job: Job[Result], trained: Trained) -> str:
    """What a training that runs is doing, as a line of Markdown."""
    parts = ["ending after the step at hand" if job.cancelled() else trained.snapshot.progress.words or "preparing"]
    if isinstance(trained.wish, Sweep):
        parts.append(f"{len(trained.swept)} of {len(trained.wish.shares)} plans")
    elif trained.runs:
        settings, epochs = next(reversed(trained.runs.items()))
        parts.append(f"epoch {min(epochs[-1].number + 1, epochs[-1].epochs)} of {epochs[-1].epochs}")
        if len(trained.wish.runs) > 1:
            parts.append(f"run {len(trained.runs)} of {len(trained.wish.runs)}, {tuning.run_name(settings)}")
    elif trained.trials:
        parts.append(f"{trained.trials} plan{'' if trained.trials == 1 else 's'}")
    return " · ".join(map(words.plain, [*parts, words.duration(job.seconds)]))


def watch(workspace: Workspace, wish: Training | Sweep, job: Job[Result], bar: running.Bar) -> None:
    """Show the learning curves of a training that runs, epoch by epoch."""
    running.follow(
        job,
        lambda snapshot: progress(job, Trained(wish, snapshot)),
        lambda snapshot, serial: chart(workspace, Trained(wish, snapshot), f"training {serial}"),
        bar.line,
    )


def rest(workspace: Workspace, listed: list[Trained]) -> None:
    """Nothing runs: what the latest training, or an earlier one, came to."""
    if not listed:
        st.info("Start a training: its learning curves appear here as it goes.", icon=":material/model_training:")
        return
    newest, at = listed[::-1], 0
    if len(newest) > 1:
        titles = [tuning.title(workspace, trained.wish) for trained in newest]
        at = st.selectbox("Training shown", range(len(newest)), format_func=titles.__getitem__, key=f"shown {titles}")
    trained = newest[at]
    if trained.snapshot.error:
        st.error(words.plain(trained.snapshot.error), icon=":material/error:")
    if isinstance(trained.wish, Sweep):
        show_sweep(workspace, trained)
    else:
        show_training(workspace, trained)


def show_training(workspace: Workspace, trained: Trained) -> None:
    """A training that is over: its curves, before and after in words, the weights to take, runs side by side."""
    assert isinstance(trained.wish, Training)
    for notice in trained.notices:
        st.warning(words.plain(notice), icon=":material/history:")
    weights = trained.chosen
    if trained.snapshot.cancelled:
        st.info(tuning.cancelled(trained), icon=":material/stop_circle:")
    if weights is not None and len(trained.tuned) > 1:
        weights = pick(workspace, trained, weights)
    chart(workspace, trained, "training over", weights)
    if weights is None or trained.before is None:
        return
    for line in tuning.compared(workspace, trained, weights):
        st.markdown(line, help=words.INTERVAL if "against dense" in line else None)
    if rises := tuning.won(workspace, trained, weights):
        st.caption(rises)
    send(workspace, weights)
    if weights.complete and not trained.snapshot.cancelled and not trained.snapshot.error:
        run_on(workspace, trained)
    if len(trained.wish.runs) > 1:
        side_by_side(workspace, trained)


def pick(workspace: Workspace, trained: Trained, chosen: Tuned) -> Tuned:
    """The weights of one run, those with the lowest loss on the samples held back if nobody says otherwise."""

    def says(tuned: Tuned) -> str:
        name = tuning.run_name(tuned.settings).capitalize()
        line = f"{name}: {words.score(workspace, tuned.score.value)}, held-back loss {tuned.validation_loss:.4g}"
        return f"{line}, the lowest" if tuned == chosen else line

    labels = [says(tuned) for tuned in trained.tuned]
    first = trained.tuned.index(chosen)
    help_text = "The run with the lowest loss on samples held back from training: evaluation samples choose nothing."
    at = st.selectbox("Weights", range(len(labels)), first, format_func=labels.__getitem__, help=help_text)
    return trained.tuned[at]


def send(workspace: Workspace, weights: Tuned) -> None:
    """The button that makes these the weights that Export takes."""
    other = plans.plan(workspace) != weights.candidate.plan
    if other:
        st.caption(
            "These weights belong to another plan than the one on *Ranks*: sending them makes theirs the plan; *Undo* "
            "on Ranks brings the one before it back."
        )
    if button("Send to Export", type="primary", icon=":material/file_save:"):
        trainings.send_to_export(workspace, weights)
        st.switch_page("pages/7_Export.py", query_params=session.address())


def run_on(workspace: Workspace, trained: Trained) -> None:
    """More epochs from where a training stopped."""
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        epochs = st.number_input(
            "More epochs",
            1,
            1000,
            trained.wish.settings.epochs,
            help="From where it stopped: the learning rate rises to half of what it was, and falls again. The best "
            "weights of all epochs are kept.",
            key=f"more epochs {tuning.title(workspace, trained.wish)}",
            width=168,
        )
        longer = tuning.run_on(trained, epochs)
        if button("Run on", icon=":material/resume:"):
            trainings.start(workspace, longer)
            st.rerun()
    st.caption(words.plain(tuning.takes_more(workspace, longer, epochs)))


def side_by_side(workspace: Workspace, trained: Trained) -> None:
    """Mean and spread of the runs of each start."""
    st.header("Runs side by side", anchor=False)
    st.dataframe(
        pd.DataFrame(tables.spread(workspace, trained)).fillna(""),
        hide_index=True,
        column_config={
            "Start": st.column_config.TextColumn(pinned=True),
            "Standard deviation": st.column_config.TextColumn(
                help="Of the scores of single runs; one run says nothing about it."
            ),
            "Chosen": st.column_config.TextColumn(help="The run with the lowest loss on the samples held back."),
        },
    )
    st.caption(
        f"{words.metric(workspace)} on all evaluation samples. Training is not convex: judge a start by the mean and "
        "the spread of its runs, not by the best."
    )


def show_sweep(workspace: Workspace, trained: Trained) -> None:
    """A sweep that is over: both problems side by side, and the weights of any plan of it."""
    assert isinstance(trained.wish, Sweep)
    chart(workspace, trained, "sweep over")
    if trained.snapshot.cancelled:
        st.info(
            f"Cancelled after {len(trained.swept)} of {len(trained.wish.shares)} plans; the same sweep goes on from "
            "there.",
            icon=":material/stop_circle:",
        )
    if not trained.swept:
        return
    percent = words.shares(workspace)
    unit = "%.2f %%" if percent else "%.4g"
    st.dataframe(
        pd.DataFrame(tables.swept(workspace, trained)),
        hide_index=True,
        column_config={
            "Multiplies": st.column_config.NumberColumn(format="localized", help=words.MULTIPLIES),
            "Bytes": st.column_config.NumberColumn(format="localized", help=words.BYTES),
            "Indirect": st.column_config.NumberColumn(format=unit, help="The plan as it is compressed, untrained."),
            "Direct": st.column_config.NumberColumn(format=unit, help="The same plan, trained."),
            "Change": st.column_config.NumberColumn(
                f"Direct {words.change_title(workspace).lower()}",
                format="%+.2f" if percent else "%+.4g",
                help="Of the trained plan against the dense network.",
            ),
            "95 %": st.column_config.TextColumn(help=words.INTERVAL),
        },
    )
    dense = plan_cost(workspace.profile)

    def says(plan: Swept) -> str:
        multiplies = f"{words.share(plan.cost.multiplies / (dense.multiplies or 1))} of the multiplies"
        return f"{multiplies}, {words.share(plan.cost.bytes / dense.bytes)} of the bytes"

    labels = [says(plan) for plan in trained.swept]
    at = st.selectbox("Plan", range(len(labels)), format_func=labels.__getitem__)
    plan = trained.swept[at]
    st.markdown(words.plain(words.verdict(workspace, plan.direct)), help=words.INTERVAL)
    st.caption("Its plan becomes the plan on *Ranks*; *Undo* there brings the one before it back.")
    if button("Send to Export", type="primary", icon=":material/file_save:"):
        trainings.send_swept(workspace, trained.wish, plan)
        st.switch_page("pages/7_Export.py", query_params=session.address())


def taken_back(workspace: Workspace) -> None:
    """Weights of a training loop of somebody else, for the plan as it stands."""
    plan = plans.plan(workspace)
    with st.expander("Trained elsewhere"):
        st.caption("The plan's network is a plain module; what your own loop has made of it counts as tuned weights.")
        file = st.file_uploader(
            "Weights of this plan's network",
            ["pt", "pth", "bin", "ckpt", "safetensors"],
            key="weights trained elsewhere",
            help="A state_dict (.pt, .safetensors) or a checkpoint of Lightning. Compare and Export take it from here.",
        )
        if file is None or not button("Take these weights", icon=":material/upload_file:", disabled=not plan.choices):
            return
        try:
            with st.spinner("Measuring on all samples…"):
                notices = trainings.take(workspace, plan, file.getvalue())
        except (LowRankError, OSError) as error:
            st.error(words.plain(f"{file.name}: {error}"), icon=":material/error:")
            return
        for notice in notices:
            st.info(words.plain(notice), icon=":material/info:")
        score = trainings.tuned(workspace)[-1].score
        st.success(words.plain(f"{file.name}: {words.verdict(workspace, score)}"), icon=":material/check:")


def show(workspace: Workspace) -> None:
    """Ask for a training in a form, and show what the trainings of this session came to."""
    with st.container():  # which stays when the steps to the first plan are gone: all below keeps its place
        plans.history(workspace)
    jobs = trainings.begun(workspace)
    latest = next(reversed(jobs), None)
    at_work = None if latest is None or jobs[latest].snapshot.over else latest
    trainings.tuned(workspace)  # noted on disk as soon as it is seen
    with st.container(key="asking"):
        left, right = st.columns([2, 3], gap="large")
    takes = partial(trainings.before_it_starts, workspace)
    with left:
        wish, label = tuning_form.show(workspace)
        before = trainings.asked_before(workspace)
        titles = [tuning.title(workspace, wish) for wish in before]
        running.earlier(before, titles, partial(trainings.start, workspace), takes)
        taken_back(workspace)
    with right:
        job = None if at_work is None else jobs[at_work]
        bar = running.bar(label, ":material/model_training:", ready=wish is not None, job=job)
        if bar.pressed and wish is not None:
            trainings.start(workspace, wish)
            st.rerun()
        if wish is not None and at_work is None:
            running.costs(bar.line, partial(takes, wish))
        with running.outcome():
            watched, at_rest = st.empty(), st.empty()
    if at_work is not None:
        with watched.container():
            watch(workspace, at_work, jobs[at_work], bar)
    else:
        with at_rest.container():
            rest(workspace, [Trained(wish, job.snapshot) for wish, job in jobs.items() if job.snapshot.over])
