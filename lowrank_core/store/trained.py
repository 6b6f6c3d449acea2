"""Weights as training leaves them: sets of them under keys of one file, and what wrapped the network in their names.

A set is tensors by name. Which one is meant, and which prefix of its names is not the network's, is one question: under
which key and prefix are the fewest names of the network missing? Without a network it is the usual key, and the prefix
that all names share.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from lowrank_core.errors import InvalidFile, cut, few
from lowrank_core.store.torch_file import ADVICE, Inert, read_content

T = TypeVar("T")

USUAL = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
"""Keys of a training checkpoint under which its weights are, the usual ones first."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""What torch.compile, FSDP, checkpointed activations and Fabric put into names, wherever they wrap a part."""

PREFIXES = ("module", "model", "net", "network")
"""The names under which DataParallel, AveragedModel and Lightning modules hold a network."""

COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay", "ema_decay"}
"""What those who average weights keep beside them."""

OPTIONAL = {"num_batches_tracked", "total_ops", "total_params", "position_ids", "inv_freq"}
"""Ends of names of what is no weight: one version of a network keeps it and another does not."""

_AVERAGED = re.compile("(?<![a-zA-Z])(ema|EMA|swa|SWA|shadow|averaged)(?![a-z])")
_TRAINED = re.compile("online|current")
"""What those who average a network call the one that is trained."""

_DEEPEST = 5
_PROBES = 3


@dataclass(frozen=True, slots=True, eq=False)
class WeightSets(Generic[T]):
    """The sets of weights in a file by key, '' for the file itself: the usual one first, averaged ones last.

    keys: all that the file has at its top, in its order. notices: what there is to say whatever is taken.
    """

    path: Path
    sets: Mapping[str, Mapping[str, T]]
    keys: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def part(self, key: str) -> Mapping[str, Mapping[str, T]]:
        """The set that a person names, by its key or a prefix of its names; without a key all. Raises InvalidFile."""
        if not key:
            return self.sets
        if key in self.sets:
            return {key: self.sets[key]}
        for under, names in self.sets.items():
            prefix = f"{key.removeprefix(f'{under}.')}."
            inside = {name.removeprefix(prefix): names[name] for name in names if name.startswith(prefix)}
            if inside:
                return {key: inside}
        there = [*filter(None, self.sets), *_tops(self.sets.get("", ()))]
        raise InvalidFile(f"{self.path} has no weights under {cut(key)!r}; there are {few(there) or 'no other ones'}.")

    def taken(self, key: str, others: Iterable[str], label: str = "") -> tuple[str, ...]:
        """What is taken, what is left, and what could be taken instead, in sentences. label: of what is taken."""
        said = list(self.notices)
        if key:
            left = [name for name in self.keys if key != name and not key.startswith(f"{name}.")]
            said.insert(0, f"The weights under {key!r} are taken" + (f"; {few(left)} left out." if left else "."))
        others = [other for other in dict.fromkeys(others) if other and other != (label or key)]
        averaged = [other for other in others if is_averaged(other)]
        if others:
            what = "Averaged weights (EMA)" if averaged else "Other weights"
            chosen = few([f"{self.path.name}#{other}" for other in averaged or others])
            said.append(f"{what} are there as well, and taken where the file is given as {chosen}.")
        return tuple(said)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted(Generic[T]):
    """Weights by the names of a network, with those that it has no place for. tried: how names were taken, in words."""

    state: dict[str, T]
    tried: str
    notices: tuple[str, ...]


def is_averaged(key: str) -> bool:
    """Whether a key or prefix is that of weights averaged over training, as far as its words tell.

    >>> [is_averaged(key) for key in ("state_dict_ema", "ema_model", "model", "schema")]
    [True, True, False, False]
    """
    return _AVERAGED.search(key) is not None and not _TRAINED.search(key.rpartition(".")[2])


def read_sets(path: Path) -> WeightSets[Tensor]:
    """The sets of weights in a file of `torch.save` or `torch.jit.save`; raises InvalidFile where there is none."""
    content = read_content(path)
    sets = dict(_sets(content, "", path, set()))
    if not sets:
        raise InvalidFile(f"{path} must hold a state_dict (names and tensors), but got {_told(content)}; {ADVICE}.")
    if isinstance(content, Inert):
        scripted = content.kind.startswith("__torch__")
        what = "a program of TorchScript" if scripted else f"a whole network ({content.kind})"
        made = "torch.jit.load(FILE)" if scripted else "that network"
        told = f"The file is {what}: its weights are read, its code is not run. To compress it, give a model file"
        return WeightSets(path, sets, (), (f"{told} whose build_model() returns {made}.",))
    assert isinstance(content, dict)
    keys = tuple(str(key) for key in content if "" not in sets or str(key) not in sets[""])
    skipped = [f"{key} ({v.kind})" for key, v in content.items() if isinstance(v, Inert) and str(key) not in sets]
    said = (f"Not loaded, since that could run code: {few(skipped)}.",) if skipped else ()
    return WeightSets(path, dict(sorted(sets.items(), key=_unusual)), keys, said)


