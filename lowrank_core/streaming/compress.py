"""A folder of `save_pretrained` compressed block by block: layer outside, batches of a person's text inside.

Two streams of hidden states go through the network, the dense one's and that of the network compressed so far; each
block's factors are fitted from what it sees in both (the thorough correction), written, and gone on from.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from lowrank_core.compression.variable_projection import sums_kept_in
from lowrank_core.errors import InvalidData, InvalidFile, InvalidModel, InvalidSettings, few
from lowrank_core.figures import count
from lowrank_core.layers.spec import LayerSpec
from lowrank_core.networks.profile import Layer, ModelProfile, Rest, Skipped, fingerprint_over, is_conv1d, spec_of
from lowrank_core.plans.cost import check_plan, plan_cost
from lowrank_core.plans.plan import RankPlan, read_plan
from lowrank_core.running.heap import give_back
from lowrank_core.running.progress import Progress
from lowrank_core.running.scope import report as say
from lowrank_core.running.scope import scope
from lowrank_core.running.threads import one_thread
from lowrank_core.scoring.metrics import METRICS, Metric
from lowrank_core.scoring.scores import Score, paired_score
from lowrank_core.store.files import try_folder
from lowrank_core.store.kinds import EXPORTED, file_hash
from lowrank_core.streaming.fit import METHOD, Block, compressed_block, energies, readings, seen_by
from lowrank_core.streaming.flow import Flow
from lowrank_core.streaming.folder import write_folder
from lowrank_core.streaming.ranks import check_reachable, ranks_within
from lowrank_core.streaming.request import CompressedFolder, Outlook, Request, Step
from lowrank_core.streaming.skeleton import Skeleton, skeleton_of, unfilled
from lowrank_core.streaming.windows import Windows, is_decoder, windows_of
from lowrank_core.streaming.work import ABOUT, VERSION, Work, check_work, working
from lowrank_core.version import versions

PASS_BYTES = 2**27
"""What the hidden states inside of a block take at once, about: as many windows go through together."""

PROGRAM_BYTES = 900 * 10**6
"""Python, PyTorch and transformers, before any weight is read."""

COSINE = Metric("cosine similarity of hidden states to the dense network", per_sample=lambda ours, _: ours)
"""Of a network that tells no next token: over tokens, behind the last block."""

SMALL = 2**20
"""Numbers in a block below which one thread is faster on a busy machine."""

OUTSIDE = "is outside of the blocks, which are compressed one by one"


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A request that holds: all that is known before a weight is read."""

    request: Request
    skeleton: Skeleton
    windows: Windows
    device: torch.device
    batch: int
    key: dict[str, Any]
    noted: dict[str, Any] | None

    @property
    def tokens(self) -> Tensor:
        """(windows, tokens) that go through together: those fitted to first."""
        return torch.cat([self.windows.fit, self.windows.held])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the hidden states of all windows."""
        return (*self.tokens.shape, self.skeleton.width)


def look(request: Request) -> Outlook:
    """Refuse what cannot be done, and say what can be said before: reads configuration, headers and the text alone.

    Raises InvalidModel, InvalidFile, InvalidData, InvalidPlan or InvalidSettings, each in one line.
    """
    return _outlook(_checked(request))


def compressing(request: Request) -> Iterator[Step]:
    """Compress, a step for each block that is done; the last has the answer.

    What is done is kept in `request.work_folder`, so that the same request goes on where it was killed or called off,
    to the same bytes. Reports words and seconds left (`running.scope`). Raises what `look` raises, and Cancelled.
    """
    began = time.monotonic()
    job = _checked(request)
    with working(request.work_folder) as work:
        if job.noted is None:
            say(Progress("reading the weights"))
            work.keep(ABOUT, {"key": job.key, "fingerprint": fingerprint_of(job.skeleton)})
        about = work.kept(ABOUT)
        assert about is not None
        profile = _profile(job.skeleton, about["fingerprint"], job.windows.fit.shape[1])
        if request.plan is not None:
            _check_given(profile, request.plan)
        run = _Run(job, work, profile)
        yield from run.looking()
        plan = run.plan()
        yield from run.fitting(plan)
        yield from run.scoring()
        score = run.score()
        say(Progress("writing the folder"))
        size, dense = plan_cost(profile, plan).bytes, plan_cost(profile).bytes
        shards = [work.folder / work.shard(number) for number in range(len(job.skeleton.blocks))]
        write_folder(request, job.skeleton, profile, plan, score, shards, _text_hash(request))
        work.remove()
    answer = CompressedFolder(request.out, plan, len(profile.layers), size, dense, score, time.monotonic() - began)
    yield Step("done", 1, 1, answer.seconds, answer=answer)


def compress_folder(
    folder: str | Path,
    text: str | Path,
    *,
    out: str | Path,
    bytes_share: float | None = None,
    plan: RankPlan | None = None,
    held_out: str | Path | None = None,
    report: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **settings: Any,
) -> CompressedFolder:
    """Compress a folder of `save_pretrained` of transformers into another, in memory for a block or two.

    bytes_share: at most this share of its bytes, 0.8 without a plan. settings: other fields of `Request`.
    report(progress) hears what goes on; cancelled() ends it, and the same call goes on later.

    >>> compress_folder("llama", "book.txt", out="llama-80", bytes_share=0.8)            # doctest: +SKIP
    """
    given = 0.8 if bytes_share is None and plan is None else bytes_share
    request = Request(
        Path(folder),
        Path(text),
        Path(out),
        bytes_share=given,
        plan=plan,
        held_out=None if held_out is None else Path(held_out),
        **settings,
    )
    with scope(report=report, cancelled=cancelled):
        *_, last = compressing(request)
    assert last.answer is not None
    return last.answer


# ---- before ---------------------------------------------------------------------------------------------------------


def _checked(request: Request) -> _Job:
    """A request that holds; raises LowRankError."""
    if (request.bytes_share is None) == (request.plan is None):
        raise InvalidSettings("ranks come from a share of the bytes or from a plan; give one of them.")
    if request.bytes_share is not None and not 0 < request.bytes_share <= 1:
        raise InvalidSettings(f"--bytes must be a share above 0 and at most 1, but is {request.bytes_share:g}.")
    if request.windows < 2 or request.tokens < 2:
        raise InvalidSettings("--windows and --tokens must be at least 2.")
    device = _device(request.device)
    if request.out.exists() and not (request.replace or EXPORTED["hf"](request.out)):
        raise InvalidFile(f"{request.out} is there and holds something else; give another folder, or move it away.")
    _check_apart(request)
    skeleton = skeleton_of(request.folder)
    if request.bytes_share is not None:
        check_reachable(_profile(skeleton, "", 1), request.bytes_share)
    windows = windows_of(skeleton, request)
    try_folder(request.out)
    key = _key(request, skeleton, device)
    noted = check_work(request.work_folder, key)
    job = _Job(request, skeleton, windows, device, _batch(skeleton, windows), key, noted)
    if noted is None:
        place = next(one for one in request.work_folder.absolute().parents if one.is_dir())
        needed, free = _disk_bytes(job), shutil.disk_usage(place).free
        if needed > free:
            raise InvalidFile(
                f"{place} has {count(free, 'B')} free, but {count(needed, 'B')} are needed; give "
                "fewer windows (--windows), or another place (--work)."
            )
    return job


def _check_apart(request: Request) -> None:
    """Raise where what is written would lie in what is read, or in what is removed at the end, or what is scored on is
    what is fitted to; or where a text cannot be read twice."""
    read, out, work = (one.resolve() for one in (request.folder, request.out, request.work_folder))
    for option, path in (("--out", out), ("--work", work)):
        if path == read or read in path.parents:
            raise InvalidFile(f"{option} {path} is the folder that is read, or in it; give another one to write.")
    if work == out or work in out.parents or out in work.parents:
        raise InvalidFile(
            f"--work {work} and --out {out} lie in each other, but the first is removed at the end; give another one."
        )
    for option, text in (("--text", request.text), ("--held-out", request.held_out)):
        if text is not None and text.exists() and not text.is_file():
            raise InvalidData(f"{option} {text} is no file that can be read twice; save the text as one first.")
    texts = [text for text in (request.text, request.held_out) if text is not None and text.is_file()]
    if len(texts) == 2 and file_hash(texts[0]) == file_hash(texts[1]):
        raise InvalidData(
            f"--held-out {request.held_out} holds the same as --text, so nothing would be held out; give another text, "
            "or leave the option out."
        )


def _device(asked: str | None) -> torch.device:
    if asked not in (None, "cpu", "cuda"):
        raise InvalidSettings(f"--device must be cpu or cuda, but is {asked!r}.")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings("--device cuda: PyTorch finds no CUDA device here; leave the option out.")
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def _key(request: Request, skeleton: Skeleton, device: torch.device) -> dict[str, Any]:
    """All that the bytes of the result depend on, but for the number of threads."""
    files = sorted(path for path in skeleton.folder.iterdir() if path.name.endswith((".safetensors", ".json")))
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {
        "version": [VERSION, versions()["torch"]],
        "folder": str(skeleton.folder.resolve()),
        "files": stats,
        "text": file_hash(request.text),
        "held-out text": None if request.held_out is None else file_hash(request.held_out),
        "bytes": request.bytes_share,
        "plan": None if request.plan is None else json.loads(request.plan.to_json(provenance={})),
        "windows": [request.windows, request.tokens],
        "settings": [request.correction, device.type],
    }


def _text_hash(request: Request) -> str:
    return f"sha256:{file_hash(request.text)}"


def fingerprint_of(skeleton: Skeleton) -> str:
    """That of the network opened as a whole; reads every byte once."""
    names = {name: name for name in skeleton.stored} | skeleton.ties
    return fingerprint_over((name, skeleton.stored[source].whole) for name, source in sorted(names.items()))


def _profile(skeleton: Skeleton, fingerprint: str, tokens: int) -> ModelProfile:
    """The Linear layers of the blocks, and what is left as it is."""
    layers, taken = [], set()
    for block in skeleton.blocks:
        for name, module in skeleton.linear(block).items():
            dtype = skeleton.stored[f"{name}.weight"].dtype
            assert dtype is not None
            layers.append(
                Layer(
                    name,
                    type(module).__name__,
                    spec_of(module),
                    ((tokens,),),
                    dtype.itemsize,
                    transposed_weight=is_conv1d(module),
                )
            )
            taken |= {f"{name}.weight", f"{name}.bias"}
    parameters = {name for name, _ in skeleton.model.named_parameters()} & {*skeleton.stored}
    outside = [skeleton.stored[name] for name in parameters - taken]
    buffers = [one for name, one in skeleton.stored.items() if name not in parameters | taken]
    skipped = tuple(
        Skipped(name, type(module).__name__, OUTSIDE)
        for name, module in skeleton.model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and name not in {layer.name for layer in layers}
    )
    rest = Rest(
        sum(one.elements for one in outside), sum(one.bytes for one in outside), 0, sum(b.bytes for b in buffers)
    )
    return ModelProfile(fingerprint, tuple(layers), skipped, rest)


def _check_given(profile: ModelProfile, plan: RankPlan) -> None:
    """Raise InvalidPlan, or InvalidSettings of methods that are not streamed."""
    check_plan(profile, plan)
    if other := [name for name, choice in plan.choices if choice.method not in (METHOD, "svd_aware") or choice.free]:
        raise InvalidSettings(
            f"a folder that is streamed takes {METHOD} without free ranks, but the plan has something else for "
            f"{few(other, repr)}; change the plan, or open the folder as a whole."
        )


def _block_numbers(skeleton: Skeleton) -> int:
    """Numbers in the largest block."""
    return max(sum(skeleton.stored[name].elements for name in skeleton.inside(block)) for block in skeleton.blocks)


def _specs(skeleton: Skeleton) -> list[LayerSpec]:
    return [spec_of(module) for block in skeleton.blocks for module in skeleton.linear(block).values()]


def _batch(skeleton: Skeleton, windows: Windows) -> int:
    """Windows that go through a block at once."""
    block = next(iter(skeleton.blocks))
    wide = sum(spec_of(module).out_channels for module in skeleton.linear(block).values()) + 4 * skeleton.width
    return max(1, PASS_BYTES // (4 * wide * windows.fit.shape[1]))


def _disk_bytes(job: _Job) -> int:
    """Two streams before and after a block, and the result."""
    written = sum(one.bytes for one in job.skeleton.stored.values())
    return 4 * 4 * prod(job.shape) + int(written * (job.request.bytes_share or 1.0))


def _memory_bytes(job: _Job) -> int:
    """Resident, at most: the program, and the largest of what goes on at a time."""
    skeleton = job.skeleton
    inner = 4 * _block_numbers(skeleton)
    outside = [skeleton.stored[name].elements for name in skeleton.outside]
    moments = max(
        7 * spec.fan_in**2 * sums_kept_in(spec).itemsize + 6 * min(spec.fan_in, spec.out_channels) ** 2 * 8
        for spec in _specs(skeleton)
    )
    words = getattr(skeleton.model.config.get_text_config(), "vocab_size", 0)
    states = 3 * PASS_BYTES
    head = 4 * sum(outside) + 4 * 4 * words * job.shape[1]
    return PROGRAM_BYTES + max(2 * inner + moments + states, head + inner + states)


def _outlook(job: _Job) -> Outlook:
    request, skeleton = job.request, job.skeleton
    work = Work(request.work_folder)
    profile = _profile(skeleton, "", job.shape[1])
    dense = plan_cost(profile).bytes
    return Outlook(
        name=skeleton.folder.resolve().name,
        architecture=skeleton.architecture,
        blocks=len(skeleton.blocks),
        blocks_done=sum(work.has(work.shard(number)) for number in range(len(skeleton.blocks))),
        layers=len(profile.layers),
        dense_bytes=dense,
        bytes=None if request.bytes_share is None else int(request.bytes_share * dense),
        windows=len(job.windows.fit),
        held_out=len(job.windows.held),
        tokens=job.shape[1],
        memory_bytes=_memory_bytes(job),
        disk_bytes=_disk_bytes(job),
        causal=is_decoder(skeleton.architecture),
        device=job.device.type,
    )


# ---- the work -------------------------------------------------------------------------------------------------------

LOOKING, FITTING = 1.0, 4.0
"""What a block takes for its spectra, and for its factors, in proportion."""


class _Run:
    """The work of a request in its folder, a phase at a time; each skips what is done."""

    def __init__(self, job: _Job, work: Work, profile: ModelProfile) -> None:
        self.job, self.work, self.profile = job, work, profile
        self.skeleton, self.device = job.skeleton, job.device
        self.flow = Flow(job.skeleton, job.device, job.batch)
        self.fit, self.all = len(job.windows.fit), len(job.tokens)
        self.blocks = [*job.skeleton.blocks]
        self._looks = LOOKING if job.request.plan is None else 0.0
        self._ahead = (self._looks + FITTING) * len(self.blocks)
        self._done = self._start = 0.0
        self._began = False

    # -- what phases share

    def _report(self, words: str, parts: float) -> None:
        """Say what begins, and how long all takes from here by what this run has done; parts: of all, done before."""
        left = self._ahead - parts
        pace = (time.monotonic() - self._start) / self._done if self._done else None
        say(Progress(words, None if pace is None else pace * left))

    def _begin(self) -> None:
        """Learn what blocks are given, and embed the text where that is not done."""
        if self._began:
            return
        self._began = True
        self.skeleton.to(self.device)
        tables = self._outside(head=False)
        first = self.blocks[0]
        self.skeleton.fill([*tables, *self.skeleton.inside(first)], self.device)
        if missing := [*unfilled(self.skeleton.blocks[first])]:
            raise InvalidModel(f"{self.skeleton.folder}: nothing in its files gives {few(missing)} of a block.")
        tokens = self.job.tokens
        dense = self.work.states("dense", 0, self.job.shape)
        parts = [*self.flow.batches(0, self.fit), *self.flow.batches(self.fit, self.all)]
        whole = not dense.path.exists() and not self.work.has(self.work.shard(0))
        if whole:
            say(Progress("embedding the text"))
            with dense.written() as add:
                for start, stop in parts:
                    add(self.flow.embedded(tokens[start:stop]))
        for start, stop in parts:
            if stop - start not in self.flow.calls:
                self.flow.embedded(tokens[start:stop])
        self._check_causal(first)
        self.skeleton.empty([*tables, *self.skeleton.inside(first)])
        give_back()
        self._start = time.monotonic()

    def _check_causal(self, first: str) -> None:
        """Raise InvalidModel where a network is called a causal language model, but looks at what comes."""
        if not is_decoder(self.skeleton.architecture):
            return
        tokens = self.job.tokens[: min(self.flow.calls)]
        hidden = self.flow.embedded(tokens)
        other = hidden.clone()
        other[:, -1] = -other[:, -1]
        block = self.skeleton.blocks[first]
        one, two = (self.flow.run(0, block, states)[:, :-1] for states in (hidden, other))
        if float((one - two).abs().max()) > 1e-5 * float(one.abs().max()):
            raise InvalidModel(
                f"{self.skeleton.folder}: {self.skeleton.architecture} looks at tokens that come, so its text has no "
                "perplexity; save the network under its own class."
            )

    def _outside(self, *, head: bool) -> list[str]:
        """Names outside of the blocks that are needed to embed, or to answer: of a table and a head that share nothing
        one alone."""
        own = self.skeleton.model
        embedding, answering = own.get_input_embeddings(), own.get_output_embeddings()
        other = embedding if head else answering
        if other is None:
            return self.skeleton.outside
        prefix = next(name for name, module in own.named_modules() if module is other)
        held = {name for name in self.skeleton.outside if name.startswith(f"{prefix}.")}
        tied = {*self.skeleton.ties.values()} | {*self.skeleton.ties}
        return [name for name in self.skeleton.outside if name not in held or name in tied]

    def _filled(self, number: int) -> Block:
        name = self.blocks[number]
        self.skeleton.fill(self.skeleton.inside(name), self.device)
        return Block(number, name, self.skeleton.blocks[name], self.skeleton.linear(name))

    def _emptied(self, number: int) -> None:
        self.skeleton.empty(self.skeleton.inside(self.blocks[number]))
        give_back()

    def _threads(self) -> AbstractContextManager[None]:
        """Small blocks are not worth handing round between threads."""
        return one_thread() if _block_numbers(self.skeleton) < SMALL else nullcontext()

    # -- the phases

    def looking(self) -> Iterator[Step]:
        """What each direction of each layer's outputs carries, in the dense network."""
        if not self._looks or self.work.has("plan"):
            return
        total = len(self.blocks)
        for number in range(total):
            if not self.work.has(self.work.looked(number)):
                self._begin()
                began = time.monotonic()
                self._report(f"looking for ranks: block {number + 1} of {total}", LOOKING * number)
                with self._threads():
                    self._look(number)
                self._done += LOOKING
                yield Step("looking", number + 1, total, time.monotonic() - began)

    def _look(self, number: int) -> None:
        block, shape = self._filled(number), (self.fit, *self.job.shape[1:])
        states = self.work.states("dense" if number == 0 else "look", number, shape)
        found: dict[str, Tensor] = {}
        for group in readings(self.flow, block, states.read(0, min(self.flow.batch, self.fit), self.device)):
            seen = seen_by(self.flow, block, group, None, (states, states), self.fit)
            found |= {name: energies(name, block.layers[name], seen) for name in group}
        with self.work.states("look", number + 1, shape).written() as add:
            for first, last in self.flow.batches(0, self.fit):
                add(self.flow.run(number, block.module, states.read(first, last, self.device)))
        self.work.keep_tensors(self.work.looked(number), found)
        self._emptied(number)
        self.work.forget_states("look", number + 1)

    def plan(self) -> RankPlan:
        """The plan that was given, or the ranks that spectra choose."""
        request = self.job.request
        if request.plan is not None:
            return request.plan
        kept = self.work.kept("plan")
        if kept is not None:
            return read_plan(json.dumps(kept)).plan
        assert request.bytes_share is not None
        spectra: dict[str, Tensor] = {}
        for number in range(len(self.blocks)):
            spectra |= self.work.tensors(self.work.looked(number))
        limit = request.bytes_share * plan_cost(self.profile).bytes
        plan = ranks_within(self.profile, spectra, limit)
        self.work.keep("plan", json.loads(plan.to_json()))
        self.work.forget_states("look", len(self.blocks) + 1)
        return plan

    def fitting(self, plan: RankPlan) -> Iterator[Step]:
        """Factors of one block after the other, and both streams through it."""
        total, ranks = len(self.blocks), {name: choice.rank[0] for name, choice in plan.choices}
        for number in range(total):
            if not self.work.has(self.work.shard(number)):
                self._begin()
                began = time.monotonic()
                self._report(f"fitting factors: block {number + 1} of {total}", self._looks * total + FITTING * number)
                with self._threads():
                    error = self._fit(number, ranks)
                self._done += FITTING
                yield Step("fitting", number + 1, total, time.monotonic() - began, error)

    def _fit(self, number: int, ranks: dict[str, int]) -> float:
        block, shape = self._filled(number), self.job.shape
        kinds = ("dense", "given" if number else "dense")  # into the first block goes the same
        states = self.work.states(kinds[0], number, shape), self.work.states(kinds[1], number, shape)
        now = compressed_block(self.flow, block, ranks, self.job.request.correction, states, self.fit)
        error = self._both(number, block.module, now, states)
        self.work.keep_tensors(self.work.shard(number), self._state(block, now, ranks))
        del now
        self._emptied(number)
        for kind in ("dense", "given"):
            self.work.forget_states(kind, number + 1)
        return error

    def _both(self, number: int, dense: nn.Module, now: nn.Module, states: tuple[Any, Any]) -> float:
        """Send both streams through a block; the relative error of what comes out, on the windows held out."""
        away = size = 0.0
        after = [self.work.states(kind, number + 1, self.job.shape) for kind in ("dense", "given")]
        with after[0].written() as add_dense, after[1].written() as add:
            for first, last in [*self.flow.batches(0, self.fit), *self.flow.batches(self.fit, self.all)]:
                exact = self.flow.run(number, dense, states[0].read(first, last, self.device))
                ours = self.flow.run(number, now, states[1].read(first, last, self.device))
                add_dense(exact)
                add(ours)
                if first >= self.fit:
                    away += float((ours - exact).double().square().sum())
                    size += float(exact.double().square().sum())
        return (away / size) ** 0.5 if size else 0.0

    def _state(self, block: Block, now: nn.Module, ranks: dict[str, int]) -> dict[str, Tensor]:
        """The weights of a compressed block as they are stored; of each layer replaced an empty tensor of its name."""
        state: dict[str, Tensor] = {}
        for name in self.skeleton.inside(block.name):
            owner = name.rpartition(".")[0]
            state[name] = torch.empty(0) if owner in ranks else self.skeleton.stored[name].whole
        for name in block.layers.keys() & ranks.keys():
            dtype = self.skeleton.stored[f"{name}.weight"].dtype
            chain = now.get_submodule(name.removeprefix(f"{block.name}."))
            for key, value in chain.state_dict().items():
                state[f"{name}.{key}"] = value.detach().cpu().to(dtype).contiguous()
        return dict(sorted(state.items()))

    def scoring(self) -> Iterator[Step]:
        """What both networks say of the windows held out."""
        if self.work.has("judged.safetensors"):
            return
        self._begin()
        began = time.monotonic()
        total = len(self.blocks)
        dense, given = (self.work.states(kind, total, self.job.shape) for kind in ("dense", "given"))
        causal = is_decoder(self.skeleton.architecture)
        judged: list[Tensor] = []
        if causal:
            self.skeleton.fill(self._outside(head=True), self.device)
            self._stand_in_table()
        for done, first in enumerate(range(self.fit, self.all), 1):
            say(Progress(f"scoring: window {done} of {self.all - self.fit}"))
            both = [one.read(first, first + 1, self.device) for one in (given, dense)]
            if causal:
                tokens = self.job.tokens[first : first + 1].to(self.device)
                judged.append(torch.stack([self._surprise(tokens, hidden) for hidden in both]))
            else:
                alike = cosine_similarity(both[0].double(), both[1].double(), dim=-1).mean().cpu()
                judged.append(torch.stack([alike, torch.ones_like(alike)])[:, None])
        self.work.keep_tensors("judged.safetensors", {"judged": torch.stack(judged).contiguous()})
        yield Step("scoring", 1, 1, time.monotonic() - began)

    def _stand_in_table(self) -> None:
        """Where a head of its own answers, let the table of words, which is not there, look nothing up."""
        table = self.skeleton.model.get_input_embeddings()
        if any(p.is_meta for p in table.parameters()):
            width, device = self.skeleton.width, self.device
            table.__dict__["forward"] = lambda ids: torch.zeros(*ids.shape, width, device=device)

    def _surprise(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(2,): the summed cross-entropy of a window's tokens from the second on, and how many they are."""
        totals = METRICS["perplexity"].totals
        assert totals is not None
        logits = self.flow.answers(tokens, hidden)[:, :-1].float()
        return totals(logits, tokens[:, 1:])[0].double().cpu()

    def score(self) -> Score:
        """The score of what was judged."""
        judged = self.work.tensors("judged.safetensors")["judged"]
        if not bool(judged.isfinite().all()):
            raise InvalidData(
                f"{self.skeleton.folder}: the network's answers on the held-out text are NaN or infinite; look at its "
                "weights, or ask for more bytes."
            )
        ours, dense, documents = judged[:, 0], judged[:, 1], self.job.windows.documents
        if is_decoder(self.skeleton.architecture):
            return paired_score(METRICS["perplexity"], ours, dense, documents)
        return paired_score(COSINE, ours[:, 0], dense[:, 0], documents)
