"""The cache on disk: never a wrong tensor, never an error, never more than its limit."""

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from awkward_layers import AWKWARD, filled, seeded
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_core.algebra import cp
from lowrank_core.commands import _opening, cli
from lowrank_core.compression import calibration, factors
from lowrank_core.compression.calibration import MomentStore
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidModel
from lowrank_core.layers.data import Dataset
from lowrank_core.methods import METHODS
from lowrank_core.networks.discover import discover
from lowrank_core.networks.profile import ModelProfile
from lowrank_core.plans.plan import Choice
from lowrank_core.plans.uniform import uniform_plan
from lowrank_core.store import memo
from lowrank_core.store.cache import Cache
from lowrank_core.workspace import Workspace
from tests.conftest import PATIENCE_SECONDS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.usefixtures("one_thread"),
]

ABOUT = {"what": "test", "number": 1}
TENSORS = {"a": seeded((3, 5)), "b": torch.tensor([True, False]), "half": seeded((4,)).half(), "one": torch.tensor(7)}


class Sealed(Cache):
    """A cache in which everything is there already: nothing may be computed."""

    def remembered(self, about, compute):
        found = self.get(about)
        assert found is not None, about
        return found


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def files(cache):
    return sorted(p.name for p in cache.folder.rglob("*") if p.is_file())


def same(found, tensors):
    return found.keys() == tensors.keys() and all(
        torch.equal(found[k], t) and found[k].dtype == t.dtype for k, t in tensors.items()
    )


# ---- one entry ------------------------------------------------------------------------------------------------------


def test_what_is_put_is_got(cache):
    assert cache.get(ABOUT) is None
    cache.put(ABOUT, TENSORS)
    assert same(cache.get(ABOUT), TENSORS)
    assert cache.get({**ABOUT, "number": 2}) is None
    cache.put({"number": 1, "what": "test"}, TENSORS)  # the order of what it depends on means nothing
    assert len(files(cache)) == 1