def alone(held: WeightSets[T], part: str = "") -> tuple[dict[str, T], tuple[str, ...]]:
    """Weights without a network by name, less the prefix that all share; and what there is to say."""
    key, names = next(iter(held.part(part).items()))
    plain, said = _plain(names)
    state = {name: value for name, value in plain.items() if name not in COUNTERS} or plain
    prefix = ""
    while len(top := _tops(state)) == 1 and top[0] in PREFIXES and all("." in name for name in state):
        prefix += f"{top[0]}."
        state = {name.partition(".")[2]: value for name, value in state.items()}
    if prefix:
        beside = [name for name in plain if name in COUNTERS]
        said += (f"The prefix {prefix!r} of every name is left off{_rest(beside)}.",)
    else:
        state = plain
    inside = [top for top in _tops(name for name in plain if "." in name) if is_averaged(top)]
    return state, (*held.taken(key, [*held.sets, *([] if part else inside)]), *said)


def fitted(held: WeightSets[T], ours: Collection[str], parameters: Collection[str] = (), part: str = "") -> Fitted[T]:
    """The set and prefix under which the fewest of a network's names are missing, by those names.

    ours: the names of the network's tensors; what else lies under the prefix is in the state as well, to be refused.
    parameters: those that are trained, in their order: averages are often kept as a list.
    """
    own, held = set(ours), _listed_by_name(held, ours, parameters)
    needed = {name for name in own if _leaf(name) not in OPTIONAL}
    readings = [
        reading
        for key, names in held.part(part).items()
        for prefix, added in _candidates(_plain(names)[0], ours)
        for reading in [_Reading.of(key, names, prefix, added, own)]
    ]
    best = min(readings, key=lambda one: (one.faults(own, needed), is_averaged(one.label) != is_averaged(part)))
    rivals = [one.label for one in readings if one.state.keys() >= needed and one.state.keys() <= own]
    beside = [one for one in readings if one.key == best.key and one.label in rivals and not is_averaged(one.label)]
    if not part and best in beside and len({one.prefix for one in beside}) > 1:
        told = " and ".join(sorted({one.label for one in beside}))
        raise InvalidFile(
            f"{held.path} holds this network more than once: under {told}; save the one that is meant alone, or name "
            f"it as FILE#{best.label} with --weights."
        )
    said = [*held.taken(best.key, rivals if best.label in rivals else (), best.label), *best.said]
    if best.prefix:
        said.append(f"The prefix {best.prefix!r} of names is left off{_rest(best.beside)}.")
        return Fitted(best.state, f"prefix {best.prefix!r} left off", tuple(said))
    if best.added:
        said.append(f"The prefix {best.added!r} of the network is put before every name.")
        return Fitted(best.state, f"prefix {best.added!r} put before every name", tuple(said))
    return Fitted(best.state, "", tuple(said))


def _listed_by_name(held: WeightSets[T], ours: Collection[str], parameters: Collection[str]) -> WeightSets[T]:
    """The sets, lists among them by the names of the parameters; what is no parameter is that of the usual weights."""
    lists = [
        key for key, names in held.sets.items() if len(names) == len(parameters) and all(map(str.isdecimal, names))
    ]
    others = {key: names for key, names in held.sets.items() if key not in lists}
    if not lists:
        return held
    usual = fitted(WeightSets(held.path, others), ours).state if others else {}
    rest = {name: value for name, value in usual.items() if name not in parameters}
    named = {key: rest | dict(zip(parameters, held.sets[key].values(), strict=True)) for key in lists}
    return replace(held, sets={key: named.get(key, names) for key, names in held.sets.items()})


@dataclass(frozen=True, slots=True, eq=False)
class _Reading(Generic[T]):
    """One way to read the names of a file: the set under a key, with a prefix taken off or put on.

    state: tensors by the names that a network would have. beside: names outside of the prefix. said: of the names.
    """

    key: str
    prefix: str
    added: str
    state: dict[str, T]
    beside: list[str]
    said: tuple[str, ...]

    @classmethod
    def of(cls, key: str, names: Mapping[str, T], prefix: str, added: str, own: set[str]) -> _Reading[T]:
        """That reading, without what is no weight and has no place in a network with these names."""
        plain, said = _plain(names)
        state = {f"{added}{name.removeprefix(prefix)}": plain[name] for name in plain if name.startswith(prefix)}
        state = {n: v for n, v in state.items() if n in own or not (_leaf(n) in OPTIONAL or n in COUNTERS)}
        return cls(key, prefix, added, state, [name for name in plain if not name.startswith(prefix)], said)

    @property
    def label(self) -> str:
        """How a person chooses it: key and prefix."""
        return ".".join(filter(None, (self.key, self.prefix.rstrip("."))))

    def faults(self, own: set[str], needed: set[str]) -> int:
        """How many names of the network are missing, and how many it has no place for."""
        return len(needed - self.state.keys()) + len(self.state.keys() - own)


