"""Prefix reuse: a copy that equals one measured before up to some layer need not run what comes before that layer.

The outputs of modules that ended before the layer are kept, batch by batch. In the next copy those modules answer from
memory: with the kept output where something later takes it, else with a placeholder, a tensor of the "meta" device
that has a shape and no values. Arithmetic on placeholders costs nothing, and whatever needs their values fails or
gives a placeholder again, so a wrong result cannot come out unseen; the whole network is run instead.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import eq
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.errors import InvalidData
from lowrank_core.layers.data import Dataset, Outputs, octets, run, tensors
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.networks.twin import twin
from lowrank_core.store.room import Room

LIMIT_BYTES = 512 * 2**20
"""Kept outputs of one network take at most this."""

PROBE = 2
"""Samples in each of the two batches on which a cut is proved."""

RECENT = 8
"""So many copies run last are compared with the next one, to see where it first differs."""

Kept = dict[str, Tensor]
"""What modules put out, by the name of the module."""

Batch = tuple[int, int]
Key = tuple[int, bytes]
Prefixes = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to start from, just before layer number `before` of the profile first runs.

    needed: modules whose outputs the rest of the network takes; idle: those whose outputs nothing takes any more.
    """

    before: int
    needed: tuple[str, ...]
    idle: tuple[str, ...]
    sample_bytes: int


@dataclass(frozen=True, slots=True)
class _Visit:
    """When a module ran in one forward pass, and whether it can answer from memory: one call, one tensor of its own."""

    enter: int
    exit: int
    keepable: bool


class Cuts:
    """Where copies of one network can be started from, each place found once. Safe to share between stores, threads."""

    def __init__(
        self, model: nn.Module, profile: ModelProfile, samples: Dataset, outputs: Sequence[str] | None = None
    ) -> None:
        """samples: two times PROBE of them prove a cut; outputs: names of those that are wanted, None for all."""
        self.model, self.profile, self.outputs = model, profile, outputs
        self._probes = [samples.pick(slice(at, at + PROBE)) for at in (0, PROBE) if at < len(samples)]
        self._cutting = threading.RLock()
        self._visits: dict[str, _Visit] | None = None
        self._cuts: dict[int, Cut | None] = {}

    def cut(self, before: int) -> Cut | None:
        """The cut before a layer, found once and proved on a few samples of the dense network; None if none holds."""
        with self._cutting:
            if before not in self._cuts:
                self._cuts[before] = self._found(before) if 0 < before < len(self.profile.layers) else None
            return self._cuts[before]

    def forget(self, cut: Cut) -> None:
        """The cut has failed: it is not used again."""
        with self._cutting:
            self._cuts[cut.before] = None

    @property
    def visits(self) -> dict[str, _Visit]:
        """When each module of the dense network runs, by all its names."""
        with self._cutting:
            if self._visits is None:
                self._visits = _visited(twin(self.model), self._probes[0])
            return self._visits

    def candidates(self, before: int) -> list[str]:
        """Modules that end before the layer first runs and can answer from memory: the outermost, as they run."""
        start = self.visits[self.profile.layers[before].module].enter
        done = {visit: name for name, visit in self.visits.items() if visit.keepable and visit.exit < start}
        chosen: list[str] = []
        covered = -1
        for visit in sorted(done, key=lambda v: v.enter):
            if visit.exit > covered:
                chosen.append(done[visit])
                covered = visit.exit
        return chosen

    def _found(self, before: int) -> Cut | None:
        """The fewest modules that must answer with values: the last 1, 2, 4, ..., less those that can be idle.

        A choice holds when fresh copies give, on two batches, bit for bit what the whole dense network gives.
        """
        names = self.candidates(before)
        whole = _Player(self.model, self.outputs)
        takes = [whole.play(probe, take=dict.fromkeys(names, True)) for probe in self._probes]
        if not names or any(len(taken) < len(names) for _, taken in takes):
            return None

        def holds(needed: Collection[str], blank: Callable[[Tensor], Tensor] = _placeholder) -> bool:
            fresh = _Player(self.model, self.outputs)
            try:
                return all(
                    _same_bits(fresh.play(probe, given=_masked(taken, needed, blank))[0], outputs)
                    for (outputs, taken), probe in zip(takes, self._probes, strict=True)
                )
            except InvalidData:
                return False

        count = 1
        while not holds(names[-count:]):
            if count >= len(names):
                return None
            count *= 2
        needed = _pruned(names[-count:], partial(holds, blank=_nan))  # blind to what is computed in vain ...
        if not holds(needed):
            needed = _pruned(names[-count:], holds)  # ... unless that mixes values with placeholders
        sample_bytes = sum(_bytes(takes[0][1][name]) for name in needed) // len(self._probes[0])
        return Cut(before, tuple(needed), tuple(name for name in names if name not in needed), sample_bytes)


