"""Export of weights alone: a folder of save_pretrained is compressed block by block, asked for and watched here."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from lowrank_core.errors import InvalidFile, LowRankError
from lowrank_core.running.jobs import Job, Snapshot
from lowrank_core.sources._inventory import Inventory
from lowrank_core.sources._pretrained_folder import architecture_in, folder_of
from lowrank_core.streaming.request import TOKENS, WINDOWS, CompressedFolder, Outlook, Request, Step
from pages.ui import at_start, frame, may_open, opening, running, streaming, words
from pages.ui.commands import core_command
from pages.ui.state import downloads, spectra, streams
from pages.ui.streaming import Stream

BYTES, ENERGY = "Bytes of all", "Energy of each layer"
HELP = {
    BYTES: "Each layer gets the rank that loses least of what it puts out on the text, within so many bytes in all.",
    ENERGY: "Of each layer the smallest rank that keeps this share of its squared singular values; what no rank makes "
    "smaller stays dense.",
}


def show(stock: Inventory) -> None:
    """The form on the left, on the right the job and what came of it."""
    folder = folder_of(stock.weights)
    if folder is None:
        opening.needs_a_model(stock)
        return
    for notice in stock.notices:
        st.caption(f":material/info: {words.plain(notice)}")
    st.markdown(
        "The network is never built as a whole: block by block goes through memory, its layers are replaced by thinner "
        "ones that are fitted to **your text**, and the folder that comes out is one that `from_pretrained` loads."
    )
    if not may_open.at_home():
        st.info(
            "This server answers other machines, too, and such a job works with files of this one: start the server on "
            "127.0.0.1, or run the command.",
            icon=":material/lock:",
        )
        st.code(core_command("compress", folder.name, "--text", "TEXT", "--bytes", "0.8", "--out", "FOLDER"), "bash")
        return
    begun = streams.begun(stock)
    at_work = next((stream for stream, job in reversed(begun.items()) if not job.snapshot.over), None)
    with st.container(key="asking"):
        left, right = st.columns([2, 3], gap="large")
    with left:
        asked = form(stock, folder)
    with right:
        job = None if at_work is None else begun[at_work]
        outlook, refused = looked_at(asked, begun)
        goes_on = outlook is not None and outlook.blocks_done
        bar = running.bar(
            "Go on" if goes_on else "Compress the folder", ":material/compress:", ready=outlook is not None, job=job
        )
        if bar.pressed and asked is not None:
            streams.start(stock, asked)
            st.rerun()
        if at_work is None:
            before(stock, asked, outlook, refused, bar)
        with running.outcome():
            if job is not None and at_work is not None:
                running.follow(
                    job, lambda snapshot: doing(job, snapshot), lambda found, serial: steps(found.found), bar.line
                )
            elif begun:
                rest(*list(begun.items())[-1])


def form(stock: Inventory, folder: Path) -> Stream | None:
    """What is asked for; None where something is missing or wrong, which is said."""
    key = f"stream {folder}"
    text = st.text_input(
        "Text that layers are fitted to",
        placeholder="texts/book.txt",
        key=f"{key} text",
        help=f"A file of plain text from {at_start.STARTED_IN} on, of the kind that the network will read.",
    )
    held_out = st.text_input(
        "Text that it is scored on",
        placeholder="empty: the end of the text, kept apart",
        key=f"{key} held out",
        help="Nothing is fitted to it.",
    )
    out = st.text_input(
        "Folder to write",
        placeholder=f"{folder.name}-80",
        key=f"{key} out",
        help=f"A new one. Pages may write to {at_start.places()}.",
    )
    by = st.segmented_control("Ranks by", (BYTES, ENERGY), default=BYTES, required=True, key=f"{key} by")
    if by == BYTES:
        share = st.number_input("Share of the bytes, %", 5.0, 100.0, 80.0, 5.0, "%g", key=f"{key} bytes", help=HELP[by])
    else:
        share = st.number_input(
            "Energy that is kept, %", 50.0, 100.0, 95.0, 0.5, "%g", key=f"{key} energy", help=HELP[by]
        )
    with st.container(horizontal=True):
        windows = st.number_input(
            "Windows", 2, 100_000, WINDOWS, key=f"{key} windows", width=130, help="Pieces of the text, at most."
        )
        tokens = st.number_input("Tokens of each", 2, 1_000_000, TOKENS, key=f"{key} tokens", width=130)
    try:
        choices, size = (None, None) if by == BYTES else by_energy(stock, folder, share / 100)
        if choices == () or not (text.strip() and out.strip()):
            return None
        request = Request(
            folder,
            may_open.text_file(text),
            place(out),
            bytes_share=share / 100 if by == BYTES else None,
            held_out=may_open.text_file(held_out) if held_out.strip() else None,
            windows=int(windows),
            tokens=int(tokens),
        )
    except LowRankError as error:
        st.error(words.plain(str(error)), icon=":material/error:")
        return None
    return Stream(request, choices, size)


def place(out: str) -> Path:
    """The folder to write, in one that pages may write to; raises InvalidFile."""
    named = Path(out.strip())
    if named.name in ("", ".", ".."):
        raise InvalidFile(f"{at_start.shown(out)!r} cannot be the name of a new folder; give one such as small.")
    return downloads.place(str(named.parent), named.name)


def by_energy(stock: Inventory, folder: Path, share: float) -> tuple[streaming.Choices, int]:
    """The ranks, and the bytes that they come to; no ranks where spectra are missing, which is said."""
    layers = streaming.layers_named(stock, streams.layers(folder))
    missing = sum(stock.known(layer.name) is None for layer in layers.values())
    if missing:
        job = spectra.job(stock)
        going = " They are being computed." if job is not None and not job.snapshot.over else ""
        st.info(f"{missing} of {len(layers)} spectra are not known yet.{going}", icon=":material/show_chart:")
        frame.link("Spectra", says="Compute the spectra")
        return (), stock.bytes
    choices = streaming.ranks_by_energy(stock, layers, share)
    size = streaming.bytes_with(stock, layers, choices)
    st.markdown(
        f"**{words.count(size, 'B')}**, {words.share(size / stock.bytes)} of the bytes: {len(choices)} of "
        f"{len(layers)} layers factorised."
    )
    if not choices:
        st.caption("No layer becomes smaller at such ranks: keep less of the energy.")
    return choices, size


def looked_at(asked: Stream | None, begun: dict[Stream, Job[Step]]) -> tuple[Outlook | None, str]:
    """What can be said before it begins, or why it cannot."""
    if asked is None or (asked in begun and not begun[asked].snapshot.over):
        return None, ""
    if asked.request.out.exists():
        done = asked in begun and streaming.answer_in(begun[asked].snapshot.found) is not None
        return None, "" if done else f"{asked.request.out} is there already; name another folder."
    try:
        with st.spinner("Looking at the folder and the text…"):
            return streams.outlook(asked.shared), ""
    except LowRankError as error:
        return None, str(error)


def before(stock: Inventory, asked: Stream | None, outlook: Outlook | None, refused: str, bar: running.Bar) -> None:
    """What it will take, why it cannot be done, or what is missing, beside the button."""
    if asked is not None and outlook is not None:
        lines = streaming.before_it_starts(stock, asked, outlook, spectra.speed())
        running.costs(bar.line, lambda: lines)
    elif refused:
        bar.line.error(words.plain(refused), icon=":material/error:")
    elif asked is None:
        bar.line.caption("Name a text and a folder to write; what it takes is said here before it starts.")


def doing(job: Job[Step], snapshot: Snapshot[Step]) -> str:
    """What goes on, as a line of Markdown."""
    says = "ending after the step at hand" if job.cancelled() else snapshot.progress.words or "preparing"
    return words.plain(f"{says} · {words.duration(job.seconds)}")


def steps(found: tuple[Step, ...]) -> None:
    """How far it is, and how far each fitted block's output is from the dense network's."""
    if not found:
        return
    last = found[-1]
    names = {"looking": "Looking for ranks", "fitting": "Fitting", "scoring": "Scoring"}
    with st.container():
        if last.phase != "done":
            st.progress(last.done / last.total, f"{names[last.phase]}: {last.done} of {last.total}")
        if rows := streaming.fitted_rows(found):
            st.dataframe(
                pd.DataFrame(rows),
                hide_index=True,
                height=220 if len(rows) > 5 else "content",
                column_config={
                    "Error of its outputs, %": st.column_config.NumberColumn(
                        format="%.2f",
                        help="Hidden states behind the block against those of the dense network, relative.",
                    ),
                    "Seconds": st.column_config.NumberColumn(format="%.1f"),
                },
            )


def rest(stream: Stream, job: Job[Step]) -> None:
    """Nothing runs: what the latest job came to."""
    found, work = job.snapshot.found, stream.request.work_folder
    if job.snapshot.error:
        st.error(words.plain(job.snapshot.error), icon=":material/error:")
    kept = (
        f"What is done lies in {work}; ask for the same, and it goes on from there. Remove that folder to begin anew."
    )
    if job.snapshot.cancelled:
        st.info(words.plain(f"Called off. {kept}"), icon=":material/stop_circle:")
    elif job.snapshot.error and work.is_dir():
        st.caption(words.plain(kept))
    answer = streaming.answer_in(found)
    if answer is not None:
        result(answer)
    steps(found)


def result(answer: CompressedFolder) -> None:
    """The folder: where it lies, its bytes, its score before and after."""
    score = answer.score
    st.success(words.plain(f"Written to {answer.path}"), icon=":material/folder:")
    with st.container(horizontal=True, gap="medium"):
        change = f"{100 * (answer.bytes / answer.dense_bytes - 1):+.1f} % against dense"
        st.metric("Bytes", words.count(answer.bytes, "B"), change, delta_color="inverse", width="content")
        st.metric("Layers factorised", f"{len(answer.plan.choices)} of {answer.layers}", width="content")
        st.metric("Took", words.duration(answer.seconds), help="Without what earlier runs did.", width="content")
    name = "Perplexity" if not score.higher_is_better else "Cosine similarity of the last hidden states"
    st.markdown(words.plain(f"{name}: {streaming.compared(score)}."), help=words.INTERVAL)
    st.caption("A folder is no download: it lies on this machine. With `lowrank_hf` installed this loads it:")
    kind = architecture_in(answer.path)
    st.code(f"import lowrank_hf\nfrom transformers import {kind}\n\n{kind}.from_pretrained({str(answer.path)!r})")