def _sets(content: object, key: str, path: Path, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(key, tensors by name) of each set; what optimizers keep is none."""
    if id(content) in seen or key.count(".") > _DEEPEST or len(seen) > 100_000:
        return
    seen.add(id(content))
    if isinstance(content, Inert) and (names := dict(_of_module(content))):
        yield key, names
    if isinstance(content, list) and key.endswith("shadow_params") and all(isinstance(v, Tensor) for v in content):
        yield key, {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict) or "param_groups" in content:
        return
    own = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    inside = [
        found
        for name, value in content.items()
        for found in _sets(value, f"{key}.{name}".removeprefix("."), path, seen)
        if isinstance(value, dict | list)
    ]
    numbers = sum(value.numel() for value in own.values())
    if numbers > sum(value.numel() for _, names in inside for value in names.values()) and (
        any(value.ndim for value in own.values()) or not key
    ):
        for name, value in content.items():
            if isinstance(value, Inert) and value.kind.startswith("torch.distributed"):
                raise InvalidFile(
                    f"{path} holds pieces of tensors that lie in several files ({name!r} is a {value.kind}); save the "
                    "whole: torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True."
                )
        yield key, own
    else:
        yield from inside


def _of_module(module: Inert) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network that was saved whole, by the names that its state_dict has; in a program of TorchScript
    the attributes of each module, or the constants where there is nothing else.
    """
    scripted = module.kind.startswith("__torch__")
    todo, seen, count = [("", module)], set[int](), 0
    while todo:
        at, one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        parts = one.attributes
        passing = _listed(parts.get("_non_persistent_buffers_set"))
        groups = [parts] if scripted else [parts.get(g) for g in ("_parameters", "_buffers", "_modules")]
        children = []
        for group in groups:
            for name, value in group.items() if isinstance(group, dict) else ():
                if isinstance(value, Tensor) and name not in passing:
                    count += 1
                    yield f"{at}{name}", value
                elif isinstance(value, Inert):
                    children.append((f"{at}{name}.", value))
        todo += reversed(children)
    constants = module.given[0] if scripted and not count and module.given else ()
    for number, value in enumerate(constants if isinstance(constants, tuple | list) else ()):
        if isinstance(value, Tensor):
            yield f"constants.{number}", value


def _listed(names: object) -> Collection[str]:
    """The texts of a set, which a pickle makes of a list."""
    given = names.given[0] if isinstance(names, Inert) and names.given else ()
    return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []


def _unusual(item: tuple[str, Mapping[str, Tensor]]) -> tuple[bool, int, int]:
    """How unlikely a set is the one that is meant: averaged ones last, then by the key, then the smaller ones."""
    key, names = item
    parts = key.split(".")
    usual = USUAL.index(parts[0]) if all(part in USUAL for part in parts) else len(USUAL)
    return is_averaged(key), usual, -sum(value.numel() for value in names.values())


def _plain(names: Mapping[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Names without what wraps parts of a network, and a sentence about it."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): names[name] for name in names}
    if len(plain) < len(names):
        return dict(names), ()
    there = [wrapper for wrapper in WRAPPERS if any(wrapper in name.split(".") for name in names)]
    return plain, (f"{few([f'{wrapper}.' for wrapper in there])} in names is left off.",) if there else ()


def _candidates(theirs: Collection[str], ours: Collection[str]) -> list[tuple[str, str]]:
    """(prefix to take off, prefix to put on) that some names of a file and of a network would have in common."""
    found = dict.fromkeys([("", "")])
    for one in _few_of(ours):
        found |= dict.fromkeys((name.removesuffix(one), "") for name in theirs if name.endswith(f".{one}"))
    for one in _few_of(theirs):
        found |= dict.fromkeys(("", name.removesuffix(one)) for name in ours if name.endswith(f".{one}"))
    return list(found)


def _few_of(names: Collection[str]) -> list[str]:
    """Some names, the longest of all among them: it ends the fewest others."""
    weighty = [name for name in names if _leaf(name) not in OPTIONAL and name not in COUNTERS]
    return [*sorted(weighty, key=len, reverse=True)[:1], *weighty[:: max(1, len(weighty) // _PROBES)]]


def _tops(names: Iterable[str]) -> list[str]:
    """The first parts of names, each once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _rest(names: list[str]) -> str:
    return f"; {few(names)} left out" if names else ""


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _told(content: object) -> str:
    """What there is in place of weights."""
    if isinstance(content, Inert):
        return content.kind
    if not isinstance(content, dict):
        return type(content).__name__
    kinds = [f" ({value.kind})" if isinstance(value, Inert) else "" for value in content.values()]
    return f"a dict with {few([f'{key!r}{kind}' for key, kind in zip(content, kinds, strict=True)])}"