class PrefixStore:
    """Runs copies of one network on batches of its samples, each with what earlier copies left behind.

    Copies are told apart by the values they hold, in the order of execution, so it does not matter whether a rank, a
    correction or training made the difference. Safe to share between threads.
    """

    def __init__(self, cuts: Cuts, *, limit_bytes: int = LIMIT_BYTES, room: Room | None = None) -> None:
        """cuts: of the network whose copies run; it says which outputs are wanted."""
        self.cuts, self.limit_bytes = cuts, limit_bytes
        self.model, self.profile, self.outputs = cuts.model, cuts.profile, cuts.outputs
        self._kept = (room or Room(limit_bytes)).part(limit_bytes)  # a shelf for what one cut keeps of one prefix
        self._dense = dict((*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()))
        self._lock = threading.Lock()
        self._recent: deque[Prefixes] = deque(maxlen=RECENT)

    @property
    def bytes(self) -> int:
        """Memory held now; never more than the limit."""
        return self._kept.bytes

    def runner(self, model: nn.Module, samples: int, *, record: Collection[int] | None = None) -> Runner:
        """What runs a copy batch by batch, over so many samples in all.

        record: numbers of the layers before which outputs are kept; by default the first one that differs from copies
        run lately, and those near two thirds and one third of the network, as far as memory goes.
        """
        prefixes = self._prefixes(model) if record is None or record or self._kept.shelves() else ()
        if not prefixes:
            return Runner(self, model, [], [])
        usable = [before for before, digest in self._kept.shelves() if prefixes[before] == digest]
        with self._lock:
            shared = [sum(map(eq, prefixes, other)) - 1 for other in self._recent]
            if record is None and prefixes not in self._recent:
                self._recent.append(prefixes)
        sources = [cut for before in sorted(usable, reverse=True) if (cut := self.cuts.cut(before)) is not None]
        if record is None:
            recorded = [self._before(max(shared, default=0), samples), self._third(2), self._third(1)]
        else:
            recorded = [self.cuts.cut(before) for before in record]
        left = self.limit_bytes - sum(cut.sample_bytes * samples for cut in sources[:1] if cut not in recorded)
        targets: list[Cut] = []
        for cut in recorded:
            if cut is not None and cut not in targets and cut.sample_bytes * samples <= left:
                targets.append(cut)
                left -= cut.sample_bytes * samples
        keyed = [[(cut, prefixes[cut.before]) for cut in cuts] for cuts in (sources, targets)]
        return Runner(self, model, *keyed)

    def get(self, key: Key, batch: Batch) -> Kept | None:
        """What is kept of a batch under a cut; None where there is nothing."""
        kept: Kept | None = self._kept.get(key, batch)
        return kept

    def put(self, key: Key, batch: Batch, kept: Kept) -> None:
        """Keep a batch; what was used least lately makes room."""
        self._kept.put(key, kept, sum(map(_bytes, kept.values())), item=batch)

    def _before(self, layer: int, samples: int) -> Cut | None:
        """The cut before a layer, or before one of the three ahead of it where it would take most of the memory."""
        for before in range(layer, layer - 4, -1):
            cut = self.cuts.cut(before)
            if cut is not None and cut.sample_bytes * samples <= 2 / 3 * self.limit_bytes:
                return cut
        return None

    def _third(self, thirds: int) -> Cut | None:
        """A cut near that many thirds of the layers, where the fewest modules stand open."""
        middle, last = round(thirds * len(self.profile.layers) / 3), len(self.profile.layers) - 1
        near = [before for before in (middle, middle + 1, middle - 1) if 0 < before <= last]
        return self.cuts.cut(min(near, key=lambda before: len(self.cuts.candidates(before)))) if near else None

    def _prefixes(self, model: nn.Module) -> Prefixes:
        """For each layer a digest of all that is in use before it first runs; () for what is no copy of the network.

        Values that are the dense network's own are compared, not digested: a large network costs little.
        """
        layers = self.profile.layers
        if type(model) is not type(self.model) or len(layers) < 2:
            return ()
        counts = Counter(layer.module for layer in layers)
        if len(counts) < len(list(groupby(layers, key=lambda layer: layer.module))):
            return ()  # a module's weights are read with other layers in between, so it has no one place
        visits = self.cuts.visits
        starts = [visits[name].enter if name in visits else -1 for name in counts]
        if starts[0] < 0 or starts != sorted(set(starts)):
            return ()  # not every layer runs, or they run in another order than on the example inputs
        times = {n: visits[n].enter if n in visits else -1 for n, _ in _all_modules(self.model)}
        entries: list[tuple[int, str, Tensor]] = []
        for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
            owner = name
            while owner and owner not in times:
                owner = owner.rpartition(".")[0]
            entries.append((times[owner], name, value))
        pending, digest = deque(sorted(entries, key=lambda item: item[:2])), hashlib.blake2b()
        prefixes: list[bytes] = []
        for (module, count), start in zip(counts.items(), starts, strict=True):
            while pending and pending[0][0] < start:
                _, name, value = pending.popleft()
                dense = self._dense.get(name)
                same = dense is not None and dense.shape == value.shape and torch.equal(dense, value)
                digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|{same}|".encode())
                digest.update(b"" if same else octets(value))
            prefixes += [digest.digest()] * count  # the weights of a recurrent module share the place before it
            digest.update(repr(model.get_submodule(module)).encode())
        return tuple(prefixes)