def test_got_tensors_lie_in_memory_like_fresh_ones(cache):
    cache.put(ABOUT, {"turned": seeded((7, 3)).mT, "odd": torch.ones(1, dtype=torch.int8), "wide": seeded((5, 9))})
    for tensor in cache.get(ABOUT).values():
        assert tensor.data_ptr() % 64 == 0
        assert tensor.is_contiguous()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lying_length(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def nested(path: Path) -> None:
    text = b"[" * 100_000
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def other_shape(path: Path) -> None:
    content, tensors = path.read_bytes(), load_file(path)
    size = int.from_bytes(content[:8], "little")
    path.write_bytes(content[:8] + content[8 : 8 + size].replace(b"[3,5]", b"[5,3]") + content[8 + size :])
    assert load_file(path)["a"].shape != tensors["a"].shape


def other_key(path: Path) -> None:
    cache = Cache(path.parents[1])
    cache.put({"what": "other"}, TENSORS)
    os.replace(cache.path({"what": "other"}), path)


def no_metadata(path: Path) -> None:
    save_file(TENSORS, path)


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGE = (cut, empty, lying_length, nested, other_shape, other_key, no_metadata, folder_in_its_place, unreadable)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_dropped_and_computed_again(cache, damage):
    cache.put(ABOUT, TENSORS)
    damage(cache.path(ABOUT))
    assert cache.get(ABOUT) is None
    assert not os.path.lexists(cache.path(ABOUT))
    assert same(cache.remembered(ABOUT, lambda: TENSORS), TENSORS)
    assert same(cache.get(ABOUT), TENSORS)


def test_any_flipped_bit_is_found(cache):
    cache.put(ABOUT, TENSORS)
    path, whole = cache.path(ABOUT), cache.path(ABOUT).read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        found = cache.get(ABOUT)
        assert found is None or same(found, TENSORS), place
        path.unlink(missing_ok=True)


def test_where_nothing_can_be_written_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file" / "cache")
    assert same(cache.remembered(ABOUT, lambda: TENSORS), TENSORS)
    assert same(cache.remembered(ABOUT, lambda: TENSORS), TENSORS)
    cache.trim()


def test_a_full_disk_leaves_nothing_behind(cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert same(cache.remembered(ABOUT, lambda: TENSORS), TENSORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(cache) == []


@pytest.mark.slow
def test_many_processes_share_a_folder(cache):
    code = """
import sys, torch
from pathlib import Path
from lowrank_core.store.cache import Cache
cache = Cache(Path(sys.argv[1]), limit_bytes=60_000)
for turn in range(100):
    number = turn * 7 % 12
    found = cache.get({"number": number})
    assert found is None or torch.equal(found["x"], torch.full((1000,), float(number), dtype=torch.float64))
    cache.put({"number": number}, {"x": torch.full((1000,), float(number), dtype=torch.float64)})
    assert cache.get({"number": -1}) is None
"""
    command = [sys.executable, "-c", code, str(cache.folder)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(p.communicate()[1], p.returncode) for p in running] == [("", 0)] * 3
    assert files(cache)
    assert all(name.endswith(".safetensors") for name in files(cache))


# ---- the limit ------------------------------------------------------------------------------------------------------


def sized(kilobytes):
    return {"x": torch.zeros(kilobytes * 1000, dtype=torch.uint8)}


def aged(path, seconds):
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_the_least_recently_used_go_first(tmp_path):
    cache = Cache(tmp_path, limit_bytes=95_000)
    abouts = [{"number": n} for n in range(4)]
    for age, about in zip((400, 300, 200), abouts, strict=False):
        cache.put(about, sized(25))
        aged(cache.path(about), age)
    assert cache.get(abouts[0]) is not None  # used: the second is the oldest now
    assert (
        cache.path(abouts[0]).stat().st_mtime > cache.path(abouts[2]).stat().st_mtime
    )  # also where atimes stand still
    cache.put(abouts[3], sized(25))
    assert [cache.path(about).exists() for about in abouts] == [True, False, True, True]
    cache.put({"number": 5}, sized(90))  # would leave room for nothing else
    assert not cache.path({"number": 5}).exists()
    assert len(files(cache)) == 3


def test_points_count_and_trainings_stay(tmp_path):
    cache = Cache(tmp_path, limit_bytes=100_000)
    for folder in (cache.points, cache.tuning):
        folder.mkdir()
        (folder / "old").write_bytes(bytes(60_000))
        aged(folder / "old", 1000)
    cache.put(ABOUT, sized(50))
    assert files(cache) == sorted(["old", cache.path(ABOUT).name])
    assert (cache.tuning / "old").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    cache = Cache(tmp_path)
    cache.put(ABOUT, TENSORS)
    for name, age in ((".left.12345678.tmp", 7200), (".being-written.12345678.tmp", 60)):
        path = cache.path(ABOUT).with_name(name)
        path.write_bytes(b"half")
        aged(path, age)
    cache.trim()
    assert files(cache) == sorted([".being-written.12345678.tmp", cache.path(ABOUT).name])


# ---- factors --------------------------------------------------------------------------------------------------------


def profiled(model, inputs):
    return discover(model, inputs)


def looked_at(store: FactorStore, profile: ModelProfile, methods=METHODS):
    """Everything that factorisations say, as tensors."""
    found = []
    for layer in profile.layers:
        for name in methods:
            if METHODS[name].obstacle(layer.spec) is None:
                factorization = store(layer.name, name)
                found += [*factorization.spectra]
                for share in (2, 4):
                    rank = tuple(max(1, top // share) for top in METHODS[name].max_rank(layer.spec))
                    try:
                        found += [*factorization.weights(rank), factorization.reconstruct(rank)]
                    except InvalidModel:
                        continue  # a fit that degenerates is refused, with a cache and without
                    found.append(torch.tensor(factorization.error(rank)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_factors_from_disk_are_the_computed_ones_to_the_last_bit(cache, method, monkeypatch):
    monkeypatch.setattr(cp, "SWEEPS", 10)
    fitting = [a for a in AWKWARD if METHODS[method].obstacle(a.spec) is None]
    more = [] if method.startswith("cp") else [a for a in fitting if a.spec.groups > 1 or a.spec.transposed][:2]
    for awkward in fitting[:1] + more:
        model, inputs = (
            nn.Sequential(filled(awkward.spec.build(), seed=3).float()),
            awkward.inputs(4, dtype=torch.float32),
        )
        if awkward.spec.gates:
            model, inputs = filled(nn.LSTM(7, 6, batch_first=True), seed=3).float(), torch.randn(4, 3, 7)
        profile = profiled(model, (inputs,))
        moments = MomentStore(model, profile, lambda inputs=inputs: Dataset(inputs))

        def store(kept, model=model, profile=profile, moments=moments):
            return FactorStore(model, profile, lambda name: moments(name).second, kept)

        fresh, first, second = (
            looked_at(store(kept), profile, [method]) for kept in (None, cache, Sealed(cache.folder))
        )
        assert fresh
        for one, two, three in zip(fresh, first, second, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


@pytest.fixture
def model():
    return filled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8))).float()


INPUTS = seeded((3, 4, 6, 6), dtype=torch.float32)


def test_retrained_weights_never_meet_stale_factors(cache, model):
    before = looked_at(
        FactorStore(model, profiled(model, INPUTS), cache=cache), profiled(model, INPUTS), ["svd", "tucker2"]
    )
    with torch.no_grad():
        model[3].weight[0, 0] += 1e-6
    profile = profiled(model, INPUTS)
    fresh = looked_at(FactorStore(model, profile), profile, ["svd", "tucker2"])
    kept = looked_at(FactorStore(model, profile, cache=cache), profile, ["svd", "tucker2"])
    assert all(map(torch.equal, kept, fresh))
    assert not all(map(torch.equal, kept, before))


def test_all_that_factors_depend_on_is_in_their_name(cache, model, monkeypatch):
    profile = profiled(model, INPUTS)
    moments = MomentStore(model, profile, lambda: Dataset(INPUTS))
    others = MomentStore(model, profile, lambda: Dataset(2 * INPUTS))
    seen: set[str] = set()

    def fresh_file(profile=profile, method="svd", layer="0", moment=moments):
        store = FactorStore(model, profile, lambda name: moment(name).second, cache)
        assert store(layer, method).spectra
        found = set(files(cache))
        more = len(found - seen)
        seen.update(found)
        return more

    assert fresh_file() == 1
    assert fresh_file() == 0
    assert fresh_file(method="tucker2") == 1
    assert fresh_file(layer="3") == 1
    assert fresh_file(method="svd_aware") == 1
    assert fresh_file(method="svd_aware", moment=others) == 1
    assert fresh_file(replace(profile, fingerprint="sha256:other")) == 1
    conv, linear = profile.layers
    grouped = replace(conv, spec=replace(conv.spec, in_channels=8, groups=2))  # the same weights, another layer
    assert fresh_file(replace(profile, layers=(grouped, linear))) == 1
    monkeypatch.setattr(factors, "VERSION", 99)
    assert fresh_file() == 1
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert fresh_file() == 1


def test_the_threads_of_large_factorisations_are_in_their_name(cache):
    model = nn.Sequential(nn.Linear(600, 500))
    profile = profiled(model, torch.zeros(1, 600))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            FactorStore(model, profile, cache=cache)("0", "svd").spectra  # noqa: B018
        finally:
            torch.set_num_threads(1)
    assert len(files(cache)) == 2


class Lock:
    """One that tells when somebody has to wait for it."""

    def __init__(self, waits):
        self._lock, self._waits = threading.RLock(), waits

    def __enter__(self):
        if not self._lock.acquire(blocking=False):
            self._waits()
            self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()


class Meeting:
    """Work that two threads ask for: the first stays at it until the second waits for a lock, or works as well.

    begun: how often the work was begun; at_once: how often before the first was through with it.
    """

    def __init__(self, monkeypatch, module):
        self.begun, self.at_once, self._here = 0, 0, threading.Event()
        lock = partial(Lock, self._here.set)
        monkeypatch.setattr(module, "threading", SimpleNamespace(Lock=lock, RLock=lock))

    def work(self):
        self.begun += 1
        if self.begun > 1:
            self._here.set()
            return
        self._second.start()
        assert self._here.wait(PATIENCE_SECONDS), "the second thread neither waits nor works"
        self.at_once = self.begun

    def answers(self, first, second):
        found = {}
        self._second = threading.Thread(target=lambda: found.update(second=second()), daemon=True)
        found["first"] = first()
        self._second.join()
        return found["first"], found["second"]


@pytest.mark.parametrize(("other", "begun"), [("3", 1), ("0", 2)], ids=["the same layer", "another layer"])
def test_a_layer_is_factorised_once_and_others_beside_it(model, monkeypatch, other, begun):
    meeting, read = Meeting(monkeypatch, factors), factors.weight_at
    monkeypatch.setattr(factors, "weight_at", lambda *layer: (meeting.work(), read(*layer))[1])
    store = FactorStore(model, profiled(model, INPUTS))
    first, second = meeting.answers(lambda: store("3", "svd"), lambda: store(other, "svd"))
    assert (meeting.at_once, meeting.begun) == (begun, begun)
    assert (first is second) == (other == "3")


def test_a_step_of_a_factorisation_is_computed_once(monkeypatch):
    meeting = Meeting(monkeypatch, memo)
    taken = memo.Memo()

    def compute():
        meeting.work()
        return {"values": torch.ones(2)}

    first, second = meeting.answers(*[lambda: taken("factors", compute)] * 2)
    assert meeting.begun == 1
    assert first["values"] is second["values"]


def test_damaged_factors_are_computed_again(cache, model):
    profile = profiled(model, INPUTS)
    fresh = looked_at(FactorStore(model, profile, cache=cache), profile, ["svd", "tucker2"])
    for name in files(cache):
        cut(cache.folder / "tensors" / name)
    again = looked_at(FactorStore(model, profile, cache=cache), profile, ["svd", "tucker2"])
    assert all(map(torch.equal, fresh, again))
    assert all(
        map(
            torch.equal,
            fresh,
            looked_at(FactorStore(model, profile, cache=Sealed(cache.folder)), profile, ["svd", "tucker2"]),
        )
    )


# ---- moments --------------------------------------------------------------------------------------------------------


def test_moments_come_back_to_the_last_bit(cache, model, monkeypatch):
    profile = profiled(model, INPUTS)
    first = MomentStore(model, profile, lambda: Dataset(INPUTS), cache=cache)
    kept = {layer.name: first(layer.name) for layer in profile.layers}
    monkeypatch.setattr(calibration, "input_moments", lambda *_: pytest.fail("learnt again"))
    second = MomentStore(model, profile, lambda: Dataset(INPUTS), cache=cache)
    for name, moment in kept.items():
        found = second(name)
        assert torch.equal(found.second, moment.second)
        assert torch.equal(found.mean, moment.mean)
        assert found.rows == moment.rows


def test_all_that_moments_depend_on_is_in_their_name(cache, model, monkeypatch):
    def learnt(model, inputs, **limits):
        before = set(files(cache))
        profile = profiled(model, INPUTS)
        fresh = MomentStore(model, profile, lambda: Dataset(inputs), **limits)("3").second
        assert torch.equal(
            MomentStore(model, profile, lambda: Dataset(inputs), cache=cache, **limits)("3").second, fresh
        )
        return len(set(files(cache)) - before)

    assert learnt(model, INPUTS) == 2
    assert learnt(model, INPUTS) == 0
    assert learnt(model, INPUTS + 1) == 2
    gelu = nn.Sequential(model[0], nn.GELU(), *model[2:])  # the same fingerprint
    assert profiled(gelu, INPUTS).fingerprint == profiled(model, INPUTS).fingerprint
    assert learnt(gelu, INPUTS) == 2
    assert learnt(model, INPUTS, limit_bytes=80_000) == 0  # which layers share a pass makes no difference
    monkeypatch.setattr(calibration, "VERSION", 99)
    assert learnt(model, INPUTS) == 2
    with torch.no_grad():
        model[0].bias[0] += 1e-3
    assert learnt(model, INPUTS) == 2


# ---- what a person sees ---------------------------------------------------------------------------------------------

PLAN = "plan.json"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("spectra",),
        ("evaluate", "--plan", PLAN),
        ("apply", "--plan", PLAN, "--out", "out"),
        ("search", "--bytes", "0.9", "--rule", "uniform", "--out", "out"),
        ("profile", "--method", "svd", "--samples", "8"),
        ("finetune", "--plan", PLAN, "--epochs", "1", "--out", "out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_cache_leaves_no_file(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    profile = Workspace.open("builtin:iris-mlp").profile
    (tmp_path / PLAN).write_text(uniform_plan(profile, 0.6).with_choice("fc1", Choice("svd", (2,))).to_json())
    rest = [str(tmp_path / text) if text in (PLAN, "out") else text for text in arguments[1:]]
    result = CliRunner().invoke(cli, [arguments[0], "builtin:iris-mlp", *rest, "--no-cache"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "cache").exists()


def test_the_command_line_keeps_factors(tmp_path, monkeypatch):
    monkeypatch.setattr(_opening, "CACHE", tmp_path / "cache")
    answers = [CliRunner().invoke(cli, ["spectra", "builtin:iris-mlp", "--json"]) for _ in range(2)]
    first, again = (json.loads(answer.stdout) for answer in answers)
    assert again["layers"] == first["layers"]
    assert (first["operations"] > 0, again["operations"]) == (True, 0)
    assert len(files(Cache(tmp_path / "cache"))) == 2


def test_a_workspace_without_a_cache_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.open("builtin:iris-mlp")
    assert workspace.cache is None
    workspace.compress(uniform_plan(workspace.profile, 0.6), workspace.correction)
    assert not list(tmp_path.iterdir())