class Runner:
    """Runs one copy batch by batch, from the latest cut that has the batch, and keeps outputs for later copies."""

    def __init__(
        self,
        store: PrefixStore,
        model: nn.Module,
        sources: list[tuple[Cut, bytes]],
        targets: list[tuple[Cut, bytes]],
    ) -> None:
        self._store, self._sources, self._targets = store, sources, targets
        self._player = _Player(model, store.outputs)
        self.reused = 0  # batches that did not run from the start

    def __call__(self, part: Dataset, start: int) -> Outputs:
        """The outputs of the batch whose first sample has number `start`: the same bits as without reuse."""
        batch = start, start + len(part)
        for cut, digest in self._sources:
            given = self._store.get((cut.before, digest), batch)
            if given is None:
                continue
            try:
                outputs = self._run(part, batch, given, [t for t in self._targets if t[0].before > cut.before])
            except InvalidData:
                outputs = None
            if outputs is not None and not any(output.is_meta for output in outputs.values()):
                self.reused += 1
                return outputs
            self._store.cuts.forget(cut)
            self._sources = [source for source in self._sources if source[0] != cut]
            break
        return self._run(part, batch, {}, self._targets)

    def _run(self, part: Dataset, batch: Batch, given: Kept, targets: list[tuple[Cut, bytes]]) -> Outputs:
        take = {name: False for cut, _ in targets for name in cut.idle}
        take |= {name: True for cut, _ in targets for name in cut.needed}
        outputs, taken = self._player.play(part, given=given, take=take)
        for cut, digest in targets:
            whole = all(name in taken for name in (*cut.needed, *cut.idle))
            if whole and not any(taken[name].is_meta for name in cut.needed):
                mine = {name: taken[name] for name in (*cut.needed, *cut.idle)}
                self._store.put((cut.before, digest), batch, _masked(mine, cut.needed))
        return outputs


class _Player:
    """A network's twin whose modules may answer from memory, and whose outputs may be taken while it runs."""

    def __init__(self, model: nn.Module, outputs: Sequence[str] | None) -> None:
        self.model, self._outputs = twin(model), outputs
        self._modules = dict(_all_modules(self.model))
        self._watched: set[str] = set()
        self._given: Kept = {}
        self._take: dict[str, bool] = {}
        self._taken: Kept = {}
        self._calls: Counter[str] = Counter()

    def play(
        self, part: Dataset, *, given: Kept | None = None, take: dict[str, bool] | None = None
    ) -> tuple[Outputs, Kept]:
        """(outputs, what the modules in `take` put out), placeholders for those marked False.

        Modules in `given` answer with those tensors. What was called more than once is not taken. Raises InvalidData.
        """
        self._given, self._take, self._taken = given or {}, take or {}, {}
        self._calls.clear()
        for name in (self._given.keys() | self._take.keys()) - self._watched:
            module = self._modules[name]
            module.__dict__["forward"] = partial(self._answer, name, module.forward)
            self._watched.add(name)
        outputs = run(self.model, part, self._outputs)
        return outputs, {name: kept for name, kept in self._taken.items() if self._calls[name] == 1}

    def _answer(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._calls[name] += 1
        if name in self._given:
            if self._calls[name] > 1:
                raise RuntimeError(f"{name} was called again; it cannot answer from memory")
            if name in self._take:
                self._taken[name] = self._given[name]
            return self._given[name].clone()
        output = forward(*args, **kwargs)
        if name in self._take and type(output) is Tensor:
            self._taken[name] = output.clone() if self._take[name] else _placeholder(output)
        return output


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


def _visited(model: nn.Module, part: Dataset) -> dict[str, _Visit]:
    """When each module ran, from entering it first to leaving it last; hooks stay on the model, so give it a twin."""
    clock = iter(range(10**9))
    enters: dict[nn.Module, list[int]] = {}
    exits: dict[nn.Module, int] = {}
    own: dict[nn.Module, bool] = {}

    def enter(module: nn.Module, *_: Any) -> None:
        enters.setdefault(module, []).append(next(clock))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        exits[module] = next(clock)
        taken = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        own[module] = type(output) is Tensor and output.untyped_storage().data_ptr() not in taken

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # those take no hooks
                continue
            hooks.callback(module.register_forward_pre_hook(enter).remove)
            hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        run(model, part)
    return {
        name: _Visit(enters[module][0], exits[module], own[module] and len(enters[module]) == 1)
        for name, module in _all_modules(model)
        if module in exits
    }


def _pruned(needed: list[str], holds: Callable[[Collection[str]], bool]) -> list[str]:
    """Leave out whatever can be left out, by halves."""

    def kept(part: list[str], rest: list[str]) -> list[str]:
        if not part or holds(rest):
            return []
        if len(part) == 1:
            return part
        half = len(part) // 2
        left = kept(part[:half], part[half:] + rest)
        return left + kept(part[half:], left + rest)

    return kept(needed, []) if len(needed) > 1 else needed


def _placeholder(value: Tensor) -> Tensor:
    return torch.empty_like(value, device="meta")


def _nan(value: Tensor) -> Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value


def _masked(kept: Kept, needed: Collection[str], blank: Callable[[Tensor], Tensor] = _placeholder) -> Kept:
    """The same with a placeholder for each tensor that nothing needs."""
    return {name: value if name in needed else blank(value) for name, value in kept.items()}


def _same_bits(ours: Outputs, theirs: Outputs) -> bool:
    pairs = [(ours[name], theirs[name]) for name in theirs if name in ours]
    return len(pairs) == len(theirs) and all(
        not a.is_meta and a.shape == b.shape and a.dtype == b.dtype and octets(a) == octets(b) for a, b in pairs
    )


def _bytes(value: Tensor) -> int:
    return 0 if value.is_meta else value.numel() * value.element_size()
